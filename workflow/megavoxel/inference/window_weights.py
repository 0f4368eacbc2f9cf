"""How the voxels of a window count where windows overlap, and what all windows together come to.

Weights are kept as terms: outer products of weights per axis, whose sum they are. What all windows of a grid come to is
then the same sum of the totals per axis, so that it is never held for more than the voxels that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

Terms = list[list[Tensor]]
"""Per term the weights along axes z, y and x, float32."""


def window_terms(kind: str, patch: Sequence[int], *, sigma: float, device: torch.device) -> Terms:
    """Weights of a window's voxels.

    `centre` is that of Wang et al., "Memory-efficient Segmentation of High-resolution Volumetric MicroCT Images" (MIDL
    2022, appendix A.6), who double the weights of the centre of a patch and do not say how large it is: here the box of
    the voxels that lie in the central half of all three axes has the weight 2, all others 1.

    Args:
        kind: `gaussian` or `centre`, as `inference.weights` of a study.
        patch: voxels per axis.
        sigma: of `gaussian`, in windows.
        device: of the weights.
    """
    if kind == "centre":
        terms = [[torch.ones(extent) for extent in patch], [central_half(extent) for extent in patch]]
    else:
        terms = [[gaussian_weights(extent, sigma) for extent in patch]]
    return [[axis.to(device) for axis in term] for term in terms]


def gaussian_weights(size: int, sigma: float) -> Tensor:
    """Weights of a window along one axis: a Gaussian of `sigma` windows, 1 at voxel size // 2 as in nnU-Net, float32.

    A window's weights are the products of those of its axes. None is below 1e-12, so that no product vanishes.
    """
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.exp(-0.5 * (offsets / (sigma * size)) ** 2).clamp(min=1e-12).float()


def central_half(size: int) -> Tensor:
    """1 for the voxels of an axis whose centres lie in its central half, ends included, else 0; float32.

    That is half of them where the size is a multiple of four, and always the same seen from both ends.
    """
    offsets = 2 * torch.arange(size) + 1 - size  # of the centres, in half voxels
    return (2 * offsets.abs() <= size).float()


def total_terms(shape: Sequence[int], starts: Sequence[Sequence[int]], terms: Terms) -> Terms:
    """Sum of the weights of all windows, per voxel of the image.

    Args:
        shape: voxels of the image per axis.
        starts: first voxels of the windows per axis; there is a window at every combination of them.
        terms: weights of a window.
    """
    return [[total_weights(*axis) for axis in zip(shape, starts, term, strict=True)] for term in terms]


def total_weights(size: int, starts: Sequence[int], weights: Tensor) -> Tensor:
    """Sum of the weights of all windows along one axis, per voxel of the image."""
    total = weights.new_zeros(max(size, len(weights)))
    for start in starts:
        total[start - starts[0] :][: len(weights)] += weights
    return total[-starts[0] :][:size]


def sum_of_products(terms: Terms) -> Tensor:
    """The weights (z, y, x) that terms stand for."""
    return reduce(torch.add, map(outer_product, terms))


def outer_product(axes: Sequence[Tensor]) -> Tensor:
    """(z, y, x) from weights per axis."""
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x
