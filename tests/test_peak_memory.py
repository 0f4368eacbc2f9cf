"""Peak memory of real training steps beside the forecast, and that measuring it changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import RESIDUAL, store_case, tiny_plan
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.step import GIB
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.checksums import write_checksums
from megavoxel.tasks.segmentation import training
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run, train
from megavoxel.training import memory
from megavoxel.training.manifest import build_manifest
from megavoxel.training.memory import TRACKED, tracked_step
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def fold(tmp_path) -> VolumeData:
    for number in range(2):
        store_case(tmp_path / "cases", f"case{number}", seed=number)
    return VolumeData(number=0, preprocessed=tmp_path / "cases", training=("case0",), validation=("case1",))


def plan_of(*, parallel: dict | None = None, **training) -> Plan:
    """One epoch of two steps."""
    keys = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1}
    return tiny_plan(patch=(24, 24, 24), training={**keys, **training}, parallel=Parallel(**(parallel or {})))


def certain_bytes(plan: Plan) -> float:
    device = Device(name="any", kind="cpu", memory_gib=64.0)
    forecast = forecast_setting(plan, plan.parallel, device, Workload(training_cases=2, folds=2))
    return forecast.certain_gib * GIB


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(plan.batch, 1, *plan.patch, generator=generator)
    return image, torch.randint(0, 3, (plan.batch, *plan.patch), generator=generator)


def weights_of(run: Run) -> list[torch.Tensor]:
    return list(run.network.state_dict().values())


@pytest.mark.parametrize("fake", [True, False])
def test_tensors_that_were_there_before_are_counted_until_nothing_refers_to_them(fake):
    with FakeTensorMode() if fake else torch.no_grad():
        before = torch.zeros(MIB // 4)
        with MemoryTracker() as tracker:
            tracker.include([before, before.view(2, -1)])
            assert tracker.live == MIB
            after = before + 1
            assert tracker.peak == 2 * MIB
            del before
            assert tracker.live == MIB
            del after
        assert tracker.live == 0


def check_forecast(plan: Plan, fold: VolumeData, folder: Path) -> None:
    run = train(plan, fold, folder / "state", CPU)
    assert run.peak_memory["how"] == TRACKED
    assert run.peak_memory["gib"] * GIB == pytest.approx(certain_bytes(plan), rel=0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("parallel", [{}, {"checkpointing": "blocks"}, {"accumulate": 2}], ids=str)
def test_the_forecast_is_the_tracked_peak_of_training(fold, tmp_path, optimizer, parallel):
    check_forecast(plan_of(parallel=parallel, optimizer=optimizer), fold, tmp_path)


def test_the_forecast_holds_with_weights_of_classes(fold, tmp_path):
    where = fold.preprocessed / "case0.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"class_voxels": [2, 1, 1]}))
    sums = where.with_suffix(".sha256")
    names = [line.split("  ", 1)[1] for line in sums.read_text().splitlines()]
    write_checksums(sums, [where.with_name(name) for name in names], {})
    check_forecast(plan_of(loss="cross_entropy", class_weights="softmax_of_inverse"), fold, tmp_path)


@pytest.mark.parametrize("training", [{"batch_dice": True}, {"loss": "cross_entropy"}], ids=str)
def test_the_forecast_holds_where_labels_are_not_annotated(fold, tmp_path, training):
    check_forecast(replace(plan_of(**training), unannotated={"case0": ("cube",)}), fold, tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_the_forecast_holds_with_residual_encoders(fold, tmp_path, checkpointing, precision):
    plan = plan_of(parallel={"checkpointing": checkpointing}, precision=precision)
    check_forecast(replace(plan, network=replace(plan.network, **RESIDUAL)), fold, tmp_path)


@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_the_forecast_holds_with_an_expanded_patch(fold, tmp_path, order):
    plan = plan_of()
    network = replace(plan.network, expanded_head=True)
    plan = replace(plan, network=network, expanded_patch=(36, 36, 36), expansion_order=order)
    check_forecast(plan, fold, tmp_path)


def test_the_first_step_counts_the_optimisers_state_as_later_ones_find_it(fold):
    """Two moments per weight, on a patch so small that weights are most of the memory."""
    for patch in ((24, 24, 24), (4, 4, 4)):
        plan = replace(plan_of(optimizer="adam"), patch=patch)
        run = start_run(plan, fold, CPU)
        run.network.train()
        peaks = [tracked_step(run, *batch_of(plan))[1] for _ in range(3)]
        assert peaks[0] == pytest.approx(peaks[1], rel=0.02), patch
        assert peaks[1] == peaks[2], patch


def test_tracking_leaves_every_bit_of_a_step_as_it_is(fold):
    plan = plan_of(parallel={"checkpointing": "blocks"})
    runs = [start_run(plan, fold, CPU) for _ in range(2)]
    losses = [
        step(run.network.train() and run, *batch_of(plan))
        for step, run in zip((train_step, lambda *given: tracked_step(*given)[0]), runs, strict=True)
    ]
    assert torch.equal(*losses)
    assert all(torch.equal(ours, expected) for ours, expected in zip(*map(weights_of, runs), strict=True))


def test_a_resumed_run_keeps_the_figure_and_the_weights_of_an_uninterrupted_one(fold, tmp_path, monkeypatch):
    plan = plan_of(epochs=3)
    whole = train(plan, fold, tmp_path / "whole", CPU)
    tracked, validate = [], training.validate

    def killed_in_the_second_epoch(run, *given):
        if run.epoch == 1:
            raise KeyboardInterrupt
        return validate(run, *given)

    monkeypatch.setattr(memory, "tracked_step", lambda *given: tracked.append(1) or tracked_step(*given))
    monkeypatch.setattr(training, "validate", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(plan, fold, tmp_path / "state", CPU)
    monkeypatch.setattr(training, "validate", validate)
    resumed = train(plan, fold, tmp_path / "state", CPU)
    assert len(tracked) == 1
    assert resumed.peak_memory == whole.peak_memory
    assert all(torch.equal(ours, expected) for ours, expected in zip(*map(weights_of, (whole, resumed)), strict=True))


def test_a_finished_run_that_is_started_again_still_has_the_figure(fold, tmp_path):
    plan = plan_of()
    first = train(plan, fold, tmp_path / "state", CPU)
    again = train(plan, fold, tmp_path / "state", CPU)
    assert again.peak_memory == first.peak_memory
    figure = json.loads(json.dumps(build_manifest(again, fold, forecast_gib=0.5)))["peak_memory"]
    assert figure == {**first.peak_memory, "forecast_gib": 0.5}
    assert figure["gib"] > 0


def test_a_gpus_peak_is_pytorchs_own_and_takes_the_place_of_one_measured_otherwise(fold, monkeypatch):
    run = start_run(plan_of(), fold, CPU)
    run.peak_memory = {"gib": 99.0, "how": TRACKED}
    run.device = torch.device("cuda")
    for allocated, kept in ((2 * GIB, 2.0), (3 * GIB, 3.0), (GIB, 3.0)):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _, value=allocated: value)
        memory.note_allocated(run)
        assert run.peak_memory == {"gib": kept, "how": "CUDA peak of PyTorch's allocator"}
