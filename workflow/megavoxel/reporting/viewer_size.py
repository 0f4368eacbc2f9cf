"""How small the viewer shows cases, so that the page stays below 30 MB, and how they are made small.

The rule, in this order:

1. All cases and models are shown, on grids as fine as fits, but of no more than `MOST_VOXELS`.
2. Where a grid of `FEWEST_VOXELS` does not fit, models are left out, but no fewer than `FEWEST_MODELS` are shown.
3. Where that does not suffice, cases are left out: those with the best scores.

What a voxel takes is first guessed (`IMAGE_BYTES`, `MAP_BYTES`, measured on CHAOS and OpenKBP) and then seen on a few
cases (`refitted`). Where the others turn out larger, `within_budget` leaves out the last of them.

Image and maps are cut to the box around all that a map marks, with a margin, and brought to a grid of nearly equal
voxel sizes in mm. A voxel of that grid is a block of the case's own: the image shows the mean of the block, a map the
value at its centre, so that no value appears that the map does not have.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from megavoxel.reporting.style import WIDEST

BYTES = 15_000_000
"""Size of all cases, before base64 makes four characters of three bytes: 20 MB of the page."""
IMAGE_BYTES = 0.10
"""Bytes that the intensity of a voxel takes."""
MAP_BYTES = 0.014
"""Bytes that the label of a voxel takes in one map."""
MOST_VOXELS = 1_000_000
FEWEST_VOXELS = 100_000
FEWEST_MODELS = 8
FILLED = 0.95
"""Share of the bytes that is aimed at, since cases differ."""
SURFACE = 1.5
"""Power by which voxels go with the bytes of their outlines."""
Box = tuple[slice, slice, slice]
MARGIN_MM = 10.0
COARSER = 1.02
"""Factor by which the voxel size grows until the grid is small enough."""
QUALITY = 65
"""Quality of WebP pictures, 0 to 100: of twice the window, whose faults are seen twice as large."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many cases and models the viewer shows, and how finely."""

    cases: int
    models: int
    voxels: int
    """The most of a case's grid."""


def budget_for(cases: int, models: int) -> Budget:
    """The budget of a study with so many cases and models, at least one of each."""
    fewest = min(models, FEWEST_MODELS)
    fitting = int((BYTES / cases / FEWEST_VOXELS - IMAGE_BYTES) / MAP_BYTES) - 1
    shown_models = max(fewest, min(models, fitting))
    shown_cases = max(1, min(cases, int(BYTES / (FEWEST_VOXELS * bytes_of_voxel(shown_models)))))
    voxels = min(MOST_VOXELS, int(BYTES / shown_cases / bytes_of_voxel(shown_models)))
    return Budget(cases=shown_cases, models=shown_models, voxels=voxels)


def refitted(budget: Budget, bytes_of_case: float) -> int:
    """Voxels of a case's grid by what cases took on the grid of the budget, on average.

    Outlines grow with the surface of organs and not with their volume: half the bytes need less than half the voxels.
    """
    share = FILLED * BYTES / budget.cases / bytes_of_case
    voxels = int(budget.voxels * (share if share > 1 else share**SURFACE))
    return max(1, min(MOST_VOXELS, voxels))


def bytes_of_voxel(models: int) -> float:
    """Bytes of a voxel in the image, the reference and the predictions of so many models."""
    return IMAGE_BYTES + (1 + models) * MAP_BYTES


