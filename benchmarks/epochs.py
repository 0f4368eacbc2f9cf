"""Forecast and measured seconds of an epoch on this CPU, loading and validation included, in settings that differ.

The machine is calibrated first, in a process of its own, by the steps of `megavoxel calibrate`, none of which is a step
of these settings. Each setting is then trained on a made case by `train` itself. The first epoch, in which everything
starts, does not count.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.augmentation import make_case
from benchmarks.measure import Row, in_process, larger_is_better
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Augmentation
from megavoxel.forecast.calibration import Probe, calibrate, plan_of
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.loader_calibration import NOTHING
from megavoxel.forecast.setting import forecast_setting
from megavoxel.network.device import usable_threads
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.store import CaseProperties, save_case
from megavoxel.tasks.segmentation.data import VolumeData

EPOCHS, STEPS, VALIDATION = 3, 6, 2
MARGIN = 0.15
CASE = "made"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A setting that is trained."""

    probe: Probe
    precision: str
    augmented: bool
    workers: int
    on_device: bool = False

    @property
    def title(self) -> str:
        """One line of the table."""
        probe = self.probe
        network = f"{probe.levels} levels, {probe.base_features} features, {self.precision}"
        augmented = "on the device" if self.on_device else "on" if self.augmented else "off"
        size = f"{' x '.join(map(str, probe.patch))} x {probe.batch}"
        return f"forecast of an epoch: {size}, {network}, augmentation {augmented}, {self.workers} workers"

    @property
    def plan(self) -> Plan:
        """Its plan."""
        plan = plan_of(self.probe)
        keys = {
            "epochs": EPOCHS, "iterations_per_epoch": STEPS, "validation_iterations": VALIDATION,
            "workers": self.workers, "precision": self.precision,
        }  # fmt: skip
        augmentation = Augmentation(on_device=self.on_device) if self.augmented else NOTHING
        return replace(plan, training=replace(plan.training, **keys), augmentation=augmentation)


def _epoch(
    patch: tuple[int, int, int], batch: int, features: int, precision: str, *, augmented: bool, workers: int, **keys
) -> Epoch:
    probe = Probe(patch=patch, batch=batch, levels=4, base_features=features)
    return Epoch(probe=probe, precision=precision, augmented=augmented, workers=workers, **keys)


SETTINGS = (
    _epoch((48, 48, 48), 2, 16, "float32", augmented=True, workers=2),
    _epoch((40, 56, 40), 4, 32, "bfloat16", augmented=True, workers=1),
    _epoch((80, 80, 80), 1, 16, "bfloat16", augmented=False, workers=0),
    _epoch((32, 96, 96), 2, 16, "float32", augmented=True, workers=0),
    _epoch((32, 32, 32), 8, 32, "bfloat16", augmented=True, workers=2),
    _epoch((96, 96, 96), 1, 24, "float32", augmented=False, workers=1),
)


def run() -> list[Row]:
    """One row per setting, and how many forecasts are near enough."""
    device = in_process(calibrated)
    rows = [row_of(setting, device) for setting in SETTINGS]
    near = sum(abs(row.ratio - 1) <= MARGIN for row in rows)
    title = f"forecasts of an epoch within {MARGIN:.0%} of the measured"
    return [*rows, larger_is_better(title, "all settings", float(near), float(len(rows)), "settings")]


def calibrated() -> Device:
    """This machine as `megavoxel calibrate` describes it."""
    threads = usable_threads(None)
    torch.set_num_threads(threads)
    return Device(name="cpu", kind="cpu", cpus_per_job=threads, **calibrate(CPU).keys())


def row_of(setting: Epoch, device: Device) -> Row:
    """Forecast and measured seconds of an epoch."""
    foretold = forecast_setting(setting.plan, Parallel(), device, Workload(training_cases=1, folds=1)).epoch_seconds
    measured = in_process(seconds_of_epoch, setting)
    return Row(
        benchmark=setting.title, peer="measured", ours=foretold, theirs=measured, ratio=foretold / measured, unit="s"
    )


def seconds_of_epoch(setting: Epoch) -> float:
    """Mean seconds of the epochs after the first, in this process, which should be a fresh one."""
    from megavoxel.network.device import set_threads
    from megavoxel.network.host_memory import keep_freed_memory
    from megavoxel.tasks.segmentation.training import train

    set_threads(None)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        data = _stored(Path(folder) / "cases", setting.plan)
        history = train(setting.plan, data, Path(folder) / "state", CPU).history
    return statistics.mean(row["seconds"] for row in history[1:])


def _stored(folder: Path, plan: Plan) -> VolumeData:
    """A case of 1.5 patches per axis, for training and validation."""
    image, labels = make_case(tuple(3 * size // 2 for size in plan.patch))
    labels[labels == plan.network.classes] = 0
    shape = labels.shape
    properties = CaseProperties(
        case=CASE, file_shape=shape[::-1], affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        full_shape=shape, box=tuple((0, size) for size in shape), spacing=(1.0, 1.0, 1.0), shape=shape,
    )  # fmt: skip
    save_case(folder, properties, image, labels, {}, plan.patch)
    return VolumeData(number=0, preprocessed=folder, training=(CASE,), validation=(CASE,))
