"""One optimiser step: a batch in equal parts, over the processes of a group and one after the other in each.

With an expanded patch (meU-net; Wang et al., MIDL 2022, section 3.1) every part goes through the network twice: the
expanded patch up to the second decoder level, with no gradient in the first level, and the patch at its centre through
the whole network. The loss of a part is the sum of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from megavoxel.distributed.group import Group
from megavoxel.network.device import to_device
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.planning.topology import EXPANDED_LEVEL
from megavoxel.training.loss import counted_voxels, mean_count
from megavoxel.training.pipeline import forward_and_backward
from megavoxel.training.run import Run
from megavoxel.training.soft_dice import Completion, dice_sums_of_batch
from megavoxel.training.sum_loss import sums_of_whole
from megavoxel.training.supervision import Loss, downsample_target, levels_with_targets, supervised_loss


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Samples and their way through the network: the whole of it or, expanded, up to the second decoder level."""

    image: Tensor
    """float32 (samples, channels, z, y, x)."""
    target: Tensor
    """Classes (samples, z, y, x), as `encode_target` gives them."""
    expanded: bool = False


def replicated(network: SegmentationNetwork, group: Group) -> DistributedDataParallel | None:
    """The network's wrapper that averages gradients over the group.

    None in a group of one, and where a step is several passes (`expanded_patch`), none of which reaches all weights:
    the wrapper waits for the gradient of every one.
    """
    if group.size == 1 or network.plan.expanded_head:
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

    They go through in `parallel.accumulate` equal parts, in a pipeline in as many micro-batches each; the gradients are
    those of the whole batch, of all processes.

    Args:
        run: with a group whose processes all take this step.
        image: float32 (batch / processes, channels, z, y, x), of the plan's `sampled_patch` or, where processes hold
            tiles of a patch, of this one's tile.
        target: classes (batch / processes, z, y, x), as `encode_target` gives them.
    """
    run.optimizer.zero_grad(set_to_none=True)
    loss = _gradients(run, image, target) if run.pipeline is None else forward_and_backward(run, image, target)
    update_weights(run)
    return loss


def parts_of(run: Run, image: Tensor, target: Tensor) -> list[Pass]:
    """A process's samples in the parts that go through the network together."""
    count = run.plan.parallel.accumulate
    return [Pass(image=part, target=own) for part, own in zip(image.chunk(count), target.chunk(count), strict=True)]


