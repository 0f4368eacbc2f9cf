"""Memory and time of a classifier before anything runs: `plan.tsv` of a classification study."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pandas
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.classification import ClassificationStudy, ClassifierSetting
from megavoxel.config.dataset import Dataset
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.errors import UserError
from megavoxel.forecast.duration import speed_of, step_seconds
from megavoxel.forecast.memory import Foretold, device_at_hand, memory_advice, require_memory
from megavoxel.forecast.setting import connections_gib, counted_gib, peak_gib
from megavoxel.forecast.step import CPU, GIB, Keyed, StepCost, float32_bytes, gib, make_optimizer_state
from megavoxel.forecast.table import WHAT_IT_LEAVES_OUT, save_table, shown
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.work import Work
from megavoxel.parallel import map_cases
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.plan import ClassifierPlan, classifier_plan, expected_images, placeholder_classes
from megavoxel.tasks.classification.training import gradients, precision_on
from megavoxel.training.memory import optimizer_tensors
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run

COLUMNS = (
    "setting", "network", "resolution", "images_per_class", "workers", "batch", "learning_rate", "peak_gib",
    "mib_per_image", "seconds_per_image", "hours_per_fold", "gpu_hours", "fits", "reason",
)  # fmt: skip
MIB = 2**20
TRACED_IMAGES = 1_000_003
"""A prime above every extent of a weight: a tensor whose size it divides is there for every image."""
LARGE_BATCHES = (64, 128)
"""Batches whose peaks are those of activations, not of the optimiser's step."""
BLIND_SPOTS = (
    "peak_gib: of a worker in training: weights, gradients, optimiser, activations and, with several workers, the "
    "buffer of the exchange, from the network itself on fake tensors, plus the device's overhead_gib and workspace; "
    "mib_per_image: what each image of a large batch adds to the tensors.\n"
    "seconds_per_image, hours_per_fold: operations of convolutions at the device's sustained rate, with decoding "
    "keeping up; of several workers, seconds of each for its own images. Rates of config/hardware.yaml are those of 3D "
    "networks, or of large batches: small images, whose steps are many small operations, take longer than that. "
    "hours_per_fold is empty where images_per_class is: how many images there are is then not known."
)


def step_cost(plan: ClassifierPlan, precision: str) -> StepCost:
    """The cost of a step on one worker, from `train_step` itself on fake tensors.

    With several workers, the buffer of the exchange, and the copy that is summed, are there once activations are gone.
    """
    cost = _traced(plan, plan.batch, precision)
    exchange = cost.resident_bytes + 3 * cost.parameter_bytes if plan.workers > 1 else 0
    return replace(cost, peak_bytes=max(cost.peak_bytes, exchange))


def image_bytes(plan: ClassifierPlan, precision: str) -> float:
    """What each image of a large batch adds to the peak."""
    few, many = (_traced(plan, images, precision).peak_bytes for images in LARGE_BATCHES)
    return (many - few) / (LARGE_BATCHES[1] - LARGE_BATCHES[0])


def forecast_study(study: ClassificationStudy, classes: int | tuple[str, ...], device: Device) -> pandas.DataFrame:
    """The rows of `plan.tsv`, in the order of the study.

    One process traces all: it makes each network once, and another one would first import PyTorch for as long.

    Args:
        classes: of its dataset: their names, or how many.
    """
    together: dict[tuple[str, int], list[ClassifierSetting]] = {}
    for setting in study.settings:
        together.setdefault((setting.network, setting.resolution), []).append(setting)
    work = partial(_rows, study=study, classes=placeholder_classes(study, classes), device=device)
    found = map_cases(work, list(together.values()), title="networks traced", unit="resolution")
    rows = {row["setting"]: row for group in found for row in group}
    table = pandas.DataFrame([rows[setting.name] for setting in study.settings], columns=COLUMNS)
    return table.astype({"images_per_class": "Int64", "hours_per_fold": "Float64", "gpu_hours": "Float64"})


def precision_of(plan: ClassifierPlan, device: Device) -> str:
    """The precision that training will choose there (`tasks/classification/training.py: precision_on`)."""
    wanted = plan.training.precision
    return ("bfloat16" if device.kind == "gpu" and device.bfloat16 else "float32") if wanted == "auto" else wanted


def _rows(settings: list[ClassifierSetting], **keys: Any) -> list[dict[str, object]]:
    """Settings whose step is traced once."""
    return [_row(setting, **keys) for setting in settings]


