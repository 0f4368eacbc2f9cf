"""How kernels compute is chosen once, for a whole run: said in the manifest, forced by keys, kept by a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from helpers import RESIDUAL, three_cases, tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.config.study_file import parse_study
from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.forecast.step import new_run, training_step
from megavoxel.inference import kernels as windows_kernels
from megavoxel.network import compiled
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import Precision
from megavoxel.network.kernels import Kernels
from megavoxel.network.recomputation import has_channels_last
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.tasks.segmentation.training import start_run, train, training_batches
from megavoxel.training import kernels
from megavoxel.training.kernels import choose_kernels, require_compilable
from megavoxel.training.manifest import write_outputs
from megavoxel.training.memory import tracked_step
from megavoxel.training.step import train_step

CPU = torch.device("cpu")
FLOAT32 = Precision(name="float32", reason="test")
FIRST = {"memory_layout": "channels_first", "cudnn_benchmark": False}


@pytest.fixture
def fold(tmp_path):
    return three_cases(tmp_path)


def chosen(group: Group | None = None, **training) -> Kernels:
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

    monkeypatch.setattr(kernels, "why_not_measured", lambda *_, **__: None)
    monkeypatch.setattr(kernels, "_time_of_step", seconds)
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


GPU = torch.device("cuda")
HALF = Precision(name="bfloat16", reason="test")


@pytest.fixture
def timed(monkeypatch):
    """A GPU on which compiled norms take 0.8 of the time of plain ones, and fused updates 0.5 of the time of others."""
    monkeypatch.setattr(kernels, "why_not_measured", lambda *_, **__: None)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(kernels, "_time_of_step", lambda *given: 0.8 if given[-1].compile else 1.0)
    monkeypatch.setattr(kernels, "_time_of_update", lambda *given: 0.01 if given[-1].optimizer == "fused" else 0.02)


def chosen_on_gpu(**training) -> Kernels:
    keys = {"epochs": 10, "iterations_per_epoch": 200, **FIRST, **training}
    return choose_kernels(tiny_plan(training=keys), GPU, HALF, Group())


def test_norms_and_optimiser_are_measured_one_after_the_other(timed):
    found = chosen_on_gpu()
    assert (found.memory_layout, found.compile, found.optimizer) == ("channels_first", True, "fused")
    assert found.reason == "measured: plain norms 1 s, compiled 0.8 s; foreach 0.02 s, fused 0.01 s"


def test_keys_force_norms_and_optimiser(timed):
    found = chosen_on_gpu(compile=False, optimizer_kernels="foreach")
    assert (found.compile, found.optimizer, found.reason) == (False, "foreach", "as the study says")


def test_rmsprop_which_has_no_fused_step_is_not_measured(timed):
    assert chosen_on_gpu(compile=False, optimizer="rmsprop").optimizer == "foreach"


def test_a_short_training_does_not_wait_for_a_compiler(timed):
    found = chosen_on_gpu(epochs=1)  # 200 steps of a second
    assert not found.compile
    assert "compiled would not pay" in found.reason


def test_a_compiler_that_fails_leaves_plain_norms(timed, monkeypatch):
    def time_of_step(*given):
        if given[-1].compile:
            raise OSError("no headers of Python")
        return 1.0

    monkeypatch.setattr(kernels, "_time_of_step", time_of_step)
    found = chosen_on_gpu()
    assert not found.compile
    assert "compiled cannot be compiled here (OSError)" in found.reason


@pytest.mark.parametrize("changes", [{"network": replace(tiny_plan().network, norm="batch")}, {"which": None}])
def test_norms_are_not_compiled_where_they_cannot_be(timed, monkeypatch, changes):
    plan = tiny_plan(training={"epochs": 10, "iterations_per_epoch": 200, **FIRST})
    if "which" in changes:
        monkeypatch.setattr("shutil.which", lambda _: None)
    else:
        plan = replace(plan, **changes)
    assert not choose_kernels(plan, GPU, HALF, Group()).compile


def test_a_forecast_of_norms_left_open_is_that_of_plain_ones():
    steps = [
        training_step(plan_of("unet", compile=way), samples=3, parallel=Parallel(), precision="float32")
        for way in (None, False, True)
    ]
    assert steps[0].peak_bytes == steps[1].peak_bytes >= steps[2].peak_bytes


def test_every_way_can_be_timed_and_leaves_no_trace(monkeypatch):
    plan = tiny_plan()
    before = torch.backends.cudnn.benchmark
    for way in (Kernels(reason=""), Kernels(memory_layout="channels_first", cudnn_benchmark=True, reason="")):
        assert kernels._time_of_step(plan, CPU, FLOAT32, way) > 0
        assert kernels._time_of_update(plan, CPU, replace(way, optimizer="fused")) > 0
    assert torch.backends.cudnn.benchmark == before


@pytest.fixture
def windows(monkeypatch):
    """A GPU that computes windows faster with channels first."""
    shapes = []

    def seconds(_network, shape, _precision, _device, memory_format, *, trains):
        assert not trains
        shapes.append(shape)
        return 0.1 if memory_format == torch.contiguous_format else 0.2

    monkeypatch.setattr(windows_kernels, "why_not_measured", lambda *_, **__: None)
    monkeypatch.setattr(windows_kernels, "pass_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    return shapes


def of_windows(plan) -> Kernels:
    return windows_kernels.kernels_of_windows(plan, None, GPU, HALF, alone=True)


def test_prediction_measures_the_layout_on_its_window(windows):
    plan = tiny_plan()
    found = of_windows(replace(plan, inference=replace(plan.inference, window=(8, 16, 16))))
    assert (found.memory_layout, found.cudnn_benchmark) == ("channels_first", False)
    assert found.reason.startswith("measured: channels_last 0.2 s, channels_last with cudnn_benchmark 0.2 s, ")
    assert set(windows) == {(1, 1, 8, 16, 16)}


def test_cudnn_does_not_search_for_windows_that_differ_from_case_to_case(windows):
    plan = tiny_plan()
    found = of_windows(replace(plan, inference=replace(plan.inference, window="whole")))
    assert found.reason == "measured: channels_last 0.2 s, channels_first 0.1 s"
    assert set(windows) == {(1, 1, *plan.patch)}


def test_keys_of_training_force_the_layout_of_prediction(windows):
    found = of_windows(tiny_plan(training=FIRST))
    assert (found.memory_layout, found.reason, windows) == ("channels_first", "as the study says", [])


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
        "optimizer": "loop",
        "reason": "the default on a processor",
    }  # fmt: skip
    other = {**told, "memory_layout": "channels_first", "reason": "measured elsewhere"}
    resumed = start_run(plan, fold, CPU, done.state_dict() | {"kernels": other})
    assert resumed.kernels.plain() == other
    assert not any(map(has_channels_last, resumed.network.parameters()))
    for broken in ({**told, "memory_layout": "sideways"}, {**told, "optimizer": "?"}, {**told, "compile": "yes"}, {}):
        with pytest.raises(UserError, match="remove its folder of states"):
            start_run(plan, fold, CPU, done.state_dict() | {"kernels": broken})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"parallel": Parallel(space=(1, 1, 2))}, "parallel.space"),
        ({"network": replace(tiny_plan().network, norm="batch")}, "network.norm"),
    ],
)
def test_compiled_norms_are_refused_where_there_are_none(changes, key):
    plan = replace(tiny_plan(training={"compile": True}), **changes)
    with pytest.raises(UserError, match=f"setting tiny: training.compile .* remove {key}$"):
        choose_kernels(plan, CPU, FLOAT32, Group())


def test_compiled_code_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match=r"training.compile needs g\+\+ on a processor"):
        chosen(compile=True)
    with pytest.raises(UserError, match=r"training.compile needs gcc or clang on a GPU"):
        require_compilable(tiny_plan(training={"compile": True}), torch.device("cuda"))


@pytest.fixture
def captured(monkeypatch):
    """Without a C++ compiler: what PyTorch captures of the norms, run as it is."""
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    compiled._compiled.cache_clear()
    yield
    compiled._compiled.cache_clear()


def plan_of(architecture: str, **changes):
    """A plan of 3 samples."""
    network = replace(tiny_plan().network, **(RESIDUAL if architecture == "residual" else {}))
    return replace(tiny_plan(training=changes), network=network, batch=3)


def step_of(plan):
    """Loss and gradients, by name, of a step of 3 samples; with channels last, as on a CPU."""
    network = SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing)
    network = network.to(memory_format=torch.channels_last_3d)
    compile_norms(network, compiled=plan.training.compile)
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(3, plan.network.input_channels, *plan.patch, generator=generator)
    outputs = network(image.contiguous(memory_format=torch.channels_last_3d))
    loss = sum((level * torch.randn(level.shape, generator=generator)).mean() for level in outputs)
    loss.backward()
    return loss.item(), {name: weights.grad for name, weights in network.named_parameters()}


@pytest.mark.parametrize("architecture", ["unet", "residual"])
def test_compiled_norms_give_the_loss_and_gradients_of_plain_ones(captured, architecture):
    plan = plan_of(architecture)
    loss, gradients = step_of(plan)
    found, others = step_of(plan_of(architecture, compile=True))
    assert found == pytest.approx(loss, rel=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-5 * largest), name


@pytest.mark.parametrize("checkpointing", ["norms", "blocks"])
@pytest.mark.parametrize("architecture", ["unet", "residual"])
def test_compiled_norms_computed_again_give_gradients_equal_to_the_bit(captured, architecture, checkpointing):
    plan = plan_of(architecture, compile=True)
    loss, gradients = step_of(plan)
    found, others = step_of(replace(plan, parallel=Parallel(checkpointing=checkpointing)))
    assert found == loss
    for name, gradient in gradients.items():
        assert torch.equal(others[name], gradient), name


@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_the_forecast_knows_what_compiled_norms_keep(captured, checkpointing):
    parallel = Parallel(checkpointing=checkpointing)
    plain, plan = (replace(plan_of("unet", compile=way), parallel=parallel) for way in (False, True))
    costs = [training_step(one, samples=3, parallel=parallel, precision="float32") for one in (plain, plan)]
    assert costs[1].flops == costs[0].flops
    assert costs[1].touched_bytes < costs[0].touched_bytes
    run = new_run(plan, "float32")
    image, target = torch.zeros(3, 1, *plan.patch), torch.zeros(3, *plan.patch, dtype=torch.uint8)
    tracked_step(run, image, target)
    _, peak = tracked_step(run, image, target)
    assert peak == pytest.approx(costs[1].peak_bytes, rel=0.02)


@pytest.mark.slow
def test_a_run_with_compiled_norms_trains_to_the_weights_of_a_plain_one(captured, fold, tmp_path):
    keys = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1}
    plain = train(tiny_plan(training=keys), fold, tmp_path / "plain", CPU)
    found = train(tiny_plan(training={**keys, "compile": True}), fold, tmp_path / "compiled", CPU)
    assert found.kernels.compile
    assert found.history[0]["training_loss"] == pytest.approx(plain.history[0]["training_loss"], rel=1e-5)
    assert found.history[0]["validation_loss"] == pytest.approx(plain.history[0]["validation_loss"], rel=1e-5)
    for name, weights in plain.network.state_dict().items():
        assert torch.allclose(found.network.state_dict()[name], weights, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam"])
def test_all_ways_of_an_optimiser_give_the_same_weights(optimizer):
    _, gradients = step_of(plan_of("unet"))  # laid as a backward pass leaves them

    def weights(way: str) -> list[torch.Tensor]:
        run = new_run(plan_of("unet", optimizer=optimizer, optimizer_kernels=way), "float32")
        for _ in range(3):
            for name, parameter in run.network.named_parameters():
                parameter.grad = gradients[name].clone(memory_format=torch.preserve_format)
            run.optimizer.step()
        return [parameter.detach() for parameter in run.network.parameters()]

    wanted = weights("loop")
    for way in ("foreach", "fused"):
        for found, parameter in zip(weights(way), wanted, strict=True):
            assert torch.allclose(found, parameter, rtol=1e-5, atol=1e-6), way


def test_the_optimisers_way_is_said_and_forced_and_in_the_forecast():
    assert chosen().optimizer == "loop"
    assert chosen(optimizer_kernels="fused", **FIRST).optimizer == "fused"
    assert kernels._ways_of_optimizer(tiny_plan(), GPU)[0].name == "foreach"
    costs = {
        way: training_step(
            tiny_plan(training={"optimizer_kernels": way}), samples=2, parallel=Parallel(), precision="float32"
        )
        for way in ("loop", "foreach", "fused")
    }
    assert costs["foreach"].peak_bytes >= costs["loop"].peak_bytes == costs["fused"].peak_bytes


def test_a_fused_optimiser_that_pytorch_has_not_is_refused():
    training = {"optimizer": "rmsprop", "optimizer_kernels": "fused"}
    study = {"study": "a", "dataset": "b", "settings": {"one": {"training": training}}}
    with pytest.raises(UserError, match=r"training.optimizer_kernels: PyTorch has no such rmsprop"):
        parse_study(study, source="study.yaml").setting("one")
