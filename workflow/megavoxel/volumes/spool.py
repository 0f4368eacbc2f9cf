"""Files of a case as compressed arrays on disk, turned to any order of axes, from which boxes are read.

What is read from a file comes in the order of the file; what is done with it goes by blocks of another shape, and more
than once. In between the voxels lie on disk, so that neither needs the volume in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.errors import UserError
from megavoxel.files import writing
from megavoxel.volumes.crop import Box
from megavoxel.volumes.nifti import Geometry, read_geometry
from megavoxel.volumes.slabs import (
    FileSlab,
    Place,
    read_image_slabs,
    read_label_slabs,
    scratch_array,
    slab_axis,
    stored_shape,
)


@dataclass(frozen=True, kw_only=True)
class SpooledImage:
    """An image on disk."""

    array: blosc2.NDArray
    """float32 (channels, three axes)."""
    box: Box
    """Per axis the first voxel in which any channel differs from 0, and the first one behind the last of them."""
    geometry: Geometry
    """The grid of the first file."""


def spool_image(paths: Sequence[Path], transpose: Sequence[int], target: Path) -> SpooledImage:
    """Reads the files of an image once, slab by slab.

    Args:
        paths: one file (3D, or 4D with the channels last) or one file per channel.
        transpose: axis n of the array is canonical axis transpose[n].
        target: the array's file.

    Raises:
        UserError: a file cannot be read, or the files have different shapes.
    """
    shapes = [stored_shape(path) for path in paths]
    if len({shape[1:] for shape in shapes}) > 1:
        raise UserError(f"{paths[0]}: the other channels have other shapes; run 'megavoxel check' on the dataset")
    geometry = read_geometry(paths[0])
    space = [shapes[0][1 + axis] for axis in transpose]
    axis = list(transpose).index(slab_axis(geometry)[0])
    array = scratch_array(target, (sum(shape[0] for shape in shapes), *space), np.float32, axis=axis)
    occupied = [np.zeros(size, dtype=bool) for size in space]
    first = 0
    for path, shape in zip(paths, shapes, strict=True):
        for slab in read_image_slabs(path):
            place, voxels = _turned(slab, transpose)
            _note_nonzero(occupied, place, voxels)
            with writing(target):
                array[(first + slab.channel, *place)] = voxels
        first += shape[0]
    return SpooledImage(array=array, box=_box(occupied), geometry=geometry)


def spool_labels(path: Path, transpose: Sequence[int], target: Path) -> blosc2.NDArray:
    """Reads a label map once, slab by slab, to a uint16 array on disk (three axes as for `spool_image`).

    Raises:
        UserError: the file cannot be read, or is no label map.
    """
    geometry = read_geometry(path)
    space = [geometry.canonical_shape[axis] for axis in transpose]
    axis = list(transpose).index(slab_axis(geometry)[0])
    array = scratch_array(target, space, np.uint16, axis=axis)
    for slab in read_label_slabs(path):
        place, voxels = _turned(slab, transpose)
        with writing(target):
            array[place] = voxels.astype(np.uint16, copy=False)
    return array


def _turned(slab: FileSlab, transpose: Sequence[int]) -> tuple[Place, np.ndarray]:
    return tuple(slab.place[axis] for axis in transpose), np.ascontiguousarray(slab.voxels.transpose(transpose))


def _note_nonzero(occupied: Sequence[np.ndarray], place: Place, voxels: np.ndarray) -> None:
    """Marks, per axis, the planes of a slab in which any voxel differs from 0."""
    mask = voxels != 0
    plane = mask.any(axis=0)
    for axis, found in enumerate((mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))):
        occupied[axis][place[axis]] |= found


def _box(occupied: Sequence[np.ndarray]) -> Box:
    if not occupied[0].any():
        return tuple((0, len(planes)) for planes in occupied)
    ends = [np.flatnonzero(planes)[[0, -1]] for planes in occupied]
    return tuple((int(first), int(last) + 1) for first, last in ends)
