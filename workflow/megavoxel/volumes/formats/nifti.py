"""NIfTI files: .nii and .nii.gz."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from megavoxel.errors import UserError
from megavoxel.volumes.grid import assumed_affine, geometry_of
from megavoxel.volumes.volume import Format, Hints, Planes, Volume, unreadable
from megavoxel.volumes.write import compressed_file

MOST_RATIO = {".nii": 1, ".nii.gz": 1032}
"""Bytes of voxels that a byte of a file can stand for, by suffix; 1032 is the most that deflate can do (zlib.net)."""
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


def load_nifti(path: Path, *, keep_open: bool = False) -> nibabel.Nifti1Image:
    """Opens a file without reading its voxels.

    Args:
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


def on_stated_grid(array: np.ndarray, source: Path) -> nibabel.Nifti1Image:
    """A NIfTI image of an array (i, j, k, …) on the grid that another file's header states, orientation codes of 0
    included."""
    header = nibabel.load(source).header
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((*header.get_zooms()[:3], *(1.0,) * (array.ndim - 3)))
    return image


def _open(path: Path, hints: Hints) -> Volume:
    file = load_nifti(path)
    is_oriented = bool(file.header["sform_code"] or file.header["qform_code"])
    assumes = not is_oriented and hints.orientation is not None
    affine = assumed_affine(path, file.header.get_zooms()[:3], hints.orientation) if assumes else file.affine
    has_channel_axis = len(file.shape) == 4
    return Volume(
        path=path,
        geometry=geometry_of(file.shape[:3], affine, path),
        channels=file.shape[3] if has_channel_axis else 1,
        voxels=partial(_voxels, file, path),
        begin=partial(_begin, path),
        has_channel_axis=has_channel_axis,
        is_oriented=is_oriented,
        cut=partial(_cut, path),
        write_labels=None if is_oriented else partial(_write_on_stated_grid, path),
    )


def _voxels(file: nibabel.Nifti1Image, path: Path, kind: type | None) -> np.ndarray:
    try:
        return np.asarray(file.dataobj, dtype=kind).reshape(file.shape)  # nibabel gives an empty array a single axis
    except UNREADABLE as fault:
        raise unreadable(path, fault) from None


def _begin(path: Path) -> Planes:
    file = load_nifti(path, keep_open=True)

    def planes(span: slice, channel: int) -> np.ndarray:
        try:
            voxels = file.dataobj[(..., span, channel) if len(file.shape) == 4 else (..., span)]
        except UNREADABLE as fault:
            raise unreadable(path, fault) from None
        return voxels.reshape((*file.shape[:2], span.stop - span.start))  # nibabel gives an empty array a single axis

    return planes


def _cut(path: Path, boxes: Sequence[tuple[Sequence[slice], Path]]) -> None:
    """Writes boxes with the stored numbers, their type and scaling, and the rest of the header; one is in memory."""
    whole = load_nifti(path)
    stored = whole.dataobj
    unscaled = ArrayProxy(str(path), (stored.shape, stored.dtype, stored.offset))
    for box, target in boxes:
        try:
            voxels = np.asarray(unscaled[tuple(box)])
        except UNREADABLE as fault:
            raise unreadable(path, fault) from None
        part = type(whole)(voxels, whole.slicer.slice_affine(tuple(box)), whole.header)
        if (stored.slope, stored.inter) != (1, 0):
            part.header.set_slope_inter(stored.slope, stored.inter)
        _keep_codes(whole.header, part.header, [side.start for side in box])
        part.to_filename(target)


def _keep_codes(whole: nibabel.Nifti1Header, part: nibabel.Nifti1Header, start: Sequence[int]) -> None:
    """Gives a box both affines of its volume, moved, with what their codes say: programs differ in which they read.

    A box whose volume has neither keeps the one that it was made with.
    """
    moved = np.eye(4)
    moved[:3, 3] = start
    for form in ("qform", "sform"):
        affine, code = getattr(whole, f"get_{form}")(coded=True)
        if affine is not None:
            getattr(part, f"set_{form}")(affine @ moved, int(code))


def _write_on_stated_grid(source: Path, path: Path, labels: np.ndarray) -> None:
    with compressed_file(path) as compressed:
        on_stated_grid(labels, source).to_stream(compressed)


def _require_room(file: nibabel.Nifti1Image, path: Path) -> None:
    """Refuses a header that claims more voxels than the file can hold, before anybody makes room for them."""
    most = next((ratio for suffix, ratio in MOST_RATIO.items() if str(path).endswith(suffix)), math.inf)
    # An axis of no voxels does not make a huge one beside it smaller: work goes along each.
    claimed = math.prod(max(1, int(size)) for size in file.shape) * file.get_data_dtype().itemsize
    room = Path(path).stat().st_size * most
    if claimed > room:
        raise ValueError(f"its header claims {claimed} bytes of voxels, which is more than the file can hold")


FORMATS = (Format(suffixes=(".nii.gz", ".nii"), open=_open),)
