"""How kernels compute is chosen once, for a whole run: said in the manifest, forced by keys, kept by a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partialmethod

import pytest
import torch

from helpers import three_cases, tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.network.device import Precision
from megavoxel.network.recomputation import has_channels_last
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.tasks.segmentation.training import start_run, train, training_batches
from megavoxel.training import kernels
from megavoxel.training.kernels import choose_kernels
from megavoxel.training.manifest import write_outputs
from megavoxel.training.step import train_step

CPU = torch.device("cpu")
FLOAT32 = Precision(name="float32", reason="test")
FIRST = {"memory_layout": "channels_first", "cudnn_benchmark": False}


@pytest.fixture
def fold(tmp_path):
    return three_cases(tmp_path)


def chosen(group: Group | None = None, **training) -> kernels.Kernels:
    return choose_kernels(tiny_plan(training=training), CPU, FLOAT32, group or Group())


def test_a_processor_takes_the_default_without_a_measurement():
    found = chosen()
    assert (found.memory_layout, found.cudnn_benchmark, found.compile) == ("channels_last", False, False)
    assert found.reason == "the default on a processor"


def test_keys_of_the_study_force_the_choice():
    found = chosen(**FIRST)
    assert found.memory_layout == "channels_first"
    assert found.reason == "as the study says"


@pytest.fixture
def measured(monkeypatch):
    """A device on which ways can be told apart: the second layout is faster, and more so with the search."""
    asked = []

    def seconds(_plan, _device, _precision, way):
        asked.append((way.memory_layout, way.cudnn_benchmark))
        return {"channels_last": 0.2, "channels_first": 0.1}[way.memory_layout] - 0.03 * way.cudnn_benchmark

    monkeypatch.setattr(kernels, "_why_not_measured", lambda *_: None)
    monkeypatch.setattr(kernels, "_seconds", seconds)
    return asked


def test_the_fastest_way_is_taken_and_the_times_are_told(measured):
    found = chosen()
    assert (found.memory_layout, found.cudnn_benchmark) == ("channels_first", True)
    assert found.reason == (
        "measured: channels_last 0.2 s, channels_last with cudnn_benchmark 0.17 s, "
        "channels_first 0.1 s, channels_first with cudnn_benchmark 0.07 s"
    )
    assert len(measured) == 4


def test_what_a_key_forces_is_not_measured(measured):
    found = chosen(memory_layout="channels_last")
    assert (found.memory_layout, found.cudnn_benchmark) == ("channels_last", True)
    assert measured == [("channels_last", False), ("channels_last", True)]


def test_other_processes_take_what_the_first_one_measured(measured):
    class Follower(Group):
        @property
        def leads(self) -> bool:
            return False

        def from_leader(self, _values):
            return [2]

    found = chosen(Follower())
    assert (found.memory_layout, found.cudnn_benchmark) == ("channels_first", False)
    assert measured == []


def test_a_forced_layout_is_that_of_weights_and_gives_the_same_step(fold):
    losses, weights = [], []
    for keys in ({}, FIRST):
        plan = tiny_plan(training=keys)
        run = start_run(plan, fold, CPU)
        image, target = next(iter(training_batches(run, fold)))
        losses.append(train_step(run, image, target))
        weights.append([parameter.detach() for parameter in run.network.parameters()])
    assert any(map(has_channels_last, weights[0]))
    assert not any(map(has_channels_last, weights[1]))
    torch.testing.assert_close(losses[0], losses[1])
    for last, first in zip(*weights, strict=True):
        torch.testing.assert_close(last, first, rtol=1e-4, atol=1e-6)


def test_a_run_says_its_choice_in_the_manifest_and_a_resumed_one_keeps_it(fold, tmp_path):
    plan = tiny_plan(training={"epochs": 1, "iterations_per_epoch": 1, "validation_iterations": 0})
    done = train(plan, fold, tmp_path / "state", CPU)
    write_outputs(tmp_path / "out", done, fold, forecast_gib=1.0)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["kernels"]
    assert told == {
        "memory_layout": "channels_last", "cudnn_benchmark": False, "tf32": False, "compile": False,
        "reason": "the default on a processor",
    }  # fmt: skip
    other = {**told, "memory_layout": "channels_first", "reason": "measured elsewhere"}
    resumed = start_run(plan, fold, CPU, done.state_dict() | {"kernels": other})
    assert resumed.kernels.plain() == other
    assert not any(map(has_channels_last, resumed.network.parameters()))
    for broken in ({**told, "memory_layout": "sideways"}, {**told, "compile": "yes"}, {}):
        with pytest.raises(UserError, match="remove its folder of states"):
            start_run(plan, fold, CPU, done.state_dict() | {"kernels": broken})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"parallel": Parallel(checkpointing="norms")}, "parallel.checkpointing"),
        ({"parallel": Parallel(pipeline=2)}, "parallel.pipeline"),
        ({"parallel": Parallel(space=(1, 1, 2))}, "parallel.space"),
        ({"expanded_patch": (12, 16, 16)}, "expansion"),
    ],
)
def test_compiled_code_is_refused_beside_what_it_cannot_do(changes, key):
    plan = replace(tiny_plan(training={"compile": True}), **changes)
    with pytest.raises(UserError, match=f"setting tiny: training.compile .* remove {key}$"):
        choose_kernels(plan, CPU, FLOAT32, Group())


def test_compiled_code_for_a_processor_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match=r"training.compile needs g\+\+ on a processor"):
        chosen(compile=True)


@pytest.mark.slow
def test_a_compiled_network_is_one_graph_that_trains_to_the_same_weights(fold, tmp_path, monkeypatch):
    # Without a C++ compiler: what PyTorch captures of the network, its backward pass included, run as it is.
    captured = partialmethod(torch.nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(SegmentationNetwork, "compile", captured, raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name)
    keys = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1}
    plain = train(tiny_plan(training=keys), fold, tmp_path / "plain", CPU)
    found = train(tiny_plan(training={**keys, "compile": True}), fold, tmp_path / "compiled", CPU)
    assert found.kernels.compile
    assert found.history[0]["training_loss"] == plain.history[0]["training_loss"]
    assert found.history[0]["validation_loss"] == plain.history[0]["validation_loss"]
    for name, weights in plain.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], weights), name
    assert found.peak_memory["gib"] == pytest.approx(plain.peak_memory["gib"], rel=0.02)
