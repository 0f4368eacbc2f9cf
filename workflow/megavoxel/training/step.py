"""One optimiser step: a batch in equal parts, over the processes of a group and one after the other in each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from megavoxel.network.device import Precision, to_device
from megavoxel.network.unet import SegmentationNetwork, cumulative_strides
from megavoxel.planning.plan import Plan
from megavoxel.training.group import Group
from megavoxel.training.loss import (
    Loss,
    build_loss,
    soft_dice_sums,
    sums_of_whole,
    supervised_levels,
    supervised_loss,
)

Part = tuple[Tensor, Tensor]


@dataclass(kw_only=True)
class Run:
    """Everything that changes while a network is trained; `state_dict` holds it all."""

    plan: Plan
    device: torch.device
    precision: Precision
    network: SegmentationNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    group: Group = field(default_factory=Group)
    replica: DistributedDataParallel | None = None
    """The network where it is one of several, whose gradients it averages."""
    epoch: int = 0
    """Epochs done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; patches need no state, being functions of their number."""
        return {
            "epoch": self.epoch,
            "history": self.history,
            "precision": {"name": self.precision.name, "reason": self.precision.reason},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }


def replicated(network: SegmentationNetwork, group: Group) -> DistributedDataParallel | None:
    """The network's wrapper that averages gradients over the group; None in a group of one."""
    if group.size == 1:
        return None
    for parameter in network.parameters():
        if parameter.is_contiguous():
            # Kernels of one voxel or one channel lie alike with channels first and last, but the strides that say so
            # differ from those of their gradients, which DDP warns of.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    devices = [group.device] if group.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def train_step(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """Forward, backward, clip, step; returns the loss of this process's samples, detached.

    They go through in `parallel.accumulate` equal parts; the gradients are those of the whole batch, of all processes.

    Args:
        run: with a group whose processes all take this step.
        image: float32 (batch / processes, channels, z, y, x).
        target: int64 classes (batch / processes, z, y, x).
    """
    run.optimizer.zero_grad(set_to_none=True)
    parts = parts_of(run, image, target)
    losses = losses_by_level(run, parts)
    values = []
    for number, part in enumerate(parts, start=1):
        with _gradients_averaged(run, last=number == len(parts)):
            loss = loss_of_part(run, part, losses)[0] / len(parts)
            run.scaler.scale(loss).backward()
        values.append(loss.detach())
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.plan.training.gradient_clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return torch.stack(values).sum()


def parts_of(run: Run, image: Tensor, target: Tensor) -> list[Part]:
    """What of a process's samples goes through the network together."""
    count = run.plan.parallel.accumulate
    return list(zip(image.chunk(count), target.chunk(count), strict=True))


def losses_by_level(run: Run, parts: Sequence[Part]) -> Loss | Sequence[Loss]:
    """The loss of each level of deep supervision for a part of the batch; one for all where that is enough.

    Only the Dice of a whole batch looks beyond its part. Parts that follow one another then need a forward pass more,
    because the sums of the later ones enter the gradient of the first.
    """
    training, processes = run.plan.training, run.group.size
    if not training.batch_dice or (len(parts) == 1 and processes == 1):
        return build_loss(training)
    if len(parts) == 1:
        return build_loss(training, lambda sums: sums_of_whole(sums, run.group.sum(sums), processes))
    count = len(parts) * processes
    return [build_loss(training, partial(sums_of_whole, whole=whole, parts=count)) for whole in _dice_sums(run, parts)]


def loss_of_part(run: Run, part: Part, losses: Loss | Sequence[Loss]) -> tuple[Tensor, Tensor]:
    """The loss of a part over all levels, and its logits at full resolution (batch, classes, z, y, x)."""
    # The wrapper is for gradients only: without them it would wait for the others all the same.
    network = run.replica if run.replica is not None and torch.is_grad_enabled() else run.network
    logits, target = _forward(run, network, part)
    return supervised_loss(losses, logits, target, cumulative_strides(run.plan.network)), logits[0]


@torch.no_grad()
def _dice_sums(run: Run, parts: Sequence[Part]) -> list[Tensor]:
    """Dice sums (2, classes - 1) of the whole batch, per level."""
    strides, totals = cumulative_strides(run.plan.network), []
    for part in parts:
        logits, target = _forward(run, run.network, part)
        totals.append([soft_dice_sums(*level).sum(dim=1) for level in supervised_levels(logits, target, strides)])
    return [run.group.sum(torch.stack(level).sum(dim=0)) for level in zip(*totals, strict=True)]


def _forward(run: Run, network: torch.nn.Module, part: Part) -> tuple[list[Tensor], Tensor]:
    image, target = part
    with run.precision.autocast(run.device):
        logits = network(to_device(image, run.device))
    return logits, target.to(run.device, non_blocking=True)


def _gradients_averaged(run: Run, *, last: bool) -> AbstractContextManager:
    """The group's gradients are averaged once, after the last part."""
    return nullcontext() if last or run.replica is None else run.replica.no_sync()
