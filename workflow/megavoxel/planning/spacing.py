"""Target spacing and axis order, by the rules of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021, Methods)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megavoxel.volumes.grid import ANISOTROPY, resampled_shape

FINER_PERCENTILE = 10.0
"""Percentile of the coarse axis' spacings that is aimed at in anisotropic datasets."""
EQUAL = 1e-6
"""Relative difference below which two spacings count as the same."""


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """The spacing to which a dataset is resampled: the median per axis, finer along a coarse axis.

    If the coarsest axis is more than 3 times coarser than the next one and has less than a third of its voxels, the
    10th percentile of that axis' spacings is taken in place of the median, but nothing finer than the other axes.

    Args:
        spacings: mm per case and axis.
        shapes: voxels per case and axis, after cropping.

    Returns:
        mm per axis, in the order of the arguments.
    """
    spacing, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    if is_anisotropic(spacing, size):
        axis = coarsest_axis(spacing)
        others = max(np.delete(spacing, axis))
        finer = np.percentile(np.asarray(spacings)[:, axis], FINER_PERCENTILE)
        spacing[axis] = finer if finer >= others else others + 1e-5
    return tuple(float(value) for value in spacing)


def is_anisotropic(spacing: Sequence[float], size: Sequence[float]) -> bool:
    """Whether one axis is more than 3 times coarser than the others and has less than a third of their voxels.

    Args:
        spacing: median mm per axis.
        size: median voxels per axis.
    """
    axis = coarsest_axis(spacing)
    coarse = spacing[axis] > ANISOTROPY * max(np.delete(spacing, axis))
    return bool(coarse and size[axis] * ANISOTROPY < min(np.delete(size, axis)))


def coarsest_axis(spacing: Sequence[float]) -> int:
    """The first of the axes with the largest spacing."""
    return next(axis for axis, size in enumerate(spacing) if size >= max(spacing) * (1 - EQUAL))


def transposition(spacing: Sequence[float]) -> tuple[int, ...]:
    """The order of axes that puts the coarsest one first and leaves the others as they are."""
    first = coarsest_axis(spacing)
    return (first, *(axis for axis in range(len(spacing)) if axis != first))


def transposed(values: Sequence[float], transpose: Sequence[int]) -> tuple[float, ...]:
    """Values per axis in another order of axes."""
    return tuple(values[axis] for axis in transpose)


def median_shape(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], spacing: Sequence[float]
) -> tuple[float, ...]:
    """Median voxels per axis after resampling every case to `spacing`; all arguments have the same order of axes."""
    resampled = [resampled_shape(shape, current, spacing) for shape, current in zip(shapes, spacings, strict=True)]
    return tuple(float(size) for size in np.median(resampled, axis=0))


def largest_shape(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]
) -> tuple[int, ...]:
    """Most voxels per axis after resampling every case to its target; all arguments have the same order of axes."""
    resampled = map(resampled_shape, shapes, spacings, targets)
    return tuple(max(sides) for sides in zip(*resampled, strict=True))


def times(values: Sequence[float]) -> str:
    """Numbers per axis for a reader: `2.5 × 1 × 1`."""
    return " × ".join(f"{value:.6g}" for value in values)
