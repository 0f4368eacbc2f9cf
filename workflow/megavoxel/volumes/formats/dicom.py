"""Series of DICOM slices in a folder and those below it, each read as one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megavoxel.errors import UserError, shown
from megavoxel.volumes.formats.itk import affine_of, itk_result, simpleitk, volume_of
from megavoxel.volumes.volume import DamagedFileError, Hints, Volume

if TYPE_CHECKING:
    from SimpleITK import Image

MODALITY, DESCRIPTION, POSITION, DIRECTIONS = "0008|0060", "0008|103e", "0020|0032", "0020|0037"
IMAGE_TYPE = "0008|0008"
NO_SCANS = {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "REG", "DOC"}
"""Modalities of series that lie beside a scan and are none."""
UNEVEN = 0.1
"""Largest distance of a slice from its even place, in slices."""
PREAMBLE = 128
"""Bytes of a DICOM file before the letters DICM (DICOM PS3.10, section 7.1)."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One scan."""

    uid: str
    """SeriesInstanceUID."""
    files: tuple[Path, ...]
    """In order of the slices."""
    modality: str
    """CT, MR, PT, …"""
    description: str

    def __str__(self) -> str:
        """A series in one line, for messages."""
        return f"{self.uid} ({self.modality}, {len(self.files)} files, {self.description or 'no description'})"


def open_dicom(folder: Path, hints: Hints) -> Volume:
    """Opens the one series below a folder, or the one that `hints` names. It is read once, before it is asked for.

    Raises:
        UserError: as `chosen_series` and `read_series`.
    """
    series = chosen_series(folder, hints.series)
    held = [read_series(series)]  # what the slices together are is not known before; the first reader takes it over

    def take() -> Image:
        return held.pop() if held else read_series(series)

    image = held[0]
    return volume_of(folder, image.GetSize(), 1, affine_of(image), take, modality=series.modality)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by the letters behind its preamble."""
    try:
        with path.open("rb") as source:
            source.seek(PREAMBLE)
            return source.read(4) == b"DICM"
    except OSError:
        return False


def dicom_folders(folder: Path) -> list[Path]:
    """A folder and those below it that hold DICOM files, by the first file of each that is not hidden."""
    candidates = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    return [place for place in candidates if any(map(is_dicom, _visible_files(place)))]


def chosen_series(folder: Path, wanted: Sequence[str]) -> Series:
    """The one series below a folder, or the one whose UID is wanted.

    Raises:
        UserError: there is none, or there are several and not exactly one of them is wanted.
    """
    found = [series for place in dicom_folders(folder) for series in _series_in(place)]
    if not found:
        raise UserError(f"{folder}: there is no series of images in this DICOM folder; name the folder of a scan")
    chosen = [series for series in found if series.uid in wanted] if len(found) > 1 else found
    if len(chosen) != 1:
        listing = "; ".join(map(str, found))
        raise UserError(f"{folder}: it holds {len(found)} DICOM series; choose one by --series UID: {listing}")
    return chosen[0]


def read_series(series: Series) -> Image:
    """The volume of a series, in the units of its rescale slope and intercept (HU of CT).

    Raises:
        UserError: a file is damaged, slices are missing or not evenly spaced, or it has colours or is a mosaic.
    """
    place = series.files[0].parent
    itk = simpleitk()
    if "MOSAIC" in _tags(series.files[0], IMAGE_TYPE)[IMAGE_TYPE].split("\\"):
        # Siemens puts all slices of a volume into one picture, which reads like one large slice.
        raise UserError(
            f"{place}: series {series.uid} is stored as mosaics, many slices in each picture; convert it to NIfTI, for "
            "example by dcm2niix, and label that"
        )
    _require_even(series)
    names = [str(path) for path in series.files]
    image = itk_result(place, lambda: itk.ReadImage(names if len(names) > 1 else names[0]))
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{place}: series {series.uid} is no volume of grey values; choose another one by --series UID")
    return image


def _series_in(folder: Path) -> list[Series]:
    itk = simpleitk()
    found = []
    for uid in itk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = tuple(Path(name) for name in itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        tags = _tags(files[0], MODALITY, DESCRIPTION)
        if tags[MODALITY] not in NO_SCANS:
            series = Series(uid=uid, files=files, modality=tags[MODALITY], description=tags[DESCRIPTION])
            found.append(series)
    return found


def _require_even(series: Series) -> None:
    """Refuses slices that no grid holds: missing ones, uneven steps, a tilted gantry."""
    tags = [_tags(path, POSITION, DIRECTIONS) for path in series.files]
    if len(tags) < 2 or not all(tag[POSITION] and tag[DIRECTIONS] for tag in tags):
        return
    places = np.array([_numbers(path, tag[POSITION], 3) for path, tag in zip(series.files, tags, strict=True)])
    row, column = np.array(_numbers(series.files[0], tags[0][DIRECTIONS], 6)).reshape(2, 3)
    normal = np.cross(row, column)
    along = (places - places[0]) @ normal
    even = places[0] + np.linspace(0, along[-1], len(places))[:, None] * normal
    step, away = abs(along[-1]) / (len(places) - 1), np.linalg.norm(places - even, axis=1)
    if step == 0 or away.max() > UNEVEN * step:
        raise UserError(
            f"{series.files[0].parent}: series {series.uid}: its {len(places)} slices are not evenly spaced, or their "
            f"stack is not straight (around {series.files[int(away.argmax())].name}); slices are missing, two scans "
            "share a series, or the gantry was tilted: bring all slices of one scan, or resample it to NIfTI"
        )


def _numbers(path: Path, text: str, count: int) -> list[float]:
    """The numbers of a tag that states `count` of them."""
    try:
        numbers = [float(number) for number in text.split("\\")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DamagedFileError(
            f"{path}: {shown(text)} stands where {count} numbers should say how the slice lies; the file is damaged: "
            "copy it again"
        )
    return numbers


def _tags(path: Path, *keys: str) -> dict[str, str]:
    """Values of a file by tag, as text; empty where the file lacks one."""
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    itk_result(path, reader.ReadImageInformation)
    return {key: reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else "" for key in keys}


def _visible_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
