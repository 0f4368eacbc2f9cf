"""Needs of the jobs of a setting, as forecast in its plan, and the resources that jobs request for them."""

from __future__ import annotations

import math

from megavoxel.config.hardware import Device
from megavoxel.config.records import record

MARGIN = 2
"""Times the forecast that a job asks for: the rate of a device is that of a whole run, and other jobs may share it."""
START_MINUTES = 30
"""Added to that: libraries, first batches and last files, on a file system that others use as well."""
MB_OF_GIB = 2**30 / 1e6


@record
class JobNeeds:
    """One kind of job of a setting, by forecast on the device that it was planned for."""

    minutes: float | None
    """Time of it; None: the device's rate is not known."""
    memory_gib: float
    """Host memory of a process, its loaders included, in GiB."""
    cpus: int | None
    """Cores that a process keeps busy; None: as many as it is given."""


@record
class Needs:
    """All kinds of jobs of a setting that run on its device."""

    training: JobNeeds
    """Training of a fold."""
    prediction: JobNeeds
    """Prediction of a fold's validation cases, or of all test cases by the networks of all folds: what takes longer."""
    device_gib: float | None = None
    """Memory of a device, the larger of training and prediction, in GiB: `peak_gib` of plan.tsv; None: not known."""


def memory_mb(needs: JobNeeds | None, device: Device, *, attempt: int) -> int:
    """Host memory in MB that a process of a job asks for: what it needs, or else what the device's jobs have; twice as
    much at the second attempt, and so on."""
    wanted = device.host_memory_mb if needs is None else math.ceil(needs.memory_gib * MB_OF_GIB)
    return wanted * attempt


def runtime_minutes(needs: JobNeeds | None, device: Device, *, attempt: int, times: int = 1) -> int:
    """Minutes that a job asks for, more at each attempt, and never more than a job on the device may run.

    Args:
        needs: of this kind of job; None: not known.
        times: how often the job does the work.
    """
    if needs is None or needs.minutes is None:
        return device.runtime_minutes
    wanted = START_MINUTES + MARGIN * needs.minutes * times
    return min(math.ceil(wanted) * attempt, device.runtime_minutes)


def cpus(needs: JobNeeds | None, device: Device) -> int:
    """Cores that a process of a job asks for."""
    busy = None if needs is None else needs.cpus
    return device.cpus_per_job if busy is None else min(busy, device.cpus_per_job)
