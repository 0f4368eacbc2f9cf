"""Series of DICOM slices in a folder and those below it, each read as one volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.formats import dicom_headers as tags
from megavoxel.volumes.formats.dicom_frames import Frame, Stack, frames_of, stack_of, without_copies
from megavoxel.volumes.formats.dicom_headers import Header, read_header, starts_dicom
from megavoxel.volumes.formats.itk import LPS_TO_RAS, itk_result, simpleitk, volume_of
from megavoxel.volumes.no_scans import is_no_scan, visible_entries
from megavoxel.volumes.volume import DamagedFileError, Hints, Volume

if TYPE_CHECKING:
    from SimpleITK import Image

NO_SCANS = {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "REG", "DOC"}
"""Modalities of series that lie beside a scan and are none."""
DRAWN = {"RTSTRUCT", "SEG"}
"""Those of series with the structures that somebody drew in a scan."""
NO_IMAGES = ("9.", "11.", "66", "67", "88.", "104.", "481.", "4.2")
"""Classes of files without an image, such as raw data, reports and plans, behind the following root (PS3.4, B.5)."""
CLASSES = "1.2.840.10008.5.1.4.1.1."
DIRECTORY_NAME = "DICOMDIR"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One scan."""

    uid: str
    """SeriesInstanceUID."""
    headers: tuple[Header, ...]
    """What its files say, in no order."""
    folder: Path
    """In which it was looked for."""

    def __str__(self) -> str:
        """A series in one line, for messages."""
        description = self.headers[0].elements.text(tags.DESCRIPTION) or "no description"
        return f"{self.uid} ({self.modality}, {len(self.headers)} files, {description})"

    @property
    def modality(self) -> str:
        """CT, MR, PT, …"""
        return self.headers[0].elements.text(tags.MODALITY)

    @property
    def frame_of_reference(self) -> str:
        """UID that all series share whose places are in the same coordinates; empty where it is not stated."""
        return self.headers[0].elements.text(tags.FRAME_OF_REFERENCE)

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """Its slices, in no order, each once.

        Raises:
            UserError: a file is damaged, has colours, or has many slices in one picture.
        """
        for header in self.headers:
            _require_slices(header, self.folder)
        return tuple(without_copies([frame for header in self.headers for frame in frames_of(header)]))

    def stack(self, hints: Hints = Hints()) -> Stack:  # noqa: B008
        """Its slices in their order, and their grid; raises as `stack_of`."""
        return stack_of(self.frames, f"{self.folder}: series {self.uid}", hints)


def open_dicom(folder: Path, hints: Hints) -> Volume:
    """Opens the one series below a folder, or the one that `hints` names, by the headers of its files.

    Raises:
        UserError: as `chosen_series` and `stack_of`.
    """
    return volume_of_series(chosen_series(folder, hints.series), hints)


def volume_of_series(series: Series, hints: Hints = Hints()) -> Volume:  # noqa: B008
    """A series as a volume whose voxels have not been read; raises as `stack_of`."""
    stack = series.stack(hints)
    rows, columns = stack.frames[0].size
    return volume_of(
        series.folder,
        (columns, rows, len(stack.frames)),
        1,
        stack.affine,
        partial(read_series, series, hints),
        modality=series.modality,
        is_oriented=stack.is_oriented,
        doubts=stack.doubts,
    )


def scans_and_structures(folder: Path, is_known: Callable[[Path], bool]) -> tuple[list[Series], list[Path]]:
    """The series of images below a folder, and the files with structures that were drawn in them (SEG, RTSTRUCT).

    Args:
        is_known: whether a file that is not DICOM may lie there.

    Raises:
        UserError: a file is damaged, or is neither DICOM nor known.
    """
    headers = [header for header in _all_headers(folder, is_known) if not header.is_directory]
    drawn = [header.path for header in headers if header.elements.text(tags.MODALITY) in DRAWN]
    return _by_series([header for header in headers if not _is_something_else(header)], folder), drawn


