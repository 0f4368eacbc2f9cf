"""NIfTI files and the one orientation in which everything else works.

Arrays are held in *canonical order*: axes (z, y, x) of the closest RAS+ orientation, so that axis 0 runs from
inferior to superior, axis 1 from posterior to anterior, axis 2 from left to right. Multi-channel images have the
channel first. `restore` brings a canonical label map back to the voxels of the file it came from.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from megavoxel.errors import UserError
from megavoxel.files import atomic_path

CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
MOST_RATIO = {".nii": 1, ".nii.gz": 1032}
"""By suffix, bytes that a byte of a file can stand for; 1032 is the most that deflate can do (zlib.net)."""
NUMBERS = "biuf"
"""NumPy's kinds of types that are one real number."""
UNREADABLE = (
    EOFError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    zlib.error,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
)


class DamagedFileError(UserError):
    """A file that cannot be read at all; other faults of its content are plain `UserError`s."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The grid of a file as it lies on disk: three axes in the file's order (not canonical)."""

    shape: tuple[int, int, int]
    """Voxels per axis of the file."""
    affine: np.ndarray
    """4 x 4, voxel index of the file to mm in RAS+."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm in canonical order (z, y, x)."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(sizes[axis]) for axis in self._file_axes())

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels per axis in canonical order (z, y, x)."""
        return tuple(int(self.shape[axis]) for axis in self._file_axes())

    def _file_axes(self) -> list[int]:
        orientation = io_orientation(self.affine)[:, 0].astype(int)
        return [int(np.flatnonzero(orientation == world)[0]) for world in (2, 1, 0)]

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A file's array (i, j, k, ...) as (..., z, y, x); a view where possible."""
        turned = apply_orientation(array, io_orientation(self.affine))
        return np.moveaxis(turned, [0, 1, 2], [-1, -2, -3])

    def restore(self, array: np.ndarray) -> np.ndarray:
        """A canonical array (z, y, x) in the order of the file (i, j, k); a view where possible."""
        back = ornt_transform(CANONICAL, io_orientation(self.affine))
        return apply_orientation(np.transpose(array, (2, 1, 0)), back)


def read_geometry(path: Path) -> Geometry:
    """The grid of a NIfTI file, from its header alone.

    Raises:
        UserError: the file cannot be read, or its affine is singular.
    """
    return geometry_of(open_nifti(path), path)


def read_image(path: Path) -> tuple[np.ndarray, Geometry]:
    """A NIfTI image as float32 (channels, z, y, x) in canonical order, and its grid.

    A 3D file gives one channel, a 4D file one channel per volume.

    Raises:
        UserError: the file is missing, truncated, or neither 3D nor 4D.
    """
    file = open_nifti(path)
    geometry = geometry_of(file, path)
    array = geometry.to_canonical(voxels_of(file, path, np.float32))
    return (array[np.newaxis] if array.ndim == 3 else array), geometry


def read_labels(path: Path) -> tuple[np.ndarray, Geometry]:
    """A NIfTI label map (z, y, x) in canonical order, and its grid; integer where the file's values are whole numbers.

    Raises:
        UserError: the file is missing, truncated, not 3D, or holds values that are not whole numbers from 0 to 65535.
    """
    file = open_nifti(path)
    geometry = geometry_of(file, path)
    array = voxels_of(file, path)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise UserError(f"{path}: a label map must have three axes, this file has shape {array.shape}")
    return geometry.to_canonical(whole_numbers(array, path)), geometry


def write_labels(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Writes a canonical label map (z, y, x) on the grid of `geometry`, whole or not at all; same input, same bytes."""
    kind = label_type(labels.max(initial=0))
    write_nifti(path, geometry.restore(labels).astype(kind), geometry.affine)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Writes an array in the file's own axis order as .nii.gz in mm, whole or not at all; same input, same bytes."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
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


def unreadable(path: Path, fault: Exception) -> DamagedFileError:
    """The error for a file whose content breaks off or makes no sense."""
    if isinstance(fault, FileNotFoundError):
        return DamagedFileError(f"{path}: no such file")
    detail = " ".join(str(fault).split())
    return DamagedFileError(
        f"{path}: cannot be read to its end ({detail}); the file is damaged or truncated: copy it again"
    )


def open_nifti(path: Path, *, keep_open: bool = False) -> nibabel.Nifti1Image:
    """Opens a file without reading its voxels.

    Args:
        path: the file.
        keep_open: whether parts that are read one after the other go on where the last one ended, in a gzip file too.

    Raises:
        UserError: the file is missing, damaged, neither 3D nor 4D, or has colours or complex numbers.
    """
    try:
        file = nibabel.load(path, keep_file_open=True) if keep_open else nibabel.load(path)
        _require_room(file, path)
    except UNREADABLE as fault:
        raise unreadable(path, fault) from None
    if len(file.shape) not in (3, 4):
        raise UserError(f"{path}: expected three axes, or four with the channels last; the file has shape {file.shape}")
    if file.get_data_dtype().kind not in NUMBERS:
        stored = "colours" if file.get_data_dtype().names else f"values of type {file.get_data_dtype()}"
        raise UserError(f"{path}: its voxels are {stored}; expected one real number per voxel and channel")
    return file


def _require_room(file: nibabel.Nifti1Image, path: Path) -> None:
    """Refuses a header that claims more voxels than the file can hold, before anybody makes room for them."""
    most = next((ratio for suffix, ratio in MOST_RATIO.items() if str(path).endswith(suffix)), math.inf)
    # An axis of no voxels does not make a huge one beside it smaller: work goes along each.
    claimed = math.prod(max(1, int(size)) for size in file.shape) * file.get_data_dtype().itemsize
    room = Path(path).stat().st_size * most
    if claimed > room:
        raise ValueError(f"its header claims {claimed} bytes of voxels, which is more than the file can hold")


def voxels_of(file: nibabel.Nifti1Image, path: Path, kind: type | None = None) -> np.ndarray:
    """The array of an opened file (i, j, k, …), of a type or as its header says.

    Raises:
        UserError: the file breaks off.
    """
    try:
        return np.asarray(file.dataobj, dtype=kind).reshape(file.shape)  # nibabel gives an empty array a single axis
    except UNREADABLE as fault:
        raise unreadable(path, fault) from None


def geometry_of(file: nibabel.Nifti1Image, path: Path) -> Geometry:
    """The grid of an opened file.

    Raises:
        UserError: its affine is singular.
    """
    affine = np.asarray(file.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.isnan(io_orientation(affine)).any():
        raise UserError(f"{path}: the affine of its header is singular or not finite; write the file with a valid one")
    return Geometry(shape=tuple(int(size) for size in file.shape[:3]), affine=affine)


def label_type(largest: int) -> type:
    """The smaller of uint8 and uint16 that holds a label map whose largest value is `largest`."""
    return np.uint8 if largest < 256 else np.uint16


def whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """Values of a label map as uint8, or uint16 where needed.

    Raises:
        UserError: one of them is not a whole number from 0 to 65535.
    """
    if array.size == 0:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"{path}: the label map holds NaN or infinity; labels are whole numbers from 0 to 65535")
        if (array != np.round(array)).any():
            odd = array[array != np.round(array)][0]
            raise UserError(f"{path}: the label map holds {odd:g}; labels are whole numbers from 0 to 65535")
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise UserError(
            f"{path}: the label map holds {low if low < 0 else high:g}; labels are whole numbers from 0 to 65535"
        )
    return array.astype(label_type(high))
