"""Losses that are functions of sums over voxels.

The sums are worked out slab by slab (`training/slabs.py`), for all losses that are added up at once, so that one
gradient is made; where logits are a tile of a patch, they are those of the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megavoxel.training.slabs import sums_over_slabs

Voxels = int | Tensor
"""A number of voxels; where not all of a sample are annotated, a mean over the samples of the batch."""


@dataclass(frozen=True, kw_only=True)
class TiledPatch:
    """A level of a patch of which logits and target are a tile.

    The loss of a tile is that of the patch. Its gradient is that of its own voxels times the number of tiles, so that
    the mean over the tiles is the gradient of the patch.
    """

    total: Callable[[Tensor], Tensor]
    """Gives the sum of the tensors of all tiles, without a gradient."""
    tiles: int
    voxels: int
    """Voxels of the patch at this level."""
    rank: int = 0
    """Number of this tile."""

    def sums(self, own: Tensor) -> Tensor:
        """Sums over the voxels of the patch, from those of this tile."""
        return sums_of_whole(own, self.total(own.detach()), self.tiles)


@dataclass(frozen=True, kw_only=True)
class SumLoss:
    """A loss that is a function of sums over the voxels of each sample.

    Called as a function of logits, target and known labels, it gives its value.
    """

    sums: Callable[..., Tensor]
    """Gives sums (rows, batch, columns) from logits, target, known labels and, where there is one, the map."""
    value: Callable[[Tensor, Tensor | None, Voxels], Tensor]
    """Gives the loss from these sums, the known labels and the number of voxels of a sample that count."""
    extra: Callable[[Tensor, Tensor, Tensor | None, TiledPatch | None], Tensor] | None = None
    """Gives a map (batch, z, y, x) that depends on more than a slab, from logits, target, known labels and what the
    tile is a part of."""

    def __call__(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """The loss alone, a scalar."""
        return total_loss([self], logits, target, known)


def total_loss(
    parts: Sequence[SumLoss],
    logits: Tensor,
    target: Tensor,
    known: Tensor | None,
    tiled: TiledPatch | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The sum of several losses, a scalar; their sums over voxels are worked out together.

    Args:
        parts: the losses.
        logits: (batch, classes, z, y, x).
        target: (batch, z, y, x).
        known: bool (batch, classes - 1), the annotated labels; None: all are.
        tiled: what logits and target are a tile of; None: they are whole.
        counted: voxels of a sample that count; None: all of them.
    """
    maps = [None if part.extra is None else part.extra(logits, target, known, tiled) for part in parts]
    given = [one for one in maps if one is not None]

    def all_sums(own: Tensor, classes: Tensor, *beside: Tensor) -> Tensor:
        left = iter(beside)
        found = [
            part.sums(own, classes, known, *(() if one is None else (next(left),)))
            for part, one in zip(parts, maps, strict=True)
        ]
        shapes[:] = [sums.shape for sums in found]
        return torch.cat([sums.flatten() for sums in found])

    shapes: list[torch.Size] = []
    sums = sums_over_slabs(all_sums, logits, target, *given)
    if tiled is not None:
        sums = tiled.sums(sums)
    split = sums.split([shape.numel() for shape in shapes])
    voxels: Voxels = target[0].numel() if tiled is None else tiled.voxels
    voxels = voxels if counted is None else counted.to(sums.dtype)
    values = (part.value(own.view(shape), known, voxels) for part, own, shape in zip(parts, split, shapes, strict=True))
    return torch.stack(list(values)).sum()


def sums_of_whole(part: Tensor, whole: Tensor, parts: int) -> Tensor:
    """The sums of a whole batch, seen from one of its parts.

    Its value is `whole`; its gradient is `parts` times that of `part`, so that the mean over the parts of the gradients
    of a function of it is the gradient of that function of the whole.
    """
    return whole + parts * (part - part.detach())
