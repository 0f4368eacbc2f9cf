"""Deep supervision: the weighted sum of a loss over the levels of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def supervision_weights(levels: int) -> list[float]:
    """Weight of each level's loss: halved from level to level, summing to one (nnU-Net)."""
    weights = [0.5**level for level in range(levels)]
    return [weight / sum(weights) for weight in weights]


def downsample_target(target: Tensor, stride: Sequence[int]) -> Tensor:
    """Nearest-neighbour target of a coarser level: of each cell of `stride` voxels the one behind its centre.

    Where the last cell sticks out of the target, its last voxel is taken. Equals PyTorch's `nearest-exact` where the
    size is a multiple of the stride.
    """
    for axis, step in enumerate(stride, start=1):
        if step > 1:
            size = target.shape[axis]
            index = torch.arange(step // 2, size + step // 2, step, device=target.device)[: -(-size // step)]
            target = target.index_select(axis, index.clamp(max=size - 1))
    return target


def levels_with_targets(
    logits: Sequence[Tensor], target: Tensor, strides: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Logits and the target at their resolution, per level.

    Args:
        logits: one tensor per level, full resolution first.
        target: (batch, z, y, x) at full resolution.
        strides: per level and axis, voxels of the image per voxel of the level.
    """
    return [(level, downsample_target(target, stride)) for level, stride in zip(logits, strides, strict=False)]


def supervised_loss(
    loss: Loss | Sequence[Loss],
    logits: Sequence[Tensor],
    target: Tensor,
    strides: Sequence[Sequence[int]],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The weighted sum over the levels of `loss`, one for all levels or one each; see `levels_with_targets`.

    `weights` are for levels that are not all that there are; None: `supervision_weights`.
    """
    losses = loss if isinstance(loss, Sequence) else [loss] * len(logits)
    weights = supervision_weights(len(logits)) if weights is None else weights
    levels = levels_with_targets(logits, target, strides)
    terms = [weight * loss(*level) for weight, loss, level in zip(weights, losses, levels, strict=True)]
    return torch.stack(terms).sum()
