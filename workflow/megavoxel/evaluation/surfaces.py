"""Borders and surfaces of masks, and how far those of two masks lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

MOST_STEPS = 500
"""Up to so many steps within a distance, moving a mask by each of them is quicker than a map of distances."""
OUTSIDE, INSIDE = 0, 255
"""Codes of neighbourhoods with no voxel of the mask, and with no other."""
ROUNDING = 1e-6
"""Share by which the search for the nearest point reaches farther than asked, because its coordinates are rounded."""


def border_of(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask with a face to a voxel that is not in it; outside of the array counts as not in it."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis, start in product(range(mask.ndim), (0, 2)):
        starts = [start if own == axis else 1 for own in range(mask.ndim)]
        inside &= _part(padded, starts, mask.shape)
    return mask & ~inside


def surface_of(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The neighbourhoods of 2 x 2 x 2 voxels in which the surface of a mask runs, and its area there by marching cubes.

    Args:
        mask: bool, three axes; outside of the array counts as not in it.
        spacing: voxel size in mm per axis.

    Returns:
        bool, one more than the mask along each axis, and the area in mm² of each of them, float64 (neighbourhoods,).
    """
    shape = [size + 1 for size in mask.shape]
    padded, codes = np.pad(mask, 1).view(np.uint8), np.zeros(shape, np.uint8)
    for number, corner in enumerate(product((0, 1), repeat=3)):
        codes += _part(padded, corner, shape) << np.uint8(7 - number)
    runs = (codes != OUTSIDE) & (codes != INSIDE)
    return runs, _areas(tuple(map(float, spacing)))[codes[runs]]


def distances_between(
    one: np.ndarray, other: np.ndarray, spacing: Sequence[float], *, within: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each place of one set to the nearest of the other, and back.

    Args:
        one: bool, some of it true.
        other: bool of the same shape, some of it true.
        spacing: voxel size in mm per axis.
        within: distances beyond it may be infinite.

    Returns:
        (places of one,) and (places of the other,), float64, in the order of `one[one]`.
    """
    places = [np.argwhere(one), np.argwhere(other)]
    size = np.asarray(spacing, dtype=float)
    found = []
    for (own, theirs), in_theirs in zip((places, places[::-1]), (other[one], one[other]), strict=True):
        distances = np.zeros(len(own))  # of the places that both sets have
        distances[~in_theirs] = _to_nearest(own[~in_theirs], theirs, size, within)
        found.append(distances)
    return found[0], found[1]


def near(places: np.ndarray, distance: float, spacing: Sequence[float]) -> np.ndarray:
    """Where a place of a set is at most so many mm away, bool of the same shape."""
    reach = [min(int(distance / size + ROUNDING), extent) for size, extent in zip(spacing, places.shape, strict=True)]
    if math.prod(2 * steps + 1 for steps in reach) > MOST_STEPS:
        return distance_transform_edt(~places, sampling=spacing) <= distance
    padded, found = np.pad(places, [(steps, steps) for steps in reach]), np.zeros_like(places)
    for step in product(*(range(-steps, steps + 1) for steps in reach)):
        if _length(np.array(step), np.asarray(spacing)) <= distance:
            found |= _part(padded, [own + steps for own, steps in zip(step, reach, strict=True)], places.shape)
    return found


def _to_nearest(own: np.ndarray, theirs: np.ndarray, size: np.ndarray, within: float) -> np.ndarray:
    """Distances that are worked out from whole steps, so that one of exactly the tolerance is no larger than it."""
    tree = KDTree(theirs * size, balanced_tree=False, compact_nodes=False)
    bound = within * (1 + ROUNDING) + ROUNDING
    nearest = tree.query(own * size, distance_upper_bound=bound)[1]
    distances, found = np.full(len(own), np.inf), nearest < len(theirs)
    distances[found] = _length(own[found] - theirs[nearest[found]], size)
    return distances


def _length(steps: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.sqrt(((steps * size) ** 2).sum(axis=-1))


def _part(array: np.ndarray, starts: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    return array[tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))]


@lru_cache(maxsize=8)
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Area in mm² of the surface in a neighbourhood by its code: bit 7 is the first voxel, bit 0 the last."""
    from monai.metrics.utils import get_code_to_measure_table

    return get_code_to_measure_table(spacing)[0].double().numpy()
