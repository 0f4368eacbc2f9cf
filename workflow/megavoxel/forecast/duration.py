"""Seconds and hours from FLOPs and a device's sustained rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.forecast.step import GIB, StepCost, window
from megavoxel.forecast.window import slowest_of, window_costs
from megavoxel.planning.patch import has_turns, prediction_window
from megavoxel.planning.plan import Plan
from megavoxel.volumes.grid import window_starts


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much of a dataset the folds of a setting train on and predict."""

    training_cases: int
    """Labelled cases of the dataset, over all folds."""
    folds: int
    """Folds of the study."""
    own_folds: int | None = None
    """Folds that the setting is trained on; None: all."""

    @property
    def networks(self) -> int:
        """Networks whose mean predicts a test case."""
        return self.folds if self.own_folds is None else self.own_folds

    @property
    def validation_cases(self) -> float:
        """Cases that a fold predicts; none of a single fold."""
        return self.training_cases / self.folds if self.folds > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A device at one precision."""

    flops_per_second: float
    seconds_per_pass: float
    """Fixed cost of a pass through the network, whatever its size."""
    bytes_per_second: float
    """Between two devices of a job."""
    touched_per_second: float = math.inf
    """Bytes that operations other than convolutions read and write."""
    lanes: int = 1
    """Channels that it works on at once."""

    def operations(self, cost: StepCost) -> float:
        """Operations of convolutions in whose time all of a step's or a window's are done."""
        touched = cost.work.touched_in_groups(self.lanes)
        return cost.work.flops_in_groups(self.lanes) + touched / self.touched_per_second * self.flops_per_second


def speed_of(device: Device, precision: str) -> Speed | None:
    """The speed of a device; None where the hardware file gives no rate for the precision."""
    kind = "float32" if precision == "float32" else "half"
    rate = device.teraflops.get(kind)
    if rate is None:
        return None
    return Speed(
        flops_per_second=rate * 1e12,
        seconds_per_pass=device.step_milliseconds / 1e3,
        bytes_per_second=device.link_gib_per_second * GIB,
        touched_per_second=device.gigabytes_per_second.get(kind, math.inf) * 1e9,
        lanes=device.channels_at_once,
    )


def step_seconds(
    speed: Speed, parallel: Parallel, stage_flops: Sequence[float], parameter_bytes: int, exchanged_bytes: int = 0
) -> float:
    """Seconds of an optimiser step.

    Args:
        speed: of one device.
        parallel: how the step is spread.
        stage_flops: `Speed.operations` of each stage for the share of one replica; one entry without a pipeline.
        parameter_bytes: of the largest stage.
        exchanged_bytes: between the devices that hold the tiles of a patch, sent by one of them.
    """
    micro, stages = parallel.micro_batches, len(stage_flops)
    slowest = max(stage_flops) / speed.flops_per_second
    # A pipeline of K stages needs K - 1 more beats than it has micro-batches, to fill and to run dry.
    computing = slowest * (micro + stages - 1) / micro
    passes = parallel.accumulate * (micro + stages - 1)
    # Ring all-reduce: each device sends and receives all gradients but its own share, twice.
    replicas = parallel.data * parallel.tiles
    exchanged = 2 * (replicas - 1) / replicas * parameter_bytes + exchanged_bytes
    return computing + passes * speed.seconds_per_pass + exchanged / speed.bytes_per_second


def prediction_seconds(plan: Plan, speed: Speed, precision: str) -> float:
    """Seconds in which a case of the median shape is predicted with the network of a fold."""
    median = plan.preprocessing.median_shape
    size = prediction_window(plan, median)
    starts = [
        window_starts(round(voxels), extent, plan.inference.step) for voxels, extent in zip(median, size, strict=True)
    ]
    mirrors = 2 ** len(plan.augmentation.mirror_axes) if plan.inference.mirror else 1
    passes = math.prod(len(axis) for axis in starts) * mirrors
    return passes * _pass_seconds(plan, size, speed, precision)


def _pass_seconds(plan: Plan, size: tuple[int, ...], speed: Speed, precision: str) -> float:
    """Seconds of a window: of the slowest tile, or of all stages of a pipeline one after the other.

    Between a device and host memory, bytes are taken to be as fast as between two devices.
    """
    if plan.parallel.tiles == 1 and not has_turns(plan):
        slowest = window(plan, size, networks=1, precision=precision)
    else:
        slowest = slowest_of(window_costs(plan, size, networks=1, precision=precision))
    seconds = speed.operations(slowest) / speed.flops_per_second + speed.seconds_per_pass
    return seconds + slowest.exchanged_bytes / speed.bytes_per_second


def validation_seconds(plan: Plan, speed: Speed, parallel: Parallel, precision: str) -> float:
    """Seconds of a validation batch: a forward pass without gradients, shared by all devices."""
    operations = plan.batch * speed.operations(window(plan, networks=1, precision=precision))
    return operations / speed.flops_per_second / parallel.devices + speed.seconds_per_pass
