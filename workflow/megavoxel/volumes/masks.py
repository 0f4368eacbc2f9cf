"""Masks: the box that holds anything at all, holes and connected components; whole in memory, or slab by slab.

Of a mask that memory does not hold, the background of each slab falls apart into components. Those of neighbouring
slabs that touch belong together, and what is linked to the border of the grid in this way is outside; all else of the
background is a hole. Between slabs only the faces are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cc3d
import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Box = tuple[tuple[int, int], ...]
Reader = Callable[[int, int], np.ndarray]
"""From first row and first row no longer read to bool (rows, y, x)."""


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


def labelled_components(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """Number of the connected component of each voxel, in array order from 1; 0 outside of the mask.

    Args:
        mask: bool (z, y, x).
        connectivity: 6, 18 or 26 neighbours.
    """
    # With 26 neighbours cc3d ends with an error on some masks of a single line of voxels; with a border it does not.
    padded = np.pad(mask, 1)
    return cc3d.connected_components(padded, connectivity=connectivity, binary_image=True)[1:-1, 1:-1, 1:-1]


def filled_slabs(read: Reader, depth: int, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """First row and mask (rows, y, x) of each slab, holes filled: together what `fill_holes` makes of the whole.

    Args:
        read: gives rows of the mask; each is asked for twice.
        depth: rows of the mask.
        rows: of a slab.
    """
    spans = [(start, min(depth, start + rows)) for start in range(0, depth, rows)]
    outside = _outside(read, spans, depth)
    first = 0
    for start, stop in spans:
        components, count = _components(read(start, stop), first_slab=start == 0, last_slab=stop == depth)
        is_outside = np.isin(np.arange(first, first + count + 1), outside)
        is_outside[components[0, 0, 0]] = True
        yield start, ~is_outside[_without_border(components, start == 0, stop == depth)]
        first += count + 1


def _outside(read: Reader, spans: list[tuple[int, int]], depth: int) -> np.ndarray:
    """Numbers of the components that reach the border of the grid by way of other slabs, counted over all slabs."""
    links, border, first, face = [], [], 0, None
    for start, stop in spans:
        components, count = _components(read(start, stop), first_slab=start == 0, last_slab=stop == depth)
        border.append(first + int(components[0, 0, 0]))
        numbers = _without_border(components, start == 0, stop == depth).astype(np.int64) + first
        if face is not None:
            linked = (face[1] > 0) & (numbers[0] > first)
            links.append(np.unique(np.stack([face[0][linked], numbers[0][linked]]), axis=1))
        face = (numbers[-1], numbers[-1] - first)
        first += count + 1
    return _linked_to(np.array(border), np.concatenate(links, axis=1) if links else np.empty((2, 0), np.int64))


def _linked_to(border: np.ndarray, links: np.ndarray) -> np.ndarray:
    """The numbers that a chain of links joins to one of `border`."""
    names, places = np.unique(np.concatenate([border, links.ravel()]), return_inverse=True)
    ours, (one, other) = places[: len(border)], places[len(border) :].reshape(2, -1)
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(names), len(names)))
    group = connected_components(graph, directed=False)[1]
    return names[np.isin(group, group[ours])]


def _components(mask: np.ndarray, *, first_slab: bool, last_slab: bool) -> tuple[np.ndarray, int]:
    """Components of the background with a border around it, 0 where the mask is, and how many there are."""
    ends = (int(first_slab), int(last_slab))
    background = np.pad(~mask, (ends, (1, 1), (1, 1)), constant_values=True)
    return cc3d.connected_components(background, connectivity=6, return_N=True)


def _without_border(components: np.ndarray, first_slab: bool, last_slab: bool) -> np.ndarray:
    return components[int(first_slab) : len(components) - int(last_slab), 1:-1, 1:-1]
