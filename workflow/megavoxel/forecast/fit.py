"""Whether a setting fits the device that training finds, said before the first step, and what to do when it did not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megavoxel.config.hardware import Device
from megavoxel.errors import UserError
from megavoxel.forecast.choice import choose, next_option
from megavoxel.forecast.hours import GIB, Workload
from megavoxel.forecast.setting import Forecast, forecast_setting
from megavoxel.planning.plan import Plan

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CPU_MESSAGES = ("can't allocate memory", "not enough memory")
"""What PyTorch's CPU allocator says; it raises no error of its own kind."""


def device_at_hand(device: torch.device, processes: int = 1) -> Device:
    """The device with the memory that one of `processes` may use, and the overheads of an uncalibrated one."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        name = torch.cuda.get_device_name(device)
    else:
        memory, name = host_memory() // processes, "this machine"
    kind = "gpu" if device.type == "cuda" else "cpu"
    return Device(name=name, kind=kind, memory_gib=round(memory / GIB, 2))


def host_memory() -> int:
    """Bytes of the machine, or of the control group of this process where that is less (Linux)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


def check_fits(plan: Plan, device: torch.device, workload: Workload) -> Forecast:
    """The forecast of training; refuses what cannot fit, and warns of what may not.

    What convolutions take for themselves is an assumption until it is measured: it makes a warning, no refusal.

    Raises:
        UserError: activations, weights and optimiser alone need more than there is; with what would fit.
    """
    found = device_at_hand(device, plan.parallel.devices)
    forecast = forecast_setting(plan, plan.parallel, found, workload)
    if forecast.certain_gib > found.memory_gib:
        raise UserError(f"setting {plan.setting}: {choose(plan, found, workload, fixed=plan.parallel).reason}")
    if forecast.training_gib > found.memory_gib:
        print(
            f"warning: the forecast of {forecast.training_gib:.1f} GiB for training is above the {found.memory_gib:g} "
            f"GiB of {found.name}; should memory run out: {next_option(plan, forecast)}",
            flush=True,
        )
    return forecast


@contextmanager
def explained_out_of_memory(plan: Plan, forecast: Forecast) -> Iterator[None]:
    """Turns an out-of-memory error inside into one line: the setting, its forecast and the next option.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in CPU_MESSAGES):
            raise
        raise UserError(
            f"setting {plan.setting}: out of memory on {forecast.device.name} ({forecast.device.memory_gib:g} GiB); "
            f"the forecast was {forecast.training_gib:.1f} GiB; next cheaper option: {next_option(plan, forecast)}"
        ) from error
