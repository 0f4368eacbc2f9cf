"""Label maps and other volumes as NIfTI files: whole or not at all, and the same bytes for the same content.

A gzip file can only be written from its beginning to its end. Where a volume comes in slabs along z and the file's last
axis is another one, or runs downwards, it is turned by way of a compressed array on disk.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np

from megavoxel.files import atomic_path, scratch_directory, writing
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.slabs import gathered, scratch_array, slab_axis, slab_places, slab_rows
from megavoxel.volumes.volume import label_type


def write_labels(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Writes a canonical label map (z, y, x) on the grid of `geometry`, whole or not at all; same input, same bytes."""
    kind = label_type(labels.max(initial=0))
    write_nifti(path, geometry.restore(labels).astype(kind), geometry.affine, geometry.unit)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, unit: str | None = None) -> None:
    """Writes an array in the file's own axis order as .nii.gz, whole or not at all; same input, same bytes.

    Args:
        path: the file.
        array: its voxels.
        affine: 4 x 4, voxel index to `unit`.
        unit: as in `Geometry`; None counts as mm.
    """
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units(unit or "mm")
    with compressed_file(path) as compressed:
        image.to_stream(compressed)


@contextmanager
def compressed_file(path: Path) -> Iterator[gzip.GzipFile]:
    """A gzip stream to `path`, which appears whole or not at all; same content, same bytes."""
    with (
        atomic_path(path) as partial,
        partial.open("wb") as target,
        gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=3, mtime=0) as compressed,
    ):
        yield compressed


def write_label_slabs(path: Path, slabs: Iterable[tuple[int, np.ndarray]], geometry: Geometry, *, largest: int) -> None:
    """Writes a label map that comes in slabs along z; the file has the bytes that `write_labels` gives it.

    Args:
        path: of the .nii.gz file, which appears whole or not at all.
        slabs: first row and labels (rows, y, x), from the first row to the last.
        largest: largest label there may be; up to 255 the file has one byte per voxel, else two.
    """
    write_slabs(path, slabs, geometry, label_type(largest))


def write_slabs(path: Path, slabs: Iterable[tuple[int, np.ndarray]], geometry: Geometry, kind: type) -> None:
    """Writes a volume that comes in slabs along z, by way of a compressed array on disk where the file's order differs.

    Args:
        path: of the .nii.gz file, which appears whole or not at all.
        slabs: first row and voxels (rows, y, x), from the first row to the last.
        kind: dtype of its voxels.
    """
    axis, flipped = slab_axis(geometry)
    if axis == 0 and not flipped:
        write_planes(path, (geometry.restore(rows) for _, rows in slabs), geometry, kind)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(Path(path).parent) as scratch:
        shape = geometry.canonical_shape
        array = scratch_array(scratch / "volume.b2nd", shape, kind, axis=0)
        for start, rows in gathered(slabs, slab_rows(shape, 0)):
            with writing(path):
                array[start : start + len(rows)] = rows.astype(kind, copy=False)
        turned = (geometry.restore(array[place]) for place in slab_places(shape, axis, flipped=flipped))
        write_planes(path, turned, geometry, kind)


def write_planes(path: Path, planes: Iterable[np.ndarray], geometry: Geometry, kind: type) -> None:
    """Writes a volume that comes in order of the file as .nii.gz, whole or not at all.

    Args:
        planes: parts (i, j, some of k) in the file's own order, from its first plane to its last.
        kind: dtype of its voxels.

    Raises:
        ValueError: there are more or fewer planes than the grid has.
    """
    image = nibabel.Nifti1Image(np.broadcast_to(np.zeros((), kind), geometry.shape), geometry.affine)
    image.header.set_xyzt_units(geometry.unit or "mm")
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
