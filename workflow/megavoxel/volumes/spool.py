"""Volumes of a case as compressed arrays on disk, turned to any order of axes, from which boxes are read.

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
from megavoxel.volumes.checks import Intensities
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.masks import Box
from megavoxel.volumes.slabs import FileSlab, Place, scratch_array, slab_axis
from megavoxel.volumes.volume import Volume


@dataclass(frozen=True, kw_only=True)
class SpooledImage:
    """An image on disk."""

    array: blosc2.NDArray
    """float32 (channels, three axes)."""
    box: Box
    """Per axis the first voxel in which any channel differs from 0, and the first one behind the last of them."""
    geometry: Geometry
    """The grid of the first file."""
    intensities: Intensities
    """What was seen of its voxels on the way."""


def spool_image(volumes: Sequence[Volume], transpose: Sequence[int], target: Path) -> SpooledImage:
    """Reads the files of an image once, slab by slab.

    Args:
        volumes: one with all channels, or one per channel.
        transpose: axis n of the array is canonical axis transpose[n].
        target: the array's file.

    Raises:
        UserError: a file cannot be read, or the files have different shapes.
    """
    shapes = [volume.shape for volume in volumes]
    if len({shape[1:] for shape in shapes}) > 1:
        raise UserError(
            f"{volumes[0].path}: the other channels have other shapes; run 'megavoxel check' on the dataset"
        )
    geometry = volumes[0].geometry
    space = [shapes[0][1 + axis] for axis in transpose]
    axis = list(transpose).index(slab_axis(geometry)[0])
    channels = sum(shape[0] for shape in shapes)
    array = scratch_array(target, (channels, *space), np.float32, axis=axis)
    occupied, seen = [np.zeros(size, dtype=bool) for size in space], Intensities(channels)
    first = 0
    for volume in volumes:
        for slab in volume.image_slabs():
            place, voxels = _turned(slab, transpose)
            _note_nonzero(occupied, place, voxels)
            seen.add(first + slab.channel, voxels)
            with writing(target):
                array[(first + slab.channel, *place)] = voxels
        first += volume.channels
    return SpooledImage(array=array, box=_box(occupied), geometry=geometry, intensities=seen)


def spool_labels(volume: Volume, transpose: Sequence[int], target: Path) -> blosc2.NDArray:
    """Reads a label map once, slab by slab, to a uint16 array on disk (three axes as for `spool_image`).

    Raises:
        UserError: the file cannot be read, or is no label map.
    """
    space = [volume.geometry.canonical_shape[axis] for axis in transpose]
    axis = list(transpose).index(slab_axis(volume.geometry)[0])
    array = scratch_array(target, space, np.uint16, axis=axis)
    for slab in volume.label_slabs():
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
