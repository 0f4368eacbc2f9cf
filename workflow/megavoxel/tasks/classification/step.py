"""One optimiser step over the images of all workers together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megavoxel.distributed.group import Group
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.tasks.classification.plan import ClassifierPlan
from megavoxel.training.memory import ALLOCATED, GIB, TRACKED


@dataclass(kw_only=True)
class ClassifierRun:
    """Everything that changes while a network is trained; `state_dict` holds it all."""

    plan: ClassifierPlan
    device: torch.device
    precision: Precision
    network: nn.Module
    optimizer: torch.optim.Optimizer
    group: Group = field(default_factory=Group)
    epoch: int = 0
    """Epochs done."""
    sums: list[Tensor] = field(default_factory=list)
    """Of this worker's steps in the epoch that is on: summed loss, correct images, images, as float64 (3)."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""
    peak_memory: dict[str, Any] | None = None
    """`gib`, the peak memory of a step, and `how` it was measured; None: no step was taken."""

    @property
    def progress(self) -> str:
        """How far the run is."""
        steps = len(self.sums)
        return f"epoch {self.epoch}" + (f" and {steps} step{'s' * (steps > 1)}" if steps else "")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; all processes of the group call it together."""
        return {
            "epoch": self.epoch,
            "sums": self.group.sum(torch.stack(self.sums)).cpu() if self.sums else None,
            "history": self.history,
            "peak_memory": self.peak_memory,
            "precision": {"name": self.precision.name, "reason": self.precision.reason},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def train_step(run: ClassifierRun, image: Tensor, target: Tensor) -> Tensor:
    """Forward, backward, sum over the group, step; returns this worker's sums as in `ClassifierRun.sums`.

    The loss is the mean cross-entropy over the images of all workers, so that a worker with fewer images in a step
    counts for less, and one without any for nothing. Running statistics of batch norms, which each worker takes of its
    own images, are averaged with the same weights: all workers hold the same network after every step.

    Args:
        run: with a group whose processes all take this step.
        image: float32 (images, 3, height, width), of this worker.
        target: int64 classes (images).
    """
    run.optimizer.zero_grad(set_to_none=True)
    total = run.group.sum(torch.tensor(float(len(target)), device=run.device))
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    if len(target):
        with run.precision.autocast(run.device):
            logits = run.network(image)
        loss = functional.cross_entropy(logits.float(), target, reduction="sum")
        (loss / total).backward()
        correct = (logits.argmax(dim=1) == target).sum()
        sums = torch.stack([loss.detach().double(), correct.double(), torch.full_like(sums[0], len(target))])
    pool(run, share=len(target) / total)
    run.optimizer.step()
    return sums


def pool(run: ClassifierRun, share: Tensor) -> None:
    """Gradients become the sums over all workers, and running statistics their means with the weight `share` each.

    This is all that workers tell one another of their images.
    """
    if run.group.size == 1:
        return
    parameters = [parameter for parameter in run.network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    statistics = [buffer for buffer in run.network.buffers() if buffer.is_floating_point()]
    for buffer in statistics:
        buffer.mul_(share)
    tensors = [*(parameter.grad for parameter in parameters), *statistics]
    sizes = [tensor.numel() for tensor in tensors]
    # Copied part by part: joining them would first copy each that lies with its channels last.
    own = torch.empty(sum(sizes), device=run.device)
    for part, tensor in zip(own.split(sizes), tensors, strict=True):
        part.view(tensor.shape).copy_(tensor)
    for part, tensor in zip(run.group.sum(own).split(sizes), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))


def measured_step(run: ClassifierRun, image: Tensor, target: Tensor) -> Tensor:
    """`train_step`; on a CPU the first one of a run is tracked, which leaves its result as it is.

    The optimiser makes its state at the end of that step, and all later ones begin with it: it is counted as if it had
    been there (`training/memory.py` says more).
    """
    if run.device.type != "cpu" or (run.peak_memory or {}).get("how") == TRACKED:
        return train_step(run, image, target)
    passes = []

    def passes_are_done(*_: object) -> None:
        passes.append(memory.peak)
        memory.reset_peak()

    hook = run.optimizer.register_step_pre_hook(passes_are_done)
    with MemoryTracker() as memory:
        memory.include([image, target, *run.network.state_dict().values(), *optimizer_tensors(run)])
        before = sum(tensor.nbytes for tensor in optimizer_tensors(run))
        sums = train_step(run, image, target)
    hook.remove()
    made = sum(tensor.nbytes for tensor in optimizer_tensors(run)) - before
    note_peak(run, max(passes[0] + made, memory.peak), TRACKED)
    return sums


def note_allocated(run: ClassifierRun) -> None:
    """Brings `run.peak_memory` up to the most that PyTorch has allocated on the GPU; without effect on a CPU."""
    if run.device.type == "cuda":
        note_peak(run, torch.cuda.max_memory_allocated(run.device), ALLOCATED)


def note_peak(run: ClassifierRun, peak_bytes: int, how: str) -> None:
    """Keeps the largest peak of all workers and since the run began."""
    earlier = (run.peak_memory or {}).get("gib", 0.0)
    run.peak_memory = {"gib": max(earlier, *run.group.all(peak_bytes / GIB)), "how": how}


def optimizer_tensors(run: ClassifierRun) -> list[Tensor]:
    """The optimiser's state."""
    return [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
