"""Sums over the voxels of logits, and their gradients, slab by slab.

A loss makes several maps as large as its logits, in float32: logarithms, probabilities, their products with the
reference, and a gradient of each. As a function of sums over voxels it needs these maps of a slab only. The forward
pass adds up the sums of all slabs. The backward pass works out each slab once more, with its gradient. What is left is
one gradient, in the precision of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

SLABS = 24
"""Slabs of large logits. The maps of one together are then a fifth of the logits in float32."""
LEAST_BYTES = 2**19
"""Bytes of a sample's slab in float32 below which cutting is not worth while."""
SlabSums = Callable[..., Tensor]
"""Sums over the voxels of a slab: of logits (batch, classes, slab, y, x), at least float32, and of maps beside it."""


def sums_over_slabs(function: SlabSums, logits: Tensor, *maps: Tensor) -> Tensor:
    """The sum over all slabs of what `function` gives for each, differentiable in the logits.

    Args:
        function: of logits and maps of a slab; of the logits it must be differentiable, and its result has the same
            shape for every slab.
        logits: (batch, classes, z, y, x); those of 16 bits are taken as float32.
        maps: (batch, z, y, x) each.
    """
    return _Sums.apply(logits, function, maps)


@torch.no_grad()
def map_over_slabs(function: SlabSums, logits: Tensor, *maps: Tensor) -> Tensor:
    """A map (batch, z, y, x) that `function` gives slab by slab, without a gradient; arguments as above."""
    slabs = _slabs(logits, maps)
    return torch.cat([function(_at_least_float32(own), *beside) for _, own, beside in slabs], dim=1)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, function: SlabSums, maps: tuple[Tensor, ...]) -> Tensor:
        ctx.save_for_backward(logits, *maps)
        ctx.function = function
        parts = [function(_at_least_float32(own), *beside) for _, own, beside in _slabs(logits, maps)]
        return torch.stack(parts).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, *maps = ctx.saved_tensors
        result = torch.empty_like(logits)
        for place, own, beside in _slabs(logits, tuple(maps)):
            leaf = _at_least_float32(own.detach()).requires_grad_()
            with torch.enable_grad():
                sums = ctx.function(leaf, *beside)
            (result[:, :, place],) = torch.autograd.grad(sums, leaf, gradient)
        return result, None, None


def _slabs(logits: Tensor, maps: tuple[Tensor, ...]) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
    """Places along z, and what lies there of logits and maps."""
    depth, size = logits.shape[2], logits[0].numel() * torch.float32.itemsize
    count = max(1, min(SLABS, size // LEAST_BYTES, depth))
    thickness = -(-depth // count)
    for begin in range(0, depth, thickness):
        place = slice(begin, begin + thickness)
        yield place, logits[:, :, place], tuple(one[:, place] for one in maps)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