def within_budget(sizes: Sequence[int]) -> int:
    """How many of the cases, from the first on, take no more than `BYTES` together."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total > BYTES:
            return number
    return len(sizes)


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How a case is made small."""

    box: Box
    """Voxels of the case (z, y, x) that are shown."""
    edges: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Per axis the first voxel of each block, counted in the box, and the end of the last block."""
    voxel_mm: tuple[float, float, float]
    """Mean size of a block (z, y, x)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks per axis (z, y, x)."""
        return tuple(len(ends) - 1 for ends in self.edges)


def marked_box(labels: np.ndarray) -> Box | None:
    """The smallest box (z, y, x) with everything but 0 of a map; None where there is nothing."""
    marked = labels != 0
    box = []
    for axis in range(3):
        found = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(found):
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def box_around(boxes: Sequence[Box | None], shape: Sequence[int], spacing: Sequence[float]) -> Box:
    """The box around all boxes with a margin of `MARGIN_MM`; the whole case where there is none.

    Args:
        boxes: as `marked_box` gives them.
        shape: voxels of the case (z, y, x).
        spacing: voxel size in mm (z, y, x).
    """
    found = [box for box in boxes if box is not None]
    if not found:
        return tuple(slice(0, length) for length in shape)
    margins = [math.ceil(MARGIN_MM / size) for size in spacing]
    return tuple(
        slice(
            max(0, min(box[axis].start for box in found) - margins[axis]),
            min(shape[axis], max(box[axis].stop for box in found) + margins[axis]),
        )
        for axis in range(3)
    )


def reduction_of(box: Box, spacing: Sequence[float], voxels: int) -> Reduction:
    """The finest grid of at most so many voxels; no axis gets more than the case has.

    Args:
        box: what is shown of the case (z, y, x).
        spacing: voxel size in mm (z, y, x).
        voxels: at least 1.
    """
    lengths = [part.stop - part.start for part in box]
    millimetres = [length * size for length, size in zip(lengths, spacing, strict=True)]
    size, counts = min(spacing), lengths
    while math.prod(counts) > voxels:
        size *= COARSER
        counts = [max(1, min(own, round(mm / size))) for own, mm in zip(lengths, millimetres, strict=True)]
    edges = tuple(np.arange(count + 1) * length // count for length, count in zip(lengths, counts, strict=True))
    return Reduction(
        box=box, edges=edges, voxel_mm=tuple(mm / count for mm, count in zip(millimetres, counts, strict=True))
    )


def averaged(image: np.ndarray, reduction: Reduction) -> np.ndarray:
    """The mean of each block of an image (z, y, x), as float32; voxels that are no numbers count as 0."""
    small = np.nan_to_num(image[reduction.box].astype(np.float32, copy=False))
    for axis, edges in enumerate(reduction.edges):
        lengths = np.diff(edges).reshape([-1 if other == axis else 1 for other in range(3)])
        small = np.add.reduceat(small, edges[:-1], axis=axis) / lengths.astype(np.float32)
    return small


def sampled(cut: np.ndarray, box: Box, reduction: Reduction) -> np.ndarray:
    """The value of a map at the centre of each block.

    Args:
        cut: the map (z, y, x) within `box`; outside of it, it is 0.
        box: where the cut lies in the case.
        reduction: the small grid.
    """
    places, inside = [], []
    for edges, shown, part in zip(reduction.edges, reduction.box, box, strict=True):
        centres = (edges[:-1] + edges[1:]) // 2 + shown.start - part.start
        within = (centres >= 0) & (centres < part.stop - part.start)
        places.append(centres[within])
        inside.append(np.flatnonzero(within))
    small = np.zeros(reduction.shape, cut.dtype)
    small[np.ix_(*inside)] = cut[np.ix_(*places)]
    return small


def grey(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Intensities as 0 to 255, between those that are shown black and white."""
    low, high = window
    return (np.clip((image - low) / (high - low), 0.0, 1.0) * 255).round().astype(np.uint8)


def limits_of(image: np.ndarray, window: tuple[float, float]) -> tuple[float, float]:
    """Intensities that are stored black and white, so that a reader can widen the window: twice as far apart as those
    of the window, but no farther than the image's own, and never within the window."""
    low, high = window
    margin = (high - low) / 2
    return min(low, max(low - margin, float(image.min()))), max(high, min(high + margin, float(image.max())))


def mosaic_columns(shape: Sequence[int]) -> int:
    """Slices side by side in a picture of all axial slices that is about as wide as high."""
    slices, height, width = shape
    return max(1, min(slices, WIDEST // width, math.ceil(math.sqrt(slices * height / width))))


def mosaic(volume: np.ndarray, columns: int) -> np.ndarray:
    """All axial slices of a volume (z, y, x) in one picture, row by row from the first on; what is left over is 0."""
    slices, height, width = volume.shape
    rows = math.ceil(slices / columns)
    padded = np.zeros((rows * columns, height, width), volume.dtype)
    padded[:slices] = volume
    return padded.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)


def picture_bytes(volume: np.ndarray) -> bytes:
    """The mosaic of a grey volume (z, y, x), uint8, as WebP."""
    stream = io.BytesIO()
    Image.fromarray(mosaic(volume, mosaic_columns(volume.shape))).save(stream, "WEBP", quality=QUALITY, method=4)
    return stream.getvalue()


def map_bytes(maps: Sequence[np.ndarray]) -> bytes:
    """Maps (z, y, x) of uint8 in one zlib stream, the values of a voxel beside one another: maps mostly agree there."""
    return zlib.compress(np.stack(maps, axis=-1).tobytes(), 9)
