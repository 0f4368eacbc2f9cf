"""Voxels of every class, drawn once per case, from which training takes the centres of its foreground patches."""

from __future__ import annotations

from collections.abc import Container, Iterator

import blosc2
import numpy as np

from megavoxel.datasets.cases import case_generator

MOST = 10_000
"""Voxels kept of a class, unless 1 % of it is more."""
MOST_OF_LARGE = 1_000_000
"""Voxels kept of a class, even where 1 % of it is more."""
VOXELS_AT_ONCE = 2**21
"""Voxels that are looked at together, unless one row has more."""


def count_classes(classes: np.ndarray | blosc2.NDArray, count: int) -> np.ndarray:
    """Voxels of each of the classes 0 to `count` - 1 in a label map, int64 (count); others are left out.

    Counted by rows: NumPy turns what it counts into 64-bit integers, and an array on disk is not read as a whole.
    """
    total = np.zeros(count, dtype=np.int64)
    for _, rows in _rows(classes):
        total += np.bincount(rows.reshape(-1), minlength=count)[:count]
    return total


def sample_foreground(
    classes: np.ndarray | blosc2.NDArray, case_id: str, ignored: int | None = None
) -> dict[int, np.ndarray]:
    """Coordinates of random voxels of each class that is present.

    Of a class with n voxels, max(min(10 000, n), 1 % of n) are drawn without replacement, as in nnU-Net, but never
    more than a million, so that what is kept does not grow with the volume. The draw depends on the case's id and
    nothing else.

    Args:
        classes: (z, y, x), 0 is background; an array on disk is read twice, by rows.
        case_id: seeds the draw.
        ignored: class of voxels that nobody annotated, which has none drawn; with it, the background has some: patches
            are then centred on annotated voxels.

    Returns:
        int32 (drawn, 3) per class.
    """
    random = case_generator(case_id)
    sizes = count_classes(classes, 2**16)
    present = np.flatnonzero(sizes) if ignored is not None else np.flatnonzero(sizes[1:]) + 1
    drawn = {
        int(label): random.choice(sizes[label], _kept(sizes[label]), replace=False)
        for label in present
        if label != ignored
    }
    return _places_of(classes, drawn)


def _kept(voxels: int) -> int:
    return max(min(MOST, voxels), min(MOST_OF_LARGE, -(-voxels // 100)))


def _places_of(classes: np.ndarray | blosc2.NDArray, ranks: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Coordinates of the voxels of each class with these numbers, counted in C order from 0 within the class."""
    places = {label: np.empty((len(numbers), 3), dtype=np.int32) for label, numbers in ranks.items()}
    order = {label: np.argsort(numbers) for label, numbers in ranks.items()}
    ascending = {label: ranks[label][order[label]] for label in ranks}
    seen = dict.fromkeys(ranks, 0)
    for start, rows in _rows(classes):
        for label, voxels in _by_class(rows, ranks):
            low, high = np.searchsorted(ascending[label], [seen[label], seen[label] + len(voxels)])
            chosen = voxels[ascending[label][low:high] - seen[label]]
            found = np.stack(np.unravel_index(chosen, rows.shape), axis=1)
            places[label][order[label][low:high]] = found + np.array([start, 0, 0])
            seen[label] += len(voxels)
    return places


def _by_class(rows: np.ndarray, labels: Container[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each of some classes of an array, with its flat indices in ascending order."""
    where = np.arange(rows.size) if 0 in labels else np.flatnonzero(rows)
    values = rows.reshape(-1)[where]
    where = where[np.argsort(values, kind="stable")]
    sizes = np.bincount(values)
    ends = np.cumsum(sizes)
    for label in filter(labels.__contains__, np.flatnonzero(sizes).tolist()):
        yield label, where[ends[label] - sizes[label] : ends[label]]


def _rows(classes: np.ndarray | blosc2.NDArray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each part of a label map (z, y, x)."""
    height = max(1, VOXELS_AT_ONCE // max(1, classes.shape[1] * classes.shape[2]))
    for start in range(0, classes.shape[0], height):
        yield start, np.asarray(classes[start : start + height])
