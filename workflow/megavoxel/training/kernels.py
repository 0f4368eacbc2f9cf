"""How the kernels of a device compute, beside precision: layout in memory, cuDNN's algorithms, TF32, compiled code.

None of it changes what is computed but for rounding. Which layout is faster, and whether cuDNN's search for algorithms
is worth while, depends on card, network and patch: on a GPU it is measured within seconds when a training starts.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import Precision, step_seconds
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan

LAYOUTS = {"channels_last": torch.channels_last_3d, "channels_first": torch.contiguous_format}
"""By the values of `training.memory_layout`; the default is the first."""
COMPILERS = {"cpu": (("g++",), "processor"), "cuda": (("gcc", "clang"), "GPU")}
"""What PyTorch compiles with by itself, by type of device."""
TF32_SINCE = (8, 0)
"""Compute capability of the first GPUs with TF32."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The choice, as it stands in `manifest.json` and in a run's states."""

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


def rounds_to_tf32(device: torch.device, precision: Precision, *, allowed: bool = True) -> bool:
    """Whether a GPU computes float32 convolutions in TF32, where that is `allowed`."""
    in_float32 = device.type == "cuda" and precision.name == "float32"
    return allowed and in_float32 and torch.cuda.get_device_capability(device) >= TF32_SINCE


def choose_kernels(plan: Plan, device: torch.device, precision: Precision, group: Group) -> Kernels:
    """The choice that the plan asks for; what it leaves open, the first process of the group measures for all.

    Raises:
        UserError: the network is to be compiled, and cannot be.
    """
    training = plan.training
    if training.compile:
        require_compilable(plan, device)
    layouts = [name for name in LAYOUTS if training.memory_layout in ("auto", name)]
    searches = [chosen for chosen in (False, True) if training.cudnn_benchmark in (None, chosen)]
    default = Kernels(
        memory_layout=layouts[0],
        cudnn_benchmark=searches[0],
        tf32=rounds_to_tf32(device, precision, allowed=training.tf32),
        compile=training.compile,
        optimizer=_of_optimizer(training.optimizer_kernels, device),
        reason="as the study says",
    )
    if len(layouts) == len(searches) == 1:
        return default
    if unmeasured := _why_not_measured(plan, device):
        return replace(default, reason=f"the default {unmeasured}")
    ways = [
        replace(default, memory_layout=layout, cudnn_benchmark=search)
        for layout, search in itertools.product(layouts, searches)
    ]
    seconds = [_seconds(plan, device, precision, way) for way in ways] if group.leads else []
    (fastest,) = group.from_leader([_fastest(seconds)])
    return replace(ways[fastest], reason=_described(ways, seconds) if group.leads else "as the first process measured")


def require_compilable(plan: Plan, device: torch.device) -> None:
    """Refuses to compile where there is nothing to compile, or nothing to compile with.

    Raises:
        UserError: with the key, or what is missing on the machine.
    """
    others = {"parallel.space": plan.parallel.tiles > 1, "network.norm": plan.network.norm != "instance"}
    if found := next((key for key, has in others.items() if has), None):
        raise UserError(
            f"setting {plan.setting}: training.compile compiles instance norms, which {found} replaces by others; set "
            f"compile to false, or remove {found}"
        )
    compilers, where = COMPILERS[device.type]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"setting {plan.setting}: training.compile needs {' or '.join(compilers)} on a {where}, and there is none; "
            "install it, or set compile to false"
        )


def _of_optimizer(wanted: str, device: torch.device) -> str:
    """What is wanted, or PyTorch's default on the device."""
    return wanted if wanted != "auto" else "foreach" if device.type == "cuda" else "loop"


def _why_not_measured(plan: Plan, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "on a processor"
    if not torch.backends.cudnn.is_available():
        return "without cuDNN"
    if plan.parallel.pipeline > 1 or plan.parallel.tiles > 1:
        return "where no process holds the whole network and patch"
    return None


def _seconds(plan: Plan, device: torch.device, precision: Precision, way: Kernels) -> float:
    """Time of a forward and a backward pass of a part of the batch; infinite where that does not fit."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    way.use(device)
    shape = (plan.batch // plan.parallel.parts, plan.network.input_channels, *plan.patch)
    try:
        network = SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing)
        compile_norms(network, compiled=way.compile)
        return step_seconds(network, shape, precision, device, way.memory_format)
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _fastest(seconds: Sequence[float]) -> int:
    return seconds.index(min(seconds)) if seconds else 0


def _described(ways: Sequence[Kernels], seconds: Sequence[float]) -> str:
    """What was measured, such as `measured: channels_last 0.12 s, channels_first with cudnn_benchmark 0.10 s`."""
    names = [way.memory_layout + (" with cudnn_benchmark" if way.cudnn_benchmark else "") for way in ways]
    return "measured: " + ", ".join(f"{name} {one:.3g} s" for name, one in zip(names, seconds, strict=True))
