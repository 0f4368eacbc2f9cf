"""NIfTI files slab by slab along the slowest axis on disk, for volumes that memory does not hold.

A gzip file can only be read and written from its beginning to its end, so that the file's last axis says in which
order voxels come. Slabs are handed over in canonical order, as `volumes/nifti.py` has it. Where label maps come along z
and the file's last axis is another one, or runs downwards, they are turned by way of a compressed array on disk.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import nibabel
import numpy as np
from nibabel.orientations import io_orientation

from megavoxel.errors import UserError
from megavoxel.files import writing
from megavoxel.volumes.nifti import (
    UNREADABLE,
    Geometry,
    compressed_file,
    geometry_of,
    label_type,
    open_nifti,
    unreadable,
    whole_numbers,
)

LARGE_VOXELS = 2**27
"""Voxels of a case, all channels counted, from which on its stages read and write by blocks."""
SLAB_VOXELS = 2**22
"""Most voxels of a slab, unless one plane of the file has more."""
CHUNK = (16, 256)
"""Voxels of a chunk on disk, at most: across the slabs' axis, and along each of the other two."""
BLOCK = 64
"""Voxels along an axis of a block, the part of a chunk that is unpacked on its own, at most."""

Place = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class FileSlab:
    """Some planes of one channel of a file."""

    channel: int
    place: Place
    """Where in the volume (z, y, x)."""
    voxels: np.ndarray
    """(z, y, x) in canonical order."""


def stored_shape(path: Path) -> tuple[int, int, int, int]:
    """Channels and voxels per axis (z, y, x) of a NIfTI image, from its header alone.

    Raises:
        UserError: the file cannot be read, or its affine is singular.
    """
    file = open_nifti(path)
    return (file.shape[3] if len(file.shape) == 4 else 1, *geometry_of(file, path).canonical_shape)


def read_image_slabs(path: Path) -> Iterator[FileSlab]:
    """The slabs of an image, float32, in order of the file; together they are what `read_image` gives.

    Raises:
        UserError: the file is missing, truncated, or neither 3D nor 4D.
    """
    file = open_nifti(path, keep_open=True)
    for channel, place, voxels in _slabs(file, path):
        yield FileSlab(channel=channel, place=place, voxels=voxels.astype(np.float32, copy=False))


def read_label_slabs(path: Path) -> Iterator[FileSlab]:
    """The slabs of a label map, uint8 or uint16, in order of the file; together they are what `read_labels` gives.

    Raises:
        UserError: the file is missing, truncated, not 3D, or holds values that are not whole numbers from 0 to 65535.
    """
    file = open_nifti(path, keep_open=True)
    if len(file.shape) == 4 and file.shape[3] != 1:
        raise UserError(f"{path}: a label map must have three axes, this file has shape {file.shape}")
    for channel, place, voxels in _slabs(file, path):
        yield FileSlab(channel=channel, place=place, voxels=whole_numbers(voxels, path))


def write_label_slabs(path: Path, slabs: Iterable[tuple[int, np.ndarray]], geometry: Geometry, *, largest: int) -> None:
    """Writes a label map that comes in slabs along z; the file has the bytes that `write_labels` gives it.

    Args:
        path: of the .nii.gz file, which appears whole or not at all.
        slabs: first row and labels (rows, y, x), from the first row to the last.
        geometry: the grid of the file.
        largest: largest label there may be; up to 255 the file has one byte per voxel, else two.
    """
    write_slabs(path, slabs, geometry, label_type(largest))


def write_slabs(path: Path, slabs: Iterable[tuple[int, np.ndarray]], geometry: Geometry, kind: type) -> None:
    """Writes a volume that comes in slabs along z, by way of a compressed array on disk where the file's order differs.

    Args:
        path: of the .nii.gz file, which appears whole or not at all.
        slabs: first row and voxels (rows, y, x), from the first row to the last.
        geometry: the grid of the file.
        kind: dtype of its voxels.
    """
    axis, flipped = slab_axis(geometry)
    if axis == 0 and not flipped:
        write_planes(path, (geometry.restore(rows) for _, rows in slabs), geometry, kind)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".turning-", dir=Path(path).parent) as scratch:
        shape = geometry.canonical_shape
        array = scratch_array(Path(scratch) / "volume.b2nd", shape, kind, axis=0)
        for start, rows in gathered(slabs, slab_rows(shape, 0)):
            with writing(path):
                array[start : start + len(rows)] = rows.astype(kind, copy=False)
        turned = (geometry.restore(array[place]) for place in slab_places(shape, axis, flipped=flipped))
        write_planes(path, turned, geometry, kind)


