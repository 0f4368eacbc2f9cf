"""How the kernels of a device compute, beside precision: layout in memory, cuDNN's algorithms, TF32, compiled code.

None of it changes what is computed but for rounding. Which way is fastest depends on card, network and patch: on a GPU
it is measured within seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from megavoxel.network.device import Precision

LAYOUTS = {"channels_last": torch.channels_last_3d, "channels_first": torch.contiguous_format}
"""By the values of `training.memory_layout`; the default is the first."""
Timed = float | str
"""Seconds of a way, or why it has none."""
TF32_SINCE = (8, 0)
"""Compute capability of the first GPUs with TF32."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """A choice of these ways, as it stands in `manifest.json` and in a run's states."""

    memory_layout: str = "channels_last"
    """A name of `LAYOUTS`."""
    cudnn_benchmark: bool = False
    """Whether cuDNN tries its algorithms for each shape that it has not seen."""
    tf32: bool = False
    """Whether convolutions in float32 round their factors to TF32."""
    compile: bool = False
    """Whether `torch.compile` compiles norms and the activation functions behind them."""
    optimizer: str = "auto"
    """How the optimiser goes over the weights, see `training.optimizer_kernels`."""
    reason: str
    """Why this choice."""

    @property
    def memory_format(self) -> torch.memory_format:
        """PyTorch's name of the layout of (batch, channels, z, y, x)."""
        return LAYOUTS[self.memory_layout]

    def plain(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)

    def use(self, device: torch.device) -> None:
        """Makes this process compute so."""
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = self.cudnn_benchmark
            torch.backends.cudnn.allow_tf32 = self.tf32


@dataclass(frozen=True, kw_only=True)
class Way:
    """One of several ways to compute, by the fields of `Kernels` in which it differs from the others."""

    name: str
    fields: dict[str, Any]


def ways_of_convolutions(layout: str, search: bool | None) -> list[Way]:
    """The layouts, each without and with cuDNN's search, that two keys of a study leave open.

    Args:
        layout: `training.memory_layout`.
        search: `training.cudnn_benchmark`.
    """
    return [
        Way(
            name=f"{one} with cudnn_benchmark" if searches else one,
            fields={"memory_layout": one, "cudnn_benchmark": searches},
        )
        for one in LAYOUTS
        if layout in ("auto", one)
        for searches in (False, True)
        if search in (None, searches)
    ]


def rounds_to_tf32(device: torch.device, precision: Precision, *, allowed: bool) -> bool:
    """Whether a GPU computes float32 convolutions in TF32, where that is `allowed`."""
    in_float32 = device.type == "cuda" and precision.name == "float32"
    return allowed and in_float32 and torch.cuda.get_device_capability(device) >= TF32_SINCE


def why_not_measured(device: torch.device, *, whole: bool) -> str | None:
    """Why ways of convolutions are not measured on a device; None: they can be.

    Args:
        whole: whether this process holds the whole network and patch.
    """
    if device.type != "cuda":
        return "on a processor"
    if not torch.backends.cudnn.is_available():
        return "without cuDNN"
    return None if whole else "where no process holds the whole network and patch"


def measured(chosen: Kernels, ways: Sequence[Way], time_of: Callable[[Kernels], Timed]) -> tuple[int, str]:
    """The position of the fastest way, all else as `chosen`, and all times, such as `channels_last 0.12 s`."""
    found = [time_of(replace(chosen, **way.fields)) for way in ways]
    seconds = [math.inf if isinstance(one, str) else one for one in found]
    told = (one if isinstance(one, str) else f"{one:.3g} s" for one in found)
    return seconds.index(min(seconds)), ", ".join(f"{way.name} {one}" for way, one in zip(ways, told, strict=True))


def tried(device: torch.device, way: Kernels, seconds: Callable[[], float]) -> Timed:
    """Seconds that something takes one way; behind it all is as before, the peaks of the device's memory too."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    way.use(device)
    try:
        return seconds()
    except torch.OutOfMemoryError:
        return "does not fit"
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
