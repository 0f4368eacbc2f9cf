"""Rate, overhead and workspace of the device at hand, from a few training steps beside their forecasts."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from megavoxel.config.setting import Inference, Parallel
from megavoxel.config.training import Augmentation, Training
from megavoxel.errors import UserError
from megavoxel.forecast.loader_calibration import loading_milliseconds
from megavoxel.forecast.memory import is_out_of_memory
from megavoxel.forecast.step import GIB, StepCost, training_step
from megavoxel.network.device import Precision
from megavoxel.network.host_memory import keep_freed_memory, release_unused_memory, return_freed_memory
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import ChannelNormalisation, NetworkPlan, Plan, PreprocessingPlan
from megavoxel.planning.spacing import times
from megavoxel.training.loop import peak_memory_mib
from megavoxel.training.optimizer import build_optimizer, trained_weights
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

REPEATS = 3
LANES = {"AVX512": 16, "AVX2": 8}
"""Numbers in float32 that an instruction takes, by PyTorch's name of what a processor can."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A training step that is measured."""

    patch: tuple[int, int, int]
    batch: int
    levels: int
    base_features: int


PROBES = {
    "cpu": (Probe(patch=(64, 64, 64), batch=2, levels=5, base_features=32),),
    "cuda": (
        Probe(patch=(128, 128, 128), batch=2, levels=6, base_features=32),
        Probe(patch=(96, 96, 96), batch=2, levels=5, base_features=32),
        Probe(patch=(64, 64, 64), batch=2, levels=5, base_features=32),
    ),
}
"""By kind of device; the first that fits is measured."""
SMALL = Probe(patch=(16, 16, 16), batch=2, levels=3, base_features=8)
"""A step so small that its time is the fixed cost of a pass."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `config/hardware.yaml` says of a device."""

    teraflops: dict[str, float]
    """Sustained 10¹² operations per second, by `float32` and `half`."""
    gigabytes_per_second: dict[str, float]
    """10⁹ bytes per second that other operations of a step read and write, likewise."""
    channels_at_once: int
    step_milliseconds: float
    overhead_gib: float
    workspace: float
    reading_milliseconds: float
    augmentation_milliseconds: float

    def keys(self) -> dict[str, object]:
        """Keys of the hardware file, rounded."""
        return {
            "teraflops": {name: float(f"{rate:.3g}") for name, rate in self.teraflops.items()},
            "gigabytes_per_second": {name: float(f"{rate:.3g}") for name, rate in self.gigabytes_per_second.items()},
            "channels_at_once": self.channels_at_once,
            "step_milliseconds": float(f"{self.step_milliseconds:.2g}"),
            "overhead_gib": round(self.overhead_gib, 2),
            "workspace": round(self.workspace, 2),
            "reading_milliseconds": float(f"{self.reading_milliseconds:.2g}"),
            "augmentation_milliseconds": float(f"{self.augmentation_milliseconds:.2g}"),
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured training step beside its forecast."""

    seconds: float
    """Median of a few steps after the first, or the only one."""
    peak_bytes: int
    """Most memory that the process held beyond what it held before."""
    forecast: StepCost

    @property
    def workspace(self) -> float:
        """Measured memory beyond the forecast's tensors, in units of the forecast's workspace."""
        return (self.peak_bytes - self.forecast.peak_bytes) / self.forecast.workspace_bytes


def calibrate(device: torch.device) -> Calibration:
    """Measures the device; takes about a minute on a CPU. Nothing else should run on it meanwhile.

    On a CPU the workspace is that of a process which returns freed memory at once; gaps that the C library leaves
    between allocations come on top.

    Raises:
        UserError: a GPU has no room for any of the steps.
    """
    probe = _largest_that_fits(device)
    overhead = overhead_bytes(device)
    half = "bfloat16" if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return_freed_memory()
    # The smaller peak first: a process knows only the highest that it ever had.
    beyond = [measure(probe, name, device, repeats=1).workspace for name in (half, "float32")]
    keep_freed_memory()
    seconds = measure(SMALL, "float32", device).seconds
    names = {"half": half, "float32": "float32"}
    # For what its other operations read and write, it has fewer operations of convolutions.
    thin = replace(probe, levels=probe.levels - 1, base_features=probe.base_features // 2)
    repeats = {probe: REPEATS, thin: 3 * REPEATS}
    steps = {
        name: [measure(one, names[name], device, repeats=count) for one, count in repeats.items()] for name in names
    }
    lanes = channels_at_once(device)
    rates = {name: rates_of(*both, seconds, lanes) for name, both in steps.items()}
    reading, augmenting = loading_milliseconds(plan_of(PROBES["cpu"][0]))
    return Calibration(
        teraflops={name: flops / 1e12 for name, (flops, _) in rates.items()},
        gigabytes_per_second={name: touched / 1e9 for name, (_, touched) in rates.items() if touched is not None},
        reading_milliseconds=reading,
        augmentation_milliseconds=augmenting,
        channels_at_once=lanes,
        step_milliseconds=seconds * 1e3,
        overhead_gib=overhead / GIB,
        workspace=max(0.0, statistics.mean(beyond)),
    )


def channels_at_once(device: torch.device) -> int:
    """Numbers in float32 that an instruction of the processor takes; of a GPU nothing is known."""
    return LANES.get(torch.backends.cpu.get_cpu_capability(), 1) if device.type == "cpu" else 1


def rates_of(large: Measured, thin: Measured, fixed: float, lanes: int = 1) -> tuple[float, float | None]:
    """Operations of convolutions, and bytes that the others read and write, per second.

    The time of a step is that of both, one after the other: two steps with other proportions tell them apart. Where
    they contradict that, as on a GPU that waits for the host, all of the large step's time is that of convolutions.

    Args:
        fixed: seconds of a step that do not depend on its size.
        lanes: channels that the device works on at once.
    """
    work = [step.forecast.work for step in (large, thin)]
    costs = [(own.flops_in_groups(lanes), own.touched_in_groups(lanes)) for own in work]
    seconds = [max(step.seconds - fixed, 1e-9) for step in (large, thin)]
    per_operation, per_byte = np.linalg.solve(np.array(costs, dtype=float), np.array(seconds))
    if per_operation <= 0 or per_byte <= 0:
        return costs[0][0] / seconds[0], None
    return 1 / per_operation, 1 / per_byte


def _largest_that_fits(device: torch.device) -> Probe:
    """The largest step that the device has room for; on a CPU there is one."""
    probes = PROBES[device.type]
    for probe in probes if device.type == "cuda" else ():
        try:
            measure(probe, "float32", device, repeats=0)
            return probe
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_memory(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        raise UserError(
            f"out of memory in the smallest step that is measured, a patch of {times(probes[-1].patch)}: "
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free on {torch.cuda.get_device_name(device)}; end other "
            "processes that use it, or give the device's figures by hand"
        )
    return probes[0]


def overhead_bytes(device: torch.device) -> float:
    """What a process takes of the device's memory before it has a network: libraries, and on a GPU its context."""
    if device.type == "cpu":
        return _held_after_a_step(device)
    # The driver knows what all processes hold together, so one process more is started: the difference is its own.
    before = _held_of_card(device)
    try:
        with get_context("spawn").Pool(1) as pool:
            return max(0.0, pool.apply(_held_after_a_step, (device,)) - before)
    except RuntimeError:  # where a GPU takes one process at a time, it has no other users
        return before - torch.cuda.memory_reserved(device)


def _held_after_a_step(device: torch.device) -> float:
    """Memory that is held once a step has loaded the libraries; on a GPU by all of its processes."""
    measure(SMALL, "float32", device)
    if device.type == "cpu":
        return held_bytes(device)
    release_memory(device)
    return _held_of_card(device)


def _held_of_card(device: torch.device) -> float:
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def measure(
    probe: Probe, precision: str, device: torch.device, *, parallel: Parallel | None = None, repeats: int = REPEATS
) -> Measured:
    """Runs the probe's training step a few times; of `parallel` only checkpointing counts."""
    parallel = parallel or Parallel()
    plan = replace(plan_of(probe), parallel=parallel)
    forecast = training_step(plan, samples=probe.batch, parallel=parallel, precision=precision)
    release_memory(device)
    before = held_bytes(device)
    run = _new_run(plan, precision, device)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(probe.batch, 1, *probe.patch, generator=generator)
    target = torch.randint(0, plan.network.classes, (probe.batch, *probe.patch), generator=generator)
    seconds = [_timed(lambda: train_step(run, image, target), device) for _ in range(repeats + 1)]
    return Measured(
        seconds=statistics.median(seconds[1:] or seconds),
        peak_bytes=round(peak_held_bytes(device) - before),
        forecast=forecast,
    )


def plan_of(probe: Probe) -> Plan:
    """A plan of the probe's size: one channel, four classes."""
    features = tuple(min(320, probe.base_features * 2**level) for level in range(probe.levels))
    labels = {"first": 1, "second": 2, "third": 3}
    return Plan(
        study="calibration", setting="probe", dataset="noise", seed=0,
        preprocessing=PreprocessingPlan(
            channels=("noise",), labels=labels, transpose=(0, 1, 2), spacing=(1.0, 1.0, 1.0),
            median_shape=tuple(map(float, probe.patch)), normalisation=(ChannelNormalisation(scheme="z-score"),),
        ),
        patch=probe.patch, batch=probe.batch,
        network=NetworkPlan(
            channels=1, classes=len(labels) + 1, features=features, kernels=((3, 3, 3),) * probe.levels,
            strides=((1, 1, 1), *((2, 2, 2),) * (probe.levels - 1)),
        ),
        training=Training(), augmentation=Augmentation(), inference=Inference(),
    )  # fmt: skip


def release_memory(device: torch.device) -> None:
    """Gives what is free back to the system, and begins a new peak where that is possible."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        release_unused_memory()


def held_bytes(device: torch.device) -> float:
    """Memory of the process now: resident on the CPU; on a GPU what PyTorch has reserved, other users left out."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_held_bytes(device: torch.device) -> float:
    """The most that the process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_memory_mib(device) * MIB


def _new_run(plan: Plan, precision: str, device: torch.device) -> Run:
    network = SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing)
    network = network.to(device, memory_format=torch.channels_last_3d)
    return Run(
        plan=plan,
        device=device,
        precision=Precision(name=precision, reason="calibration"),
        network=network,
        optimizer=build_optimizer(trained_weights(network, plan.training), plan.training),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "float16"),
    )


def _timed(step: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