def write_planes(path: Path, planes: Iterable[np.ndarray], geometry: Geometry, kind: type) -> None:
    """Writes a volume that comes in order of the file as .nii.gz in mm, whole or not at all.

    Args:
        path: the file.
        planes: parts (i, j, some of k) in the file's own order, from its first plane to its last.
        geometry: the grid of the file.
        kind: dtype of its voxels.

    Raises:
        ValueError: there are more or fewer planes than the grid has.
    """
    image = nibabel.Nifti1Image(np.broadcast_to(np.zeros((), kind), geometry.shape), geometry.affine)
    image.header.set_xyzt_units("mm")
    image.update_header()
    image.header.set_slope_inter(1, 0)
    written = 0
    with compressed_file(path) as compressed:
        image.header.write_to(compressed)
        for part in planes:
            compressed.write(np.asarray(part, dtype=kind).tobytes(order="F"))
            written += part.shape[2]
        if written != geometry.shape[2]:
            raise ValueError(f"{path}: {written} planes were given for a grid of {geometry.shape[2]}")


def slab_axis(geometry: Geometry) -> tuple[int, bool]:
    """The canonical axis along which planes follow one another in the file, and whether the last comes first."""
    world, direction = io_orientation(geometry.affine)[2]
    return 2 - int(world), direction < 0


def slab_rows(shape: Sequence[int], axis: int) -> int:
    """Planes of a slab across `axis`: a power of two."""
    plane = math.prod(shape) // max(1, shape[axis])
    return 2 ** max(0, int(math.log2(max(1, SLAB_VOXELS // max(1, plane)))))


def slab_places(shape: Sequence[int], axis: int, *, flipped: bool = False) -> list[Place]:
    """The slabs of a volume across `axis`, each of `slab_rows` but the last; `flipped`: the last one first."""
    rows, whole = slab_rows(shape, axis), [slice(0, size) for size in shape]
    spans = [slice(start, min(shape[axis], start + rows)) for start in range(0, shape[axis], rows)]
    places = [tuple(span if number == axis else side for number, side in enumerate(whole)) for span in spans]
    return places[::-1] if flipped else places


def gathered(slabs: Iterable[tuple[int, np.ndarray]], rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """The same slabs, from row 0 on, cut anew into slabs of `rows` rows; the last one may have fewer."""
    first, held, height = 0, [], 0
    for _, slab in slabs:
        left = slab
        while len(left):
            held.append(left[: rows - height])
            left, height = left[rows - height :], height + len(held[-1])
            if height == rows:
                yield first, np.concatenate(held)
                first, held, height = first + rows, [], 0
    if held:
        yield first, np.concatenate(held)


def scratch_array(path: Path, shape: Sequence[int], kind: type, *, axis: int) -> blosc2.NDArray:
    """A compressed array on disk, zero so far, that is written in slabs across `axis` and read in any other way.

    Args:
        path: the file.
        shape: (…, three axes); leading axes have one element per chunk.
        kind: dtype.
        axis: 0, 1 or 2, among the last three.
    """
    space, lead = tuple(shape[-3:]), (1,) * (len(shape) - 3)
    most = [CHUNK[1]] * 3
    most[axis] = min(CHUNK[0], slab_rows(space, axis))
    chunks = [max(1, min(size, extent)) for size, extent in zip(space, most, strict=True)]
    blocks = [min(extent, BLOCK) for extent in chunks]
    return blosc2.zeros(
        tuple(shape), dtype=kind, urlpath=str(path), mode="w", chunks=(*lead, *chunks), blocks=(*lead, *blocks),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=1, nthreads=1), dparams=blosc2.DParams(nthreads=1),
    )  # fmt: skip


def _slabs(file: nibabel.Nifti1Image, path: Path) -> Iterator[tuple[int, Place, np.ndarray]]:
    """Channel, place and voxels (z, y, x) of each slab, in order of the file."""
    geometry = geometry_of(file, path)
    axis, flipped = slab_axis(geometry)
    shape = geometry.canonical_shape
    for channel in range(file.shape[3] if len(file.shape) == 4 else 1):
        for place in slab_places(shape, axis, flipped=flipped):
            span = place[axis]
            planes = slice(shape[axis] - span.stop, shape[axis] - span.start) if flipped else span
            try:
                voxels = file.dataobj[(..., planes, channel) if len(file.shape) == 4 else (..., planes)]
            except UNREADABLE as fault:
                raise unreadable(path, fault) from None
            whole = (*file.shape[:2], planes.stop - planes.start)  # nibabel gives an empty array a single axis
            yield channel, place, geometry.to_canonical(voxels.reshape(whole))
