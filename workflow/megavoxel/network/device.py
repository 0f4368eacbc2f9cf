"""Where and in which precision a network runs."""

from __future__ import annotations

import math
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from megavoxel.errors import UserError
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.timed import shortest
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.tiling import cells_of
from megavoxel.planning.topology import shape_of

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")
PROBE_VOXELS = 48**3
CPU_INFO = Path("/proc/cpuinfo")
GRANTED_BY_SLURM = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
"""Variables with which Slurm names the GPUs of a job."""
ON_THE_PROCESSOR = "to try it on the processor instead: --device cpu, in a study snakemake --config device=cpu"
"""What helps where a GPU cannot be used."""
KERNELS = r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)[a-z]?"
"""Names of `torch.cuda.get_arch_list()`, such as sm_90 and compute_120."""
UNSOUND_EXTENT = 2
"""Voxels along an axis of a level up to which a CPU's bfloat16 convolutions have been seen to read memory that is not
theirs: oneDNN's gradients of weights in PyTorch 2.13.0, on an AMD EPYC with avx512_bf16 and without AMX."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number format of the network's convolutions; weights and loss stay in float32."""

    name: str
    """`float32`, `bfloat16` or `float16`."""
    reason: str
    """Why this one, for the manifest."""

    @property
    def dtype(self) -> torch.dtype:
        """The torch type."""
        return TYPES[self.name]

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context in which the network runs forward."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "float32")

    @staticmethod
    def casting_once(device: torch.device) -> AbstractContextManager:
        """The context around several forward passes, each in its `autocast`, that share every weight they cast.

        Without it each pass casts the weights anew, and keeps them so for its own backward pass.
        """
        return torch.autocast(device.type, enabled=False)  # autocast forgets its casts behind its outermost context


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name`, or the GPU where there is one.

    Raises:
        UserError: there is no such device, Slurm gave this job a GPU that PyTorch does not see, or PyTorch has no
            kernels for the GPU.
    """
    asked = f"--device {name or 'auto'}"
    if name in (None, "auto"):
        granted = next((variable for variable in GRANTED_BY_SLURM if os.environ.get(variable)), None)
        if granted is None and not torch.cuda.is_available():
            return torch.device("cpu")
        name, asked = "cuda", f"{asked}: Slurm gave this job a GPU ({granted})"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{asked}: not a device; allowed: auto, cpu, cuda, cuda:0, …") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"{asked}: PyTorch sees no GPU here ({_reason_for_no_gpu()}); {ON_THE_PROCESSOR}")
        require_kernels(device)
    return device


def _reason_for_no_gpu() -> str:
    """PyTorch's own words."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return " ".join(str(error).split()).rstrip(".")
    return "without a reason"


def require_kernels(device: torch.device) -> None:
    """Refuses a GPU for whose compute capability this build of PyTorch has no kernels.

    Kernels of a capability run on GPUs of the same first number and of no lower second one; code for a virtual GPU
    (`compute_120`) is compiled for any later one.

    Raises:
        UserError: with the build that has them.
    """
    found = torch.cuda.get_device_capability(device)
    kernels = [match for name in torch.cuda.get_arch_list() if (match := re.fullmatch(KERNELS, name))]
    built = [(match["kind"], (int(match["major"]), int(match["minor"]))) for match in kernels]
    runs = [own[0] == found[0] and own <= found if kind == "sm" else own <= found for kind, own in built]
    if any(runs) or not built:  # a build for AMD's GPUs names none of these
        return
    has = ", ".join(f"{major}.{minor}" for major, minor in sorted({own for _, own in built}))
    raise UserError(
        f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}, and this build of PyTorch "
        f"({torch.__version__}) supports {has}; install {_build_for(found)}; {ON_THE_PROCESSOR}"
    )


def _build_for(capability: tuple[int, int]) -> str:
    if capability < (7, 5):
        return (
            f"the build for CUDA 12.6, which supports 5.0 to 9.0: pip install torch=={torch.__version__.split('+')[0]} "
            "--index-url https://download.pytorch.org/whl/cu126"
        )
    return "a build of PyTorch that supports it (https://pytorch.org/get-started)"


def set_threads(count: int | None) -> None:
    """Limits PyTorch to `count` threads, and to the processors that this process may use; None: all of these."""
    torch.set_num_threads(usable_threads(count))


def usable_threads(count: int | None) -> int:
    """`count`, or as many processors as this process may use where they are fewer; None: all of these."""
    processors = len(os.sched_getaffinity(0))
    return processors if count is None else min(count, processors)


def choose_precision(plan: Plan, device: torch.device) -> Precision:
    """The precision that the plan asks for; for `auto`, the one that suits the device.

    On a GPU: bfloat16 where the hardware has it, else float16. On the CPU: bfloat16 if a training step of this network
    on a small patch takes less than 0.9 of its time in float32, unless its gradients may be wrong there.
    """
    wanted = plan.training.precision
    if wanted != "auto":
        if wanted == "float16" and device.type == "cpu":
            raise UserError(
                f"setting {plan.setting}: training.precision float16 needs a GPU; allowed here: float32, bfloat16"
            )
        return Precision(name=wanted, reason="as the study says")
    if device.type == "cuda":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return Precision(name=name, reason="what this GPU has")
    if (extent := smallest_extent(plan)) <= UNSOUND_EXTENT and not has_amx():
        reason = f"without AMX a bfloat16 gradient of a level {extent} voxels wide is wrong"
        return Precision(name="float32", reason=reason)
    # PyTorch takes other convolutions for a batch of one, so that is measured only where it is meant.
    shape = (min(plan.batch, 2), plan.network.input_channels, *_probe_patch(plan))
    ratio = _bfloat16_ratio(plan.network, shape)
    name = "bfloat16" if ratio < 0.9 else "float32"
    return Precision(name=name, reason=f"measured: a bfloat16 step takes {ratio:.2f} of a float32 step")


def to_device(tensor: Tensor, device: torch.device, memory_format: torch.memory_format) -> Tensor:
    """A batch (batch, channels, z, y, x) on the device, laid in memory as the network's weights."""
    return tensor.to(device, non_blocking=True).contiguous(memory_format=memory_format)


def smallest_extent(plan: Plan) -> int:
    """Voxels along the shortest axis of the smallest level, for a patch of the plan or the thinnest of its tiles."""
    cells = cells_of(plan.patch, shape_of(plan.network).divisor)
    return min(count // parts for count, parts in zip(cells, plan.parallel.space, strict=True))


@cache
def has_amx() -> bool:
    """Whether this processor has matrix tiles for bfloat16, by Linux's own list of what it can do."""
    return CPU_INFO.is_file() and "amx_bf16" in CPU_INFO.read_text()


@cache
def _bfloat16_ratio(network: NetworkPlan, shape: tuple[int, ...]) -> float:
    """Ratio of the times of a bfloat16 and a float32 step on this CPU, measured once per process."""

    def seconds(name: str) -> float:
        precision = Precision(name=name, reason="probe")
        return pass_seconds(SegmentationNetwork(network), shape, precision, CPU, torch.channels_last_3d, trains=True)

    return seconds("bfloat16") / seconds("float32")


def pass_seconds(
    network: SegmentationNetwork,
    shape: tuple[int, ...],
    precision: Precision,
    device: torch.device,
    memory_format: torch.memory_format,
    *,
    trains: bool,
) -> float:
    """Time of a forward pass on noise, in training with a backward pass, once everything is warm.

    Args:
        network: it is moved to the device.
        shape: of the image (batch, channels, z, y, x).
    """
    network.to(device, memory_format=memory_format).train(trains)
    # Noise, not zeros: a constant image makes subnormal numbers, which slow float32 down many times.
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = to_device(noise, device, memory_format)

    def run() -> None:
        with torch.inference_mode(not trains):
            with precision.autocast(device):
                logits = network(image)
            if trains:
                torch.stack([level.float().square().mean() for level in logits]).sum().backward()

    return shortest(run, device)


def _probe_patch(plan: Plan) -> list[int]:
    """The patch, halved along its longest axes until it is small, but with two voxels left at the bottleneck."""
    patch, strides = list(plan.patch), shape_of(plan.network).divisor
    while math.prod(patch) > PROBE_VOXELS:
        cells = [size / stride for size, stride in zip(patch, strides, strict=True)]
        longest = cells.index(max(cells))
        if cells[longest] <= 2:
            break
        patch[longest] = (patch[longest] + 1) // 2
    return patch
