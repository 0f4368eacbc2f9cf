"""Holes of a mask that memory does not hold, filled slab by slab.

The background of each slab falls apart into components. Those of neighbouring slabs that touch belong together, and
what is linked to the border of the grid in this way is outside; all else of the background is a hole. Between slabs
only the faces are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cc3d
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Reader = Callable[[int, int], np.ndarray]
"""From first row and first row no longer read to bool (rows, y, x)."""


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
