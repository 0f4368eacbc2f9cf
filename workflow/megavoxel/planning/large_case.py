"""Box and foreground intensities of a case that memory does not hold, from compressed arrays on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.datasets.cases import Case, Cases, case_generator
from megavoxel.errors import UserError
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.masks import Box
from megavoxel.volumes.slabs import Place, slab_places
from megavoxel.volumes.spool import spool_image, spool_labels

CANONICAL = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """Geometry, nonzero box and sampled intensities of a case."""

    geometry: Geometry
    """The grid of the image's file."""
    box: Box
    """The nonzero box, canonical order."""
    intensities: tuple[np.ndarray, ...]
    """Per channel, float32 intensities of the sampled foreground in the box."""


def sample_large_case(case: Case, cases: Cases, most: int) -> Foreground:
    """Samples the foreground of a case as `fingerprint` does it in memory: the same voxels.

    The arrays lie in the system's folder for temporary files while they are needed.

    Args:
        case: one of `cases`, labelled.
        cases: the dataset.
        most: voxels that are looked at.

    Raises:
        UserError: a file cannot be read, or image and label map have different shapes.
    """
    with tempfile.TemporaryDirectory(prefix="megavoxel-") as scratch:
        image = spool_image(cases.open_images(case), CANONICAL, Path(scratch) / "image.b2nd")
        labels = spool_labels(cases.open_labels(case), CANONICAL, Path(scratch) / "labels.b2nd")
        if labels.shape != image.array.shape[1:]:
            raise UserError(f"case {case.id}: image and label map have different shapes; run 'megavoxel check' again")
        chosen = _chosen(labels, image.box, cases.background_values, case.id, most)
        parts = [[_values(image.array, channel, part) for part in chosen] for channel in range(image.array.shape[0])]
    return Foreground(
        geometry=image.geometry,
        box=image.box,
        intensities=tuple(np.concatenate([np.empty(0, np.float32), *values]) for values in parts),
    )


def _chosen(
    labels: blosc2.NDArray, box: Box, background: Sequence[int], case_id: str, most: int
) -> list[tuple[Place, np.ndarray]]:
    """Parts of the box, each with flat indices into it."""
    count = sum(len(where) for _, where in _foreground(labels, box, background))
    if count <= most:
        return list(_foreground(labels, box, background))
    drawn = np.sort(case_generator(case_id).choice(count, most, replace=False))
    chosen, seen = [], 0
    for place, where in _foreground(labels, box, background):
        low, high = np.searchsorted(drawn, [seen, seen + len(where)])
        chosen.append((place, where[drawn[low:high] - seen]))
        seen += len(where)
    return chosen


def _foreground(labels: blosc2.NDArray, box: Box, background: Sequence[int]) -> Iterator[tuple[Place, np.ndarray]]:
    for part in slab_places([stop - start for start, stop in box], 0):
        place = tuple(slice(low + span.start, low + span.stop) for (low, _), span in zip(box, part, strict=True))
        voxels = np.asarray(labels[place])
        yield place, np.flatnonzero(~np.isin(voxels, [0, *background]) if background else voxels)


def _values(array: blosc2.NDArray, channel: int, part: tuple[Place, np.ndarray]) -> np.ndarray:
    place, where = part
    return np.asarray(array[(channel, *place)]).reshape(-1)[where]