def dicom_folders(folder: Path) -> list[Path]:
    """A folder and those below it that hold DICOM files; hidden ones are left out."""
    files = (path for path in visible_entries(folder) if path.is_file())
    return [place for place, inside in groupby(files, key=lambda path: path.parent) if any(map(_is_dicom, inside))]


def chosen_series(folder: Path, wanted: Sequence[str]) -> Series:
    """The one series below a folder, or the one whose UID is wanted; a series may lie in several folders.

    Raises:
        UserError: there is none, or there are several and not exactly one of them is wanted; or a file is damaged, or
            is neither DICOM nor known to be something else.
    """
    found = _series_below(folder)
    if not found:
        raise UserError(f"{folder}: there is no series of images in this DICOM folder; name the folder of a scan")
    chosen = [series for series in found if series.uid in wanted] if len(found) > 1 else found
    if len(chosen) != 1:
        listing = "; ".join(map(str, found))
        raise UserError(f"{folder}: it holds {len(found)} DICOM series; choose one by --series UID: {listing}")
    return chosen[0]


def parts_of_one_series(folders: Sequence[Path]) -> list[Path]:
    """The folders among which the slices of one series are divided; empty where there are none.

    Copies of a series, or scans that were given one UID by mistake, have slices at the same places: they are no parts.
    """
    first: dict[str, list[Path]] = {}
    for folder in folders:
        for uid in set(filter(None, map(_first_uid, dicom_folders(folder)))):
            first.setdefault(uid, []).append(folder)
    return next((folders for uid, folders in first.items() if len(folders) > 1 and _are_parts(folders, uid)), [])


def _first_uid(folder: Path) -> str:
    """The series of the first file that can be read; empty where there is none."""
    for path in sorted(folder.iterdir()):
        if _is_image_file(path):
            try:
                return read_header(path).elements.text(tags.SERIES)
            except DamagedFileError:
                continue
    return ""


def read_series(series: Series, hints: Hints = Hints()) -> Image:  # noqa: B008
    """The volume of a series, in the units of its rescale slopes and intercepts (HU of CT).

    Raises:
        UserError: a file is damaged or has colours, or as `stack_of`.
    """
    itk, stack = simpleitk(), series.stack(hints)
    frames = stack.frames
    files = list(dict.fromkeys(str(frame.path) for frame in frames))
    is_as_stored = len({(frame.scale, frame.stored) for frame in frames}) == 1
    is_in_order = [frame.index for frame in frames] == list(range(len(frames)))
    if is_as_stored and (len(files) == len(frames) or (len(files) == 1 and is_in_order)):
        image = itk_result(series.folder, lambda: itk.ReadImage(files if len(files) > 1 else files[0]))
    else:
        kind = None if is_as_stored else np.float32
        image = itk_result(series.folder, lambda: itk.JoinSeries(_slices(frames, kind)))
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 3:
        raise UserError(f"{series.folder}: series {series.uid} is no volume of grey values; choose another by --series")
    if image.GetSize() != (*frames[0].size[::-1], len(frames)):
        raise DamagedFileError(f"{series.folder}: series {series.uid}: its pixels are not those that its headers state")
    sides = np.linalg.norm(stack.affine[:3, :3], axis=0)
    image.SetSpacing(sides.tolist())
    image.SetDirection((LPS_TO_RAS @ stack.affine[:3, :3] / sides).ravel().tolist())
    image.SetOrigin((LPS_TO_RAS @ stack.affine[:3, 3]).tolist())
    return image


def _slices(frames: Sequence[Frame], kind: type | None) -> list[Image]:
    """Slices as images of two axes, each by its own file and rescale slope; `kind` is their dtype, or that stored."""
    itk = simpleitk()
    arrays = {path: itk.GetArrayFromImage(itk.ReadImage(str(path))) for path in {frame.path for frame in frames}}
    first = {frame.path: frame.scale for frame in frames if frame.index == 0}
    slices = (_rescaled(arrays[frame.path].reshape(-1, *frame.size), frame, first[frame.path]) for frame in frames)
    return [itk.GetImageFromArray(voxels.astype(kind or voxels.dtype, copy=False)) for voxels in slices]


