"""Losses on logits, and their sum over the levels of deep supervision.

The soft Dice is our own because its sums must later be shared between processes and micro-batches; it is tested
against MONAI's. Logits are (batch, classes, z, y, x), targets (batch, z, y, x) of class numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
Loss = Callable[[Tensor, Tensor], Tensor]


def soft_dice_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sums that the soft Dice of each sample and foreground class is made of.

    Returns:
        intersection and cardinality (soft prediction plus reference), each (batch, classes - 1).
    """
    probabilities = logits.softmax(dim=1)[:, 1:]
    reference = _one_hot(target.long(), logits.shape[1])[:, 1:]
    intersection = (probabilities * reference).sum(dim=(2, 3, 4))
    cardinality = (probabilities.sum(dim=(2, 3, 4))) + reference.sum(dim=(2, 3, 4))
    return intersection, cardinality


def dice_loss(logits: Tensor, target: Tensor, *, batch: bool = False) -> Tensor:
    """One minus the soft Dice of the foreground classes, smooth 1e-5, as in nnU-Net.

    Args:
        batch: whether sums run over the whole batch before the ratio is taken.
    """
    intersection, cardinality = soft_dice_sums(logits, target)
    if batch:
        intersection, cardinality = intersection.sum(dim=0), cardinality.sum(dim=0)
    return 1 - ((2 * intersection + SMOOTH) / (cardinality + SMOOTH)).mean()


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over all voxels."""
    return F.cross_entropy(logits, target.long())


def _one_hot(target: Tensor, classes: int) -> Tensor:
    """Boolean (batch, classes, z, y, x): an eighth of the memory of PyTorch's `one_hot`, which counts in int64."""
    empty = torch.zeros(*target.shape, classes, dtype=torch.bool, device=target.device)
    return empty.scatter_(-1, target[..., None], True).movedim(-1, 1)


def build_loss(name: str, *, batch_dice: bool) -> Loss:
    """The loss of a study's key `loss`: `dice_ce`, `dice` or `cross_entropy`."""

    def dice(logits: Tensor, target: Tensor) -> Tensor:
        return dice_loss(logits, target, batch=batch_dice)

    def dice_ce(logits: Tensor, target: Tensor) -> Tensor:
        return dice(logits, target) + cross_entropy_loss(logits, target)

    return {"dice_ce": dice_ce, "dice": dice, "cross_entropy": cross_entropy_loss}[name]


def supervision_weights(levels: int) -> list[float]:
    """Weight of each level's loss: halved from level to level, summing to one (nnU-Net)."""
    weights = [0.5**level for level in range(levels)]
    return [weight / sum(weights) for weight in weights]


def downsample_target(target: Tensor, stride: Sequence[int]) -> Tensor:
    """Nearest-neighbour target of a coarser level: of each cell of `stride` voxels the one behind its centre.

    Where the last cell sticks out of the target, its last voxel is taken. Equals PyTorch's `nearest-exact` where the
    size is a multiple of the stride.

    Args:
        target: (batch, z, y, x).
    """
    for axis, step in enumerate(stride, start=1):
        if step > 1:
            size = target.shape[axis]
            index = torch.arange(step // 2, size + step // 2, step, device=target.device)[: -(-size // step)]
            target = target.index_select(axis, index.clamp(max=size - 1))
    return target


def supervised_loss(loss: Loss, logits: Sequence[Tensor], target: Tensor, strides: Sequence[Sequence[int]]) -> Tensor:
    """The weighted sum of `loss` over the levels, computed in float32.

    Args:
        logits: one tensor per level, full resolution first.
        target: (batch, z, y, x) at full resolution.
        strides: per level and axis, voxels of the image per voxel of the level.
    """
    weights = supervision_weights(len(logits))
    terms = [
        weight * loss(level.float(), downsample_target(target, stride))
        for weight, level, stride in zip(weights, logits, strides, strict=False)
    ]
    return torch.stack(terms).sum()
