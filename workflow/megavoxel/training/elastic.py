"""Elastic deformation: random displacements of voxels, smoothed by a Gaussian.

The displacements are those of MONAI's `Rand3DElastic`: noise from -1 to 1 at every voxel, smoothed by a Gaussian and
multiplied by a magnitude. MONAI draws a number for each voxel. The result has hardly any detail finer than sigma, so
that numbers on nodes one sigma apart, smoothed by the same Gaussian, give displacements of the same variance and
correlation (`tests/test_elastic.py`) in a small part of the time. What differs:

- MONAI takes the noise outside of the patch for 0, which halves displacements near its faces. Here they are the same
  everywhere.
- Displacements are at most `MOST_DEVIATIONS` standard deviations, so that it is known which voxels a patch is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MOST_DEVIATIONS = 5.0
MARGIN = 3
"""Nodes beyond either end of a patch: the Gaussian ends at three sigma."""


def displacement(shape: Sequence[int], sigma: float, magnitude: float, random: np.random.Generator) -> Tensor:
    """Random displacements along each axis, in voxels, float32 (axes, *shape).

    Args:
        shape: voxels per axis of the patch, or of its plane.
        sigma: of the Gaussian, in voxels.
        magnitude: factor of the smoothed noise.
        random: what they come from.
    """
    smoothing = [smoothing_matrix(size, sigma) for size in shape]
    moved = random.uniform(-1, 1, (len(shape), *(matrix.shape[1] for matrix in smoothing)))
    for axis, matrix in enumerate(smoothing, start=1):
        moved = np.moveaxis(np.tensordot(matrix, moved, axes=(1, axis)), 0, axis)
    limit = largest_displacement(len(shape), sigma, magnitude)
    return torch.from_numpy(np.ascontiguousarray(moved, dtype=np.float32)).mul_(magnitude).clamp_(-limit, limit)


def largest_displacement(axes: int, sigma: float, magnitude: float) -> float:
    """Voxels by which a voxel moves along an axis at most."""
    return MOST_DEVIATIONS * deviation(axes, sigma, magnitude)


def deviation(axes: int, sigma: float, magnitude: float) -> float:
    """Standard deviation of a displacement along an axis, in voxels.

    That of noise from -1 to 1 is 1 / √3, and smoothing along an axis divides its square by 2 √π sigma.
    """
    return magnitude / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma) ** (axes / 2)


def smoothing_matrix(size: int, sigma: float) -> np.ndarray:
    """Weights of the nodes for each voxel along an axis, float64 (size, nodes).

    Nodes are one sigma apart. The sum of the squares of a voxel's weights is that of a Gaussian over all voxels.
    """
    nodes = math.ceil((size - 1) / sigma) + 1 + 2 * MARGIN
    places = (size - 1) / 2 + sigma * (np.arange(nodes) - (nodes - 1) / 2)
    distances = (np.arange(size)[:, None] - places) / sigma
    return np.exp(-0.5 * distances**2) / math.sqrt(2 * math.pi * sigma)
