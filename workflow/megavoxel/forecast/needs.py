"""What the jobs of a setting need of the host: from the forecast of its memory and time."""

from __future__ import annotations

import math

from megavoxel.forecast.duration import Workload
from megavoxel.forecast.setting import Forecast, largest_case
from megavoxel.forecast.step import GIB
from megavoxel.planning.needs import JobNeeds, Needs
from megavoxel.planning.plan import Plan
from megavoxel.training.annotation import target_dtype
from megavoxel.training.patches import validation_workers

BESIDE_GIB = 1.0
"""What a job takes beside its own process: Snakemake, which starts itself twice in a Slurm job, and torchrun."""
LOADER_GIB = 0.5
"""Libraries of a process that loads patches, which Slurm counts for each."""
BATCHES_OF_A_LOADER = 4
"""Two wait for the network (PyTorch's `prefetch_factor`), one is made, with as much again while it is augmented."""
SOURCE_BOX = 2
"""Voxels that wait for each voxel of a patch that the device augments: 1.2 to 1.5 on average, sometimes more."""
GPU_PROCESS_GIB = 4.0
"""On the host, of a process that computes on a GPU: PyTorch's CUDA libraries and pinned memory. Not measured here."""
CPU_MARGIN = 2
"""Memory of a process on the CPU over its forecast: what the C library leaves between allocations, and keeps
(docs/performance.md)."""
CASE_MINUTES = 0.5
"""Reading, resampling and writing of a case that is predicted."""


def needs_of(plan: Plan, forecast: Forecast, workload: Workload, *, test_cases: int) -> Needs:
    """What jobs of a setting need."""
    on_gpu = forecast.device.kind == "gpu"
    workers = plan.training.loaders(forecast.device.workers)
    loading = (workers + validation_workers(workers)) * (
        LOADER_GIB + BATCHES_OF_A_LOADER * _share_bytes(plan, forecast) / GIB
    )
    image = 4 * plan.network.input_channels * math.prod(largest_case(plan)) / GIB
    training = GPU_PROCESS_GIB if on_gpu else CPU_MARGIN * forecast.training_gib
    on_host = GPU_PROCESS_GIB + 2 * image + forecast.prediction_host_gib
    predicting = on_host if on_gpu else CPU_MARGIN * forecast.prediction_gib
    return Needs(
        training=JobNeeds(
            minutes=None if forecast.training_hours is None else round(60 * forecast.training_hours, 1),
            memory_gib=round(BESIDE_GIB + training + loading, 2),
            cpus=workers + 1 if on_gpu else None,
        ),
        prediction=JobNeeds(
            minutes=_prediction_minutes(forecast, workload, test_cases),
            memory_gib=round(BESIDE_GIB + predicting, 2),
            cpus=None,
        ),
        device_gib=round(forecast.peak_gib, 3),
    )


def _share_bytes(plan: Plan, forecast: Forecast) -> int:
    """A process's share of a batch; of a curriculum, of its largest phase."""
    phases = plan.by_phase()
    samples = max(phase.batch * math.prod(phase.sampled_patch) for phase in phases)
    voxel = 4 * plan.network.input_channels + target_dtype(plan).itemsize
    return (SOURCE_BOX if plan.augmentation.on_device else 1) * voxel * samples // forecast.parallel.data


def _prediction_minutes(forecast: Forecast, workload: Workload, test_cases: int) -> float | None:
    if forecast.case_hours is None:
        return None
    case = 60 * forecast.case_hours
    validation = workload.validation_cases * (CASE_MINUTES + case)
    test = test_cases * (CASE_MINUTES + case * workload.networks)
    return round(max(validation, test), 1)