def check_fits_here(plan: ClassifierPlan, _data: object, device: torch.device, described: Device | None) -> Foretold:
    """Refuses training that cannot fit the device at hand, and warns of training that may not.

    Args:
        described: what the hardware file says of it; None: it has the overheads of an uncalibrated one.

    Raises:
        UserError: it cannot fit.
    """
    found = device_at_hand(device, plan.workers, described=described)
    precision = precision_on(plan, device).name
    cost = step_cost(plan, precision)
    peak, option = (
        _with_connections(plan, cost, found),
        f"batch: {plan.batch // 2}" if plan.batch > 1 else "a lower resolution",
    )
    require_memory(
        plan.setting,
        found,
        certain_gib=cost.peak_bytes / GIB,
        training_gib=peak,
        refusal=lambda: (
            f"training needs {gib(peak)}, {gib(peak - found.memory_gib)} more than {found.name} has "
            f"({gib(found.memory_gib)}); what would help: {option}"
        ),
        option=lambda: option,
    )
    return Foretold(
        advice=lambda: memory_advice(found, peak, precision, option), peak_gib=partial(forecast_gib, device=found)
    )


def _with_connections(plan: ClassifierPlan, cost: StepCost, device: Device) -> float:
    return peak_gib(cost, device) + connections_gib(Parallel(data=plan.workers), device)


def forecast_gib(run: Run, device: Device | None = None) -> float:
    """Forecast of the peak memory of a run as PyTorch counts it, in the precision that the run took.

    Args:
        device: that it ran on; None: tensors alone are counted.
    """
    return counted_gib(step_cost(run.plan, run.precision.name), device)


def forecast(arguments: argparse.Namespace, study: ClassificationStudy, device: Device, dataset: Dataset) -> None:
    """Prints the forecast of a study and writes it where `--output` says.

    Raises:
        UserError: the dataset is not one of images with a class each.
    """
    if dataset.classification is None:
        raise UserError(f"{study.name}: dataset {dataset.name} has no 'classification' in its file, the study needs it")
    rows = forecast_study(study, dataset.classification.classes, device)
    if arguments.output is not None:
        save_table(arguments.output, rows)
    memory = gib(device.limit_gib) if device.limit_gib else "no memory stated"
    print(f"{study.name} on {device.name} ({memory}); {dataset.classification.class_count} classes")
    print(shown(rows))
    print(BLIND_SPOTS if arguments.explain else WHAT_IT_LEAVES_OUT)


def _row(
    setting: ClassifierSetting, *, study: ClassificationStudy, classes: tuple[str, ...], device: Device
) -> dict[str, object]:
    plan = classifier_plan(setting, study=study.name, dataset=study.dataset, classes=classes, seed=study.seed)
    precision = precision_of(plan, device)
    cost = step_cost(plan, precision)
    peak = _with_connections(plan, cost, device)
    seconds = _seconds_per_step(plan, cost, device, precision)
    hours = _hours(plan, seconds)
    fits, reason = _fits(plan, peak, device)
    gpu_hours = hours * plan.workers * len(study.folds_of(setting)) if hours and device.kind == "gpu" else None
    return {
        "setting": plan.setting,
        "network": plan.network,
        "resolution": plan.resolution,
        "images_per_class": plan.images_per_class,
        "workers": plan.workers,
        "batch": plan.batch,
        "learning_rate": plan.learning_rate,
        "peak_gib": round(peak, 2),
        "mib_per_image": float(f"{image_bytes(plan, precision) / MIB:.3g}"),
        "seconds_per_image": None if seconds is None else float(f"{seconds / plan.batch:.3g}"),
        "hours_per_fold": None if hours is None else float(f"{hours:.3g}"),
        "gpu_hours": None if gpu_hours is None else float(f"{gpu_hours:.3g}"),
        "fits": "yes" if fits else "no",
        "reason": reason,
    }


def _seconds_per_step(plan: ClassifierPlan, cost: StepCost, device: Device, precision: str) -> float | None:
    speed = speed_of(device, precision)
    if speed is None:
        return None
    return step_seconds(speed, Parallel(data=plan.workers), [speed.operations(cost)], cost.parameter_bytes)


