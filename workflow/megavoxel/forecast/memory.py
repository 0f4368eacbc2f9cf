"""Whether a setting fits the memory of the device that training finds, and what is said when memory ran out."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from megavoxel.config.hardware import Device
from megavoxel.errors import UserError
from megavoxel.forecast.choice import choose, next_option
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.setting import Forecast, forecast_setting, prediction_gib
from megavoxel.forecast.step import GIB, gib
from megavoxel.memory import host_memory
from megavoxel.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What is known of the memory of a run before it trains."""

    advice: Callable[[], str]
    """What to say should memory run out."""
    peak_gib: Callable[[Any], float]
    """Forecast of the peak memory of a `Run` as PyTorch counts it, in the precision that the run took."""


def device_at_hand(device: torch.device, processes: int = 1, *, described: Device | None = None) -> Device:
    """The device with the memory that one of `processes` may use.

    Args:
        processes: that share the memory of this machine, where they run on its CPU.
        described: what the hardware file says of it; None: it has the overheads of an uncalibrated one.
    """
    kind = "gpu" if device.type == "cuda" else "cpu"
    if kind == "gpu":
        memory, name = torch.cuda.get_device_properties(device).total_memory, torch.cuda.get_device_name(device)
    else:
        memory, name = host_memory() // processes, "this machine"
    # What is described may be another kind: a study for GPUs that is tried on a CPU.
    known = described if described is not None and described.kind == kind else Device(name=name, kind=kind)
    return replace(known, name=name, memory_gib=round(memory / GIB, 2))


def require_memory(
    setting: str,
    device: Device,
    *,
    certain_gib: float,
    training_gib: float,
    refusal: Callable[[], str],
    option: Callable[[], str],
) -> None:
    """Refuses training that cannot fit, and warns of training that may not.

    Args:
        certain_gib: what PyTorch itself allocates.
        training_gib: that with overhead and workspace.
        refusal: asked where it cannot fit: by how much, and what would.
        option: asked where it may not: what to try should memory run out.

    Raises:
        UserError: what is certain and the overhead of the process need more than there is.
    """
    if certain_gib + device.overhead_gib > device.memory_gib:
        raise UserError(f"setting {setting}: {refusal()}")
    if training_gib > device.memory_gib:
        print(
            f"warning: the forecast of {gib(training_gib)} for training is above the {gib(device.memory_gib)} of "
            f"{device.name}; should memory run out: {option()}",
            flush=True,
        )


def memory_advice(device: Device, training_gib: float, precision: str, option: str) -> str:
    """What `explained_out_of_memory` says of training: where it ran, what was foretold, and what to try."""
    return (
        f"on {device.name} ({gib(device.memory_gib)}); the forecast was {gib(training_gib)} in {precision}; next "
        f"cheaper option: {option}"
    )


def check_fits(plan: Plan, device: Device, workload: Workload) -> Forecast:
    """The forecast of training; refuses what cannot fit, and warns of what may not.

    The workspace of convolutions is an assumption until it is measured, and prediction may run elsewhere: both cause a
    warning only.

    Args:
        plan: the setting, in the precision that was chosen.

    Raises:
        UserError: activations, weights, optimiser and the overhead of the process need more than there is; with what
            would fit.
    """
    forecast = forecast_setting(plan, plan.parallel, device, workload)
    require_memory(
        plan.setting,
        device,
        certain_gib=forecast.certain_gib,
        training_gib=forecast.training_gib,
        refusal=lambda: choose(plan, device, workload, fixed=plan.parallel).reason,
        option=lambda: next_option(plan, plan.parallel, device),
    )
    has = f"is above the {gib(device.memory_gib)} of {device.name}"
    if forecast.prediction_gib > device.memory_gib:
        networks = workload.networks
        print(
            f"warning: the forecast of {gib(forecast.prediction_gib)} for prediction of the largest case with the "
            f"networks of {networks} folds {has}; what would help: {_smaller_prediction(plan, networks)}",
            flush=True,
        )
    return forecast


def advice_for_training(plan: Plan, forecast: Forecast) -> str:
    """The advice for `explained_out_of_memory` where training ran out of memory."""
    option = next_option(plan, plan.parallel, forecast.device)
    return memory_advice(forecast.device, forecast.training_gib, forecast.precision, option)


def advice_for_prediction(plan: Plan, networks: int, device: torch.device) -> str:
    """The advice for `explained_out_of_memory` where prediction by so many networks ran out of memory."""
    found, wanted = device_at_hand(device, 1), plan.training.precision
    half = "bfloat16" if found.kind == "gpu" else "float32"
    precision = half if wanted == "auto" else wanted
    needed = prediction_gib(plan, found, networks, precision)
    return (
        f"on {found.name} ({gib(found.memory_gib)}); the forecast for the largest case of the plan was {gib(needed)} "
        f"in {precision}; what would help: {_smaller_prediction(plan, networks)}"
    )


def _smaller_prediction(plan: Plan, networks: int) -> str:
    options = []
    if plan.inference.window is not None:
        options.append(f"a smaller inference.window, such as that of the patch, {list(plan.patch)}")
    if networks > 1:
        options.append("the weights of fewer folds at once")
    return " or ".join([*options, "a device with more memory"])


SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "Failed to CUDA calloc",
)
"""Messages of PyTorch where there is no error class: from its CPU allocator, the CUDA driver, CUDA's libraries and
NCCL. cuBLAS says that it is not initialised where it finds no memory."""
FULL_SHARED_MEMORY = ("unable to allocate shared memory", "unable to write to file </torch", "by signal: Bus error")
"""Messages about /dev/shm, through which processes that load data hand on what they have loaded."""
KILLED_LOADERS = ("is killed by signal: Killed", "out of shared memory")
"""Messages about a process that loads data and that the system has ended."""


@contextmanager
def explained_out_of_memory(setting: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turns an error that says that memory ran out into one line.

    Args:
        advice: called in that case only: the device, the forecast, and what to try.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if any(_says(link, FULL_SHARED_MEMORY) for link in _chain(error)):
            raise UserError(
                f"setting {setting}: /dev/shm is too small for what the processes that load data hand on; give the "
                "container more, such as --shm-size 2g, or set training.workers to 0 (a classifier: training.loaders)"
            ) from error
        if any(_says(link, KILLED_LOADERS) for link in _chain(error)):
            raise UserError(
                f"setting {setting}: the system ended a process that loads data, as it does when memory runs out; "
                "give the job more host memory"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise UserError(f"setting {setting}: out of memory {advice()}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out."""
    return any(_is_out_of_memory(link) for link in _chain(error))


def _is_out_of_memory(error: BaseException) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return refused or isinstance(error, kinds) or _says(error, SIGNS)


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from: a killed loader may hide behind another message."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