def passes_of(plan: Plan, part: Pass) -> list[Pass]:
    """The passes that a part of a training batch takes: itself; or the expanded patch, then the patch at its centre."""
    if plan.expanded_patch is None:
        return [part]
    sides = zip(plan.expanded_patch, plan.patch, strict=True)
    centre = (..., *(slice((large - size) // 2, (large + size) // 2) for large, size in sides))
    return [replace(part, expanded=True), Pass(image=part.image[centre], target=part.target[centre])]


def losses_by_level(run: Run, passes: Sequence[Pass]) -> Loss | Sequence[Loss]:
    """The loss of each level of deep supervision for a part of the batch; one for all where that is enough.

    The Dice of a whole batch looks beyond its part. Parts that follow one another then need a forward pass more,
    because the sums of the later ones enter the gradient of the first. A mean over the voxels that are annotated in the
    batch looks beyond its part as well, but targets alone tell how many they are.

    Args:
        run: the network, and the group that shares the batch.
        passes: the same pass of every part.
    """
    is_divided = len(passes) * run.sharers.size > 1
    if is_divided and (run.plan.training.batch_dice or run.outputs.ignores):
        return _of_whole_batch(run, passes)
    if run.space is None:
        return run.loss()
    return [run.loss(stride=stride) for stride in _strides(run, passes[0])]


def _of_whole_batch(run: Run, passes: Sequence[Pass]) -> list[Loss]:
    strides = _strides(run, passes[0])
    nothing: list[None] = [None] * len(strides)
    completions = _completions(run, passes) if run.plan.training.batch_dice else nothing
    counts = _counts(run, passes) if run.outputs.ignores else nothing
    of_levels = zip(completions, counts, strides, strict=True)
    return [run.loss(complete, counted=counted, stride=stride) for complete, counted, stride in of_levels]


def _completions(run: Run, passes: Sequence[Pass]) -> list[Completion]:
    """What gives the Dice sums of the whole batch, per level."""
    processes = run.sharers.size
    if len(passes) == 1:
        alone = lambda sums: sums_of_whole(sums, run.sharers.sum(sums), processes)  # noqa: E731
        return [alone] * len(_strides(run, passes[0]))
    count = len(passes) * processes
    return [partial(sums_of_whole, whole=whole, parts=count) for whole in _dice_sums(run, passes)]


def _counts(run: Run, passes: Sequence[Pass]) -> list[Tensor]:
    """Annotated voxels of a sample of the whole batch, per level."""
    own = []
    for stride in _strides(run, passes[0]):
        targets = (downsample_target(one.target.to(run.device), stride) for one in passes)
        counted = [counted_voxels(target, run.outputs, run.plan.network.classes) for target in targets]
        own.append(torch.stack(counted).sum())
    total = torch.stack(own)
    if run.space is not None:
        total = run.space.exchange.sum(total)
    samples = sum(len(one.target) for one in passes) * run.sharers.size
    return list(mean_count(run.sharers.sum(total), samples))


def loss_of_pass(run: Run, one: Pass, losses: Loss | Sequence[Loss]) -> tuple[Tensor, Tensor]:
    """The loss of a pass over all its levels, and its finest logits (samples, classes, z, y, x)."""
    # The wrapper is for gradients only: without them it would wait for the others all the same.
    network = run.replica if run.replica is not None and torch.is_grad_enabled() else run.network
    logits, target = _forward(run, network, one)
    return supervised_loss(losses, logits, target, _strides(run, one)), logits[0]


def _gradients(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """Adds the gradients of a process's share of a batch; returns its loss, detached."""
    parts = [passes_of(run.plan, part) for part in parts_of(run, image, target)]
    losses = [losses_by_level(run, passes) for passes in zip(*parts, strict=True)]
    values = []
    for number, passes in enumerate(parts, start=1):
        with _gradients_averaged(run, last=number == len(parts)):
            values += _backward(run, passes, losses, parts=len(parts))
    return torch.stack(values).sum()


def _backward(run: Run, passes: Sequence[Pass], losses: Sequence[Loss | Sequence[Loss]], *, parts: int) -> list[Tensor]:
    """Backward passes of one of the equal parts of a batch; returns its losses, detached."""
    terms = (loss_of_pass(run, one, loss)[0] / parts for one, loss in zip(passes, losses, strict=True))
    if run.plan.expansion_order == "joint":
        terms = iter([torch.stack(list(terms)).sum()])
    values = []
    for term in terms:
        run.scaler.scale(term).backward()
        values.append(term.detach())
    return values


@torch.no_grad()
def _dice_sums(run: Run, passes: Sequence[Pass]) -> list[Tensor]:
    """Dice sums (2 or 3, structures) of the whole batch, per level."""
    totals = []
    for one in passes:
        levels = levels_with_targets(*_forward(run, run.network, one), _strides(run, one))
        totals.append([dice_sums_of_batch(*level, run.annotated, run.outputs) for level in levels])
    whole = [torch.stack(level).sum(dim=0) for level in zip(*totals, strict=True)]
    if run.space is not None:
        whole = [run.space.exchange.sum(sums) for sums in whole]
    return [run.sharers.sum(sums) for sums in whole]


def _forward(run: Run, network: torch.nn.Module, one: Pass) -> tuple[list[Tensor], Tensor]:
    with run.precision.autocast(run.device):
        image = to_device(one.image, run.device, run.kernels.memory_format)
        logits = [run.network.forward_expanded(image)] if one.expanded else network(image)
    return logits, one.target.to(run.device, non_blocking=True)


def _strides(run: Run, one: Pass) -> Sequence[tuple[int, ...]]:
    """Strides of the levels that a pass has logits of."""
    shape = run.network.shape
    levels = shape.supervised_levels if run.network.training else shape.supervised_levels[:1]
    return [shape.logits_strides[level] for level in ((EXPANDED_LEVEL,) if one.expanded else levels)]


def _gradients_averaged(run: Run, *, last: bool) -> AbstractContextManager:
    """The group's gradients are averaged once, after the last part."""
    return nullcontext() if last or run.replica is None else run.replica.no_sync()


def update_weights(run: Run) -> None:
    """Averages the gradients over the replicas, clips them by the norm over all weights, and takes the step.

    Of batch norm every replica has the running statistics of the first one afterwards.
    """
    if run.replica is None:
        _average_gradients(run)
    if run.pipeline is not None and run.scaler.is_enabled():
        _share_overflow(run)
    run.scaler.unscale_(run.optimizer)
    _clip(run)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.replica is None:
        _share_statistics(run)


def _average_gradients(run: Run) -> None:
    """What the wrapper does where there is one: every gradient becomes the mean over the replicas."""
    run.replicas.average([weights.grad for weights in run.network.parameters() if weights.requires_grad])


def _share_statistics(run: Run) -> None:
    """All replicas take the running statistics of the first one, as with the wrapper: its state is kept."""
    statistics = [buffer for buffer in run.network.buffers() if buffer.is_floating_point()]
    if run.replicas.size == 1 or not statistics:
        return
    own = torch.cat([buffer.flatten() for buffer in statistics])
    shared = run.replicas.sum(own if run.replicas.leads else torch.zeros_like(own))
    for buffer, first in zip(statistics, shared.split([buffer.numel() for buffer in statistics]), strict=True):
        buffer.copy_(first.view(buffer.shape))


def _clip(run: Run) -> None:
    """Clips the gradients by their norm over all stages, which is the same in every replica."""
    parameters, limit = list(run.network.parameters()), run.plan.training.gradient_clip
    if limit is None:
        return
    if run.pipeline is None:
        clip_grad_norm_(parameters, limit)
        return
    own = get_total_norm([parameter.grad for parameter in parameters]).double().square()
    clip_grads_with_norm_(parameters, limit, (run.group.sum(own) / run.replicas.size).sqrt().float())


def _share_overflow(run: Run) -> None:
    """Where the gradients of one stage overflow in float16, every stage has to leave the step out.

    A scaler looks at its own gradients alone, so that each of them is shown the overflow.
    """
    gradients = [parameter.grad for parameter in run.network.parameters()]
    finite = torch.isfinite(get_total_norm(gradients)).float()
    if run.group.sum(finite).item() < run.group.size:
        gradients[0].fill_(math.inf)
