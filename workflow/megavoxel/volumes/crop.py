"""The box of a scan that holds anything at all, and what lies inside of it."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from scipy import ndimage

Box = tuple[tuple[int, int], ...]


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Voxels in which any channel differs from 0.

    Args:
        image: (channels, z, y, x).

    Returns:
        bool (z, y, x).
    """
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def bounding_box(mask: np.ndarray) -> Box:
    """Per axis the first voxel of a mask and the first one behind it; the whole grid where the mask is empty.

    Holes of the mask play no part: filling them does not change its box.
    """
    found = ndimage.find_objects(np.ascontiguousarray(mask).view(np.uint8), max_label=1)[0]
    if found is None:
        return tuple((0, size) for size in mask.shape)
    return tuple((side.start, side.stop) for side in found)


def crop(array: np.ndarray, box: Sequence[Sequence[int]]) -> np.ndarray:
    """The view of an array (…, z, y, x) inside of a box."""
    return array[(..., *(slice(start, stop) for start, stop in box))]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask with those background voxels added that no path across faces links to the border of the grid.

    The same as `scipy.ndimage.binary_fill_holes` in three dimensions, by one pass of connected components.
    """
    outside = np.pad(~mask, 1, constant_values=True)
    components = cc3d.connected_components(outside, connectivity=6)
    return (components != components[0, 0, 0])[1:-1, 1:-1, 1:-1]