def _rescaled(array: np.ndarray, frame: Frame, scale: tuple[float, float]) -> np.ndarray:
    """A frame by its own slope and intercept: ITK takes those of the first frame, `scale`, for all of a file.

    Raises:
        UserError: these do not lead back to what is stored.
    """
    voxels = array[frame.index]
    if frame.scale == scale:
        return voxels
    stored = (voxels.astype(np.float64) - scale[1]) / (scale[0] or np.nan)
    if not np.allclose(stored, np.round(stored), atol=1e-3):
        raise UserError(f"{frame.path}: the rescale slopes of its frames differ, and cannot be applied; convert it")
    return np.round(stored) * frame.scale[0] + frame.scale[1]


def _series_below(folder: Path) -> list[Series]:
    headers = _all_headers(folder, is_no_scan)
    return _by_series([one for one in headers if not one.is_directory and not _is_something_else(one)], folder)


def _by_series(headers: Sequence[Header], folder: Path) -> list[Series]:
    found: dict[str, list[Header]] = {}
    for header in headers:
        found.setdefault(header.elements.text(tags.SERIES), []).append(header)
    return [Series(uid=uid, headers=tuple(headers), folder=folder) for uid, headers in found.items()]


def _are_parts(folders: Sequence[Path], uid: str) -> bool:
    """Whether no two folders have slices of a series at one place; what cannot be read is told when it is opened."""
    try:
        series = [one for folder in folders for one in _series_below(folder) if one.uid == uid]
        places = [{frame.position or frame.number for frame in one.frames} for one in series]
    except UserError:
        return False
    return sum(map(len, places)) == len(set().union(*places))


def _require_slices(header: Header, folder: Path) -> None:
    """Refuses a file whose pixels are missing, have colours, or are many slices in one picture."""
    elements, uid = header.elements, header.elements.text(tags.SERIES)
    if "MOSAIC" in elements.text(tags.IMAGE_TYPE).split("\\"):
        # Siemens puts all slices of a volume into one picture, which reads like one large slice.
        raise UserError(
            f"{folder}: series {uid} is stored as mosaics, many slices in each picture; convert it to NIfTI, for "
            "example by dcm2niix, and label that"
        )
    if not header.has_pixels or 0 in (elements.short(tags.ROWS), elements.short(tags.COLUMNS)):
        raise DamagedFileError(
            f"{header.path}: this slice has no pixels; the file is damaged or truncated: copy it again"
        )
    if elements.short(tags.SAMPLES) > 1:
        raise UserError(f"{folder}: series {uid} has colours; expected grey values: choose another one by --series UID")


def _all_headers(folder: Path, is_known: Callable[[Path], bool]) -> Iterator[Header]:
    """The headers of all DICOM files below a folder.

    Raises:
        UserError: a file is damaged, or is neither DICOM nor known to be something else.
    """
    for path in visible_entries(folder):
        if not _is_image_file(path):
            if not is_known(path):
                raise DamagedFileError(
                    f"{path}: it lies among the slices of a scan and is none that can be read (an empty or damaged "
                    "file, or a link to nothing): bring it again, or move it away if it does not belong to the scan"
                )
            continue
        yield read_header(path)


def _is_something_else(header: Header) -> bool:
    """Whether a file is of a modality or class that lies beside scans and has no image to label."""
    if header.elements.text(tags.MODALITY) in NO_SCANS:
        return True
    stored = header.elements.text(tags.CLASS)
    is_makers_own = bool(stored) and not stored.startswith(CLASSES)
    return not header.has_pixels and (is_makers_own or stored.removeprefix(CLASSES).startswith(NO_IMAGES))


def _is_dicom(path: Path) -> bool:
    return path.name.upper() == DIRECTORY_NAME or _is_image_file(path)


def _is_image_file(path: Path) -> bool:
    return path.name.upper() != DIRECTORY_NAME and path.is_file() and starts_dicom(path)
