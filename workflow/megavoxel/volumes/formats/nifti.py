"""NIfTI files: .nii and .nii.gz."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.imageglobals import logger

from megavoxel.errors import UserError
from megavoxel.volumes.formats.packed import whole_stream
from megavoxel.volumes.grid import MILLIMETRES, Geometry, assumed_affine, geometry_of, shown_sizes
from megavoxel.volumes.volume import Format, Hints, Planes, Volume, unreadable
from megavoxel.volumes.write import compressed_file

MOST_RATIO = {".nii": 1, ".nii.gz": 1032}
"""Bytes of voxels that a byte of a file can stand for, by suffix; 1032 is the most that deflate can do (zlib.net)."""
NUMBERS = "biuf"
"""NumPy's kinds of types that are one real number."""
GZIP_MAGIC = b"\x1f\x8b"
ROUNDED_TURN = 1e-4
"""By how much the square of a quaternion's stored part may be above 1, from rounding; ITK and FSL have no limit."""
ONE_WAY = 0.5
"""Least cosine between an axis by the sform and by the qform where both have one code; 1 but for rounding is sound."""
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
logger.disabled = True  # nibabel's lines on mended headers do not name the file; what matters of them is checked here


class _RoundedTurn:
    """Takes the quaternion of a half turn that rounding made a little too long, which nibabel refuses."""

    def get_qform_quaternion(self) -> np.ndarray:
        stored = np.array([self[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
        square = float(stored @ stored)
        if 1 < square < 1 + ROUNDED_TURN:
            return np.array([0.0, *(stored / math.sqrt(square))])
        return super().get_qform_quaternion()


class _Header1(_RoundedTurn, nibabel.Nifti1Header):
    pass


class _Header2(_RoundedTurn, nibabel.Nifti2Header):
    pass


class _Image1(nibabel.Nifti1Image):
    header_class = _Header1


class _Image2(nibabel.Nifti2Image):
    header_class = _Header2


KINDS = {348: _Image1, 540: _Image2}
"""By the length of the header, with which a file begins."""


def load_nifti(path: Path) -> nibabel.Nifti1Image:
    """Opens a file without reading its voxels.

    Raises:
        UserError: the file is missing, damaged, named for another compression, neither 3D nor 4D, or has colours or
            complex numbers.
    """
    try:
        _require_compression(path)
        kind = KINDS[len(_raw_header(path).binaryblock)]
        file = kind.from_filename(path)
        _require_room(file, path)
    except (*UNREADABLE, MemoryError) as fault:  # no voxel is read yet: it is the header's parts that claim too much
        raise unreadable(path, fault) from None
    if len(file.shape) < 3 or sum(size > 1 for size in file.shape[3:]) > 1:
        raise UserError(f"{path}: expected three axes, or four with the channels last; the file has shape {file.shape}")
    if file.get_data_dtype().kind not in NUMBERS:
        stored = "colours" if file.get_data_dtype().names else f"values of type {file.get_data_dtype()}"
        raise UserError(f"{path}: its voxels are {stored}; expected one real number per voxel and channel")
    return file


def image_on(array: np.ndarray, geometry: Geometry, *, is_oriented: bool) -> nibabel.Nifti1Image:
    """A NIfTI image of an array (i, j, k, …) on a file's grid in its unit; with codes of 0 where it is not oriented."""
    image = nibabel.Nifti1Image(array, geometry.affine if is_oriented else None)
    if not is_oriented:
        sides = np.linalg.norm(geometry.affine[:3, :3], axis=0)
        image.header.set_zooms((*sides, *(1.0,) * (array.ndim - 3)))
    image.header.set_xyzt_units(geometry.unit or "mm")
    return image


def _open(path: Path, hints: Hints) -> Volume:
    file = load_nifti(path)
    is_oriented = bool(file.header["sform_code"] or file.header["qform_code"])
    geometry = geometry_of(file.shape[:3], _affine(file, path, hints, is_oriented=is_oriented), path, _unit(file))
    has_channel_axis = len(file.shape) > 3
    writes = partial(write_on_grid, geometry, is_oriented=is_oriented)
    return Volume(
        path=path,
        geometry=geometry,
        channels=math.prod(file.shape[3:]),
        voxels=partial(_voxels, file, path),
        begin=partial(_begin, file, path),
        has_channel_axis=has_channel_axis,
        is_oriented=is_oriented,
        cut=partial(_cut, path),
        write_labels=None if is_oriented and geometry.unit in (None, "mm") else writes,
    )


def _affine(file: nibabel.Nifti1Image, path: Path, hints: Hints, *, is_oriented: bool) -> np.ndarray:
    """4 x 4, by the sform, else by qform and voxel size, else by the voxel size alone.

    Raises:
        UserError: a voxel size that counts is zero or not finite, and `hints` has none; or sform and qform contradict
            one another.
    """
    _require_one_place(file.header, path)
    stated = _raw_header(path)["pixdim"][1:4]
    if not file.header["sform_code"] and not (np.isfinite(stated) & (stated != 0)).all():
        if hints.sides is None:
            raise UserError(
                f"{path}: its header states voxels of {shown_sizes(stated)} mm; write it with its voxel size, or, to "
                "predict, give that in mm along the axes i, j, k: --assume-spacing X Y Z"
            )
        file.header.set_zooms((*hints.sides, *file.header.get_zooms()[3:]))
    if not is_oriented and hints.orientation is not None:
        return assumed_affine(path, file.header.get_zooms()[:3], hints.orientation)
    return file.header.get_best_affine()


def _require_one_place(header: nibabel.Nifti1Header, path: Path) -> None:
    """Refuses a sform and a qform of which one is the other's mirror image, or that turn what has one code differently.

    A sform of another code than the qform, such as that of an atlas, may be turned, moved and stretched.

    Raises:
        UserError: they contradict one another, so that programs differ in where they put the scan.
    """
    try:
        with np.errstate(invalid="ignore"):  # a voxel size that is no number
            (sform, code), (qform, other_code) = header.get_sform(coded=True), header.get_qform(coded=True)
    except nibabel.spatialimages.HeaderDataError:  # its quaternion is no rotation: only the sform counts
        return
    if sform is None or qform is None or not np.isfinite([sform, qform]).all():
        return
    axes, other_axes = sform[:3, :3], qform[:3, :3]
    lengths = np.linalg.norm(axes, axis=0) * np.linalg.norm(other_axes, axis=0)
    is_mirrored = np.linalg.det(axes) * np.linalg.det(other_axes) < 0
    if is_mirrored or (code == other_code and ((axes * other_axes).sum(axis=0) < ONE_WAY * lengths).any()):
        raise UserError(
            f"{path}: its sform and its qform contradict one another, so left and right may be exchanged; find out "
            "which one is right, and set the code of the other one to 0"
        )


def _unit(file: nibabel.Nifti1Image) -> str | None:
    """What the header says of lengths; None where it says nothing, or nothing that makes sense."""
    try:
        unit = file.header.get_xyzt_units()[0]
    except KeyError:
        return None
    return unit if unit in MILLIMETRES else None


def _raw_header(path: Path) -> nibabel.Nifti1Header:
    """The header as it is stored, with nothing of it mended."""
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as source:
        block = source.read(max(KINDS))
    length = _kind_of(block)
    if length is None:
        raise ValueError("it does not begin with the length of a NIfTI header")
    if len(block) < length:
        raise ValueError("it ends within its header")
    return KINDS[length].header_class(block[:length], check=False)


def _kind_of(block: bytes) -> int | None:
    """The length of a header, with which it begins in one of both orders of bytes; None: it is none."""
    stated = (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    return next((length for length in KINDS if length in stated), None)


def _require_compression(path: Path) -> None:
    """Refuses a file whose name says another compression than it has."""
    with path.open("rb") as source:
        head = source.read(4)
    is_compressed, is_called_so = head.startswith(GZIP_MAGIC), path.name.lower().endswith(".gz")
    if is_compressed and not is_called_so:
        raise UserError(f"{path}: it is compressed, which its name does not say: rename it to {path.name}.gz")
    if is_called_so and _kind_of(head) is not None:
        raise UserError(f"{path}: it is not compressed, though its name says so: rename it to {path.name[:-3]}")


@contextmanager
def _stored(file: nibabel.Nifti1Image, path: Path, *, scaled: bool = True) -> Iterator[ArrayProxy]:
    """The voxels of a file, best read in their order; what the block does not read of the file is read after it.

    Args:
        scaled: whether they are what the stored numbers mean by the header's slope and intercept.

    Raises:
        UserError: the file is damaged or cut.
    """
    header = file.dataobj
    length = header.offset + math.prod(header.shape) * header.dtype.itemsize
    try:
        with whole_stream(path, length) as stream:
            scaling = (header.slope, header.inter) if scaled else ()
            # A disk that fails under a mapped file ends the process without a word.
            yield ArrayProxy(stream, (header.shape, header.dtype, header.offset, *scaling), mmap=False)
    except UNREADABLE as fault:
        raise unreadable(path, fault) from None


def _voxels(file: nibabel.Nifti1Image, path: Path, kind: type | None) -> np.ndarray:
    shape = file.shape if len(file.shape) == 3 else (*file.shape[:3], math.prod(file.shape[3:]))
    with _stored(file, path) as voxels:
        return np.asarray(voxels, dtype=kind).reshape(shape)  # nibabel gives an empty array a single axis


@contextmanager
def _begin(file: nibabel.Nifti1Image, path: Path) -> Iterator[Planes]:
    with _stored(file, path) as stored:

        def planes(span: slice, channel: int) -> np.ndarray:
            voxels = stored[(slice(None), slice(None), span, *(channel if size > 1 else 0 for size in file.shape[3:]))]
            return voxels.reshape((*file.shape[:2], span.stop - span.start))  # as above

        yield planes


def _cut(path: Path, boxes: Sequence[tuple[Sequence[slice], Path]]) -> None:
    """Writes boxes with the stored numbers, their type and scaling, and the rest of the header; one is in memory."""
    whole = load_nifti(path)
    for box, target, voxels in _parts(whole, path, boxes):
        moved = np.eye(4)
        moved[:3, 3] = [side.start for side in box]
        part = type(whole)(voxels, whole.affine @ moved, whole.header)
        if (whole.dataobj.slope, whole.dataobj.inter) != (1, 0):
            part.header.set_slope_inter(whole.dataobj.slope, whole.dataobj.inter)
        _keep_codes(whole.header, part.header, moved)
        part.to_filename(target)


def _parts(
    whole: nibabel.Nifti1Image, path: Path, boxes: Sequence[tuple[Sequence[slice], Path]]
) -> Iterator[tuple[Sequence[slice], Path, np.ndarray]]:
    """The boxes with their stored numbers."""
    with _stored(whole, path, scaled=False) as stored:
        for box, target in boxes:
            yield box, target, np.asarray(stored[tuple(box)])


def _keep_codes(whole: nibabel.Nifti1Header, part: nibabel.Nifti1Header, moved: np.ndarray) -> None:
    """Gives a box both affines of its volume, moved, with what their codes say: programs differ in which they read.

    A box whose volume has neither keeps the one that it was made with.
    """
    for form in ("qform", "sform"):
        affine, code = getattr(whole, f"get_{form}")(coded=True)
        if affine is not None:
            getattr(part, f"set_{form}")(affine @ moved, int(code))


def write_on_grid(geometry: Geometry, path: Path, labels: np.ndarray, *, is_oriented: bool) -> None:
    """Writes labels (i, j, k) as NIfTI on the grid of a file, in its unit; with codes of 0 where it is not oriented."""
    with compressed_file(path) as compressed:
        image_on(labels, geometry, is_oriented=is_oriented).to_stream(compressed)


def _require_room(file: nibabel.Nifti1Image, path: Path) -> None:
    """Refuses a header that claims more voxels than the file can hold, before anybody makes room for them."""
    most = next((ratio for suffix, ratio in MOST_RATIO.items() if path.name.lower().endswith(suffix)), math.inf)
    # An axis of no voxels does not make a huge one beside it smaller: work goes along each.
    claimed = math.prod(max(1, int(size)) for size in file.shape) * file.get_data_dtype().itemsize
    room = Path(path).stat().st_size * most
    if claimed > room:
        raise ValueError(f"its header claims {claimed} bytes of voxels, which is more than the file can hold")


FORMATS = (Format(suffixes=(".nii.gz", ".nii"), open=_open),)
