"""Arithmetic of grids: spacings and shapes, without any voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

ANISOTROPY = 3.0
"""Ratio of the coarsest to the finest spacing above which the coarsest axis is resampled on its own."""


def rounded_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    """Spacing in mm to six significant digits.

    Affines are stored in single precision: without rounding, their noise would decide which of two equal axes is the
    coarser one.
    """
    return tuple(float(f"{size:.6g}") for size in spacing)


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis after resampling: shape × spacing / new spacing, rounded (halves to even), at least 1."""
    return tuple(max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, new_spacing, strict=True))


def separate_axis(current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis across which slices are taken as they are (nearest neighbour), or None.

    It is the coarsest axis of the current spacing if that is anisotropic (coarsest more than 3 times the finest),
    else of the new spacing if that is. Two equally coarse axes count as none.
    """
    for spacing in (current_spacing, new_spacing):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarsest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def window_starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of evenly spread windows, at most `step` patches apart, that cover `size` voxels.

    Where the image is smaller than the patch, one window is centred on it (its start is then negative).
    """
    if size <= patch:
        return [-((patch - size) // 2)]
    count = math.ceil((size - patch) / max(1, patch * step)) + 1
    distance = (size - patch) / (count - 1)
    return [round(index * distance) for index in range(count)]
