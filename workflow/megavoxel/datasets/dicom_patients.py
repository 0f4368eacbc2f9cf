"""The scan of a patient among DICOM series, and the structures that were drawn in it (SEG, RTSTRUCT)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megavoxel.datasets.pairs import listed
from megavoxel.errors import UserError
from megavoxel.volumes.formats import dicom_headers as tags
from megavoxel.volumes.formats.dicom import Series, scans_and_structures
from megavoxel.volumes.formats.dicom_contours import open_contours
from megavoxel.volumes.formats.dicom_headers import read_header
from megavoxel.volumes.formats.dicom_segments import open_segments
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.no_scans import is_no_scan
from megavoxel.volumes.open import is_data_of_header, suffix_of
from megavoxel.volumes.structures import Structures


def scans_of(folder: Path, *, has_structures: bool) -> tuple[list[Series], tuple[Structures, ...]]:
    """The series of images below a patient's folder, and all that was drawn in them.

    Args:
        has_structures: whether structures are opened; files of other formats may be masks otherwise.

    Raises:
        UserError: a file is damaged, or no format of scans and not known to be something else.
    """
    scans, drawn = scans_and_structures(folder, _may_lie_beside)
    return scans, tuple(map(open_structures, sorted(drawn))) if has_structures else ()


def drawn_series(scans: Sequence[Series], structures: Sequence[Structures]) -> Series:
    """The series in which structures were drawn, or the only one there is.

    Raises:
        UserError: there is none, there are several, or structures were drawn in one that is not there, or in other
            coordinates; names all files of which this is true.
    """
    if not scans:
        raise UserError("there is no DICOM series of images")
    there = {series.uid: series for series in scans}
    stated = {one.series: one for one in structures if one.series}
    elsewhere = [one for uid, one in stated.items() if uid not in there]
    if elsewhere:
        names = "; ".join(f"{one.path.name} was drawn in the series {one.series}" for one in elsewhere)
        raise UserError(f"{names}, which is not there; there is {_shown(scans)}: bring it, or move the file away")
    chosen = [there[uid] for uid in stated] or list(scans)
    if len(chosen) > 1:
        raise UserError(f"there are {len(chosen)} images: {_shown(chosen)}; keep one of them in the folder")
    _require_coordinates(chosen[0], structures)
    return chosen[0]


def with_structures(structures: Sequence[Structures], names: str | Sequence[str], grid: Geometry) -> np.ndarray | None:
    """The voxels that lie in structures of some names, bool (i, j, k); None: there are none of these names.

    Raises:
        UserError: two files have the same structure, or it does not lie on the grid.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    found = [(one, name) for one in structures for name in one.names if name in wanted]
    files = {one.path for one, _ in found}
    if len(files) > 1:
        shown = listed(path.name for path in files)
        raise UserError(f"'{wanted[0]}' is in {len(files)} files ({shown}); keep one of them in the folder")
    masks = [one.draw(name, grid) for one, name in found]
    return np.logical_or.reduce(masks) if masks else None


def open_structures(path: Path) -> Structures:
    """Opens a SEG or RTSTRUCT file.

    Raises:
        UserError: it is damaged.
    """
    is_segments = read_header(path).elements.text(tags.MODALITY) == "SEG"
    return open_segments(path) if is_segments else open_contours(path)


def _may_lie_beside(path: Path) -> bool:
    return bool(suffix_of(path.name)) or is_no_scan(path) or is_data_of_header(path)


def _require_coordinates(series: Series, structures: Sequence[Structures]) -> None:
    own = series.frame_of_reference
    other = [one for one in structures if own and one.frame_of_reference and one.frame_of_reference != own]
    if other:
        names = "; ".join(f"{one.path.name} lies in the frame of reference {one.frame_of_reference}" for one in other)
        raise UserError(f"{names}, and the image in {own}: bring the scan that it was drawn in, or move the file away")


def _shown(scans: Sequence[Series]) -> str:
    return "; ".join(map(str, scans))