def _hours(plan: ClassifierPlan, seconds: float | None) -> float | None:
    images = expected_images(plan)
    if images is None or seconds is None:
        return None
    epochs = plan.training.epochs * max(1, len(plan.training.search))
    return epochs * -(-images // (plan.batch * plan.workers)) * seconds / 3600


def _fits(plan: ClassifierPlan, peak: float, device: Device) -> tuple[bool, str]:
    if device.kind == "gpu" and plan.workers > device.most_devices:
        return False, f"{plan.workers} workers, but a job on {device.name} has {device.most_devices} at most"
    if device.limit_gib is None:
        return True, f"{device.name} states no memory"
    if peak > device.limit_gib:
        return False, f"{gib(peak)}, {device.name} has {gib(device.limit_gib)}; lower batch or resolution"
    return True, f"{gib(peak)} of {gib(device.limit_gib)}"


def _traced(plan: ClassifierPlan, images: int, precision: str) -> StepCost:
    """A step with so many images; plans that differ in nothing that memory depends on share a trace."""
    keys = (plan.resolution, plan.network, len(plan.classes), plan.training.optimizer, plan.training.momentum > 0)
    return _step(Keyed(plan, keys), precision).of(images)


@dataclass(frozen=True, kw_only=True)
class StepOfImages:
    """What a step needs, whatever the number of its images: each tensor is there once, or once per image."""

    moments: dict[int, int]
    """Most bytes of tensors that are there once, by the bytes per image of the others that are there with them."""
    resident_bytes: int
    workspace_bytes: int
    """Per image."""
    work: Work
    """Per image."""
    parameter_bytes: int

    def of(self, images: int) -> StepCost:
        """The cost of a step with so many images."""
        return StepCost(
            peak_bytes=max(once + images * each for each, once in self.moments.items()),
            resident_bytes=self.resident_bytes,
            workspace_bytes=images * self.workspace_bytes,
            work=images * self.work,
            parameter_bytes=self.parameter_bytes,
        )


class ImageTracker(MemoryTracker):
    """Follows a step of `TRACED_IMAGES` images, and tells what is there once from what is there for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.once = self.each = 0
        self.moments: dict[int, int] = {}

    def reset_peak(self) -> None:
        """Begins anew at what is live now."""
        super().reset_peak()
        self.moments = {self.each: self.once}

    def note(self, size: int) -> None:
        """Notes a moment with so many bytes more than are live now, of tensors that are there once."""
        self.moments[self.each] = max(self.moments.get(self.each, 0), self.once + size)

    def _change(self, size: int) -> None:
        super()._change(size)
        if size % TRACED_IMAGES:
            self.once += size
        else:
            self.each += size // TRACED_IMAGES
        self.note(0)


@cache
def _step(keyed: Keyed, precision: str) -> StepOfImages:
    plan = keyed.plan
    fake = _fake_run(Keyed(plan, keyed.key[1:]), precision)
    run = fake.run
    with fake.mode, ImageTracker() as memory:
        run.optimizer.zero_grad(set_to_none=True)  # of the resolution before
        resident = [*run.network.state_dict().values(), *optimizer_tensors(run)]
        memory.include(resident)
        image = torch.zeros(TRACED_IMAGES, 3, plan.resolution, plan.resolution)
        target = torch.zeros(TRACED_IMAGES, dtype=torch.int64)
        memory.reset_peak()
        sums = gradients(run, image, target)
        memory.note(fake.update_bytes)
        del image, target, sums  # which are there until the step of the optimiser ends
        return StepOfImages(
            moments=memory.moments,
            resident_bytes=sum(tensor.nbytes for tensor in resident),
            workspace_bytes=memory.largest_convolution // TRACED_IMAGES,
            work=round(memory.work * (1 / TRACED_IMAGES)),
            parameter_bytes=float32_bytes(run.network),
        )


@dataclass(frozen=True, kw_only=True)
class FakeRun:
    """A run without data whose tensors are fake, to be used in their mode; it serves all resolutions."""

    mode: FakeTensorMode
    run: Run
    update_bytes: int
    """Most bytes that a step of the optimiser takes beside weights, gradients and state: the same for all images."""


@cache
def _fake_run(keyed: Keyed, precision: str) -> FakeRun:
    plan, mode = keyed.plan, FakeTensorMode()
    with mode:
        network = build_network(plan.network, len(plan.classes))
        run = Run(
            plan=plan,
            device=CPU,
            precision=Precision(name=precision, reason="forecast"),
            network=network.train(),
            optimizer=build_optimizer(network.parameters(), plan.training),
        )
        make_optimizer_state(run)
        return FakeRun(mode=mode, run=run, update_bytes=_update_bytes(run))


def _update_bytes(run: Run) -> int:
    weights = list(run.network.parameters())
    with MemoryTracker() as memory:
        memory.include([*weights, *optimizer_tensors(run)])
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        before = memory.live
        memory.reset_peak()
        run.optimizer.step()
        return memory.peak - before
