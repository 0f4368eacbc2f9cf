"""Opens a volume of any format. The formats are the modules of `volumes/formats`: a file there adds one."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import numpy as np

from megavoxel.errors import UserError
from megavoxel.files import reading
from megavoxel.volumes import formats
from megavoxel.volumes.formats.dicom import open_dicom
from megavoxel.volumes.formats.itk_headers import read_header
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.volume import DamagedFileError, Format, Hints, Volume


def _formats() -> list[Format]:
    modules = [import_module(f"{formats.__name__}.{found.name}") for found in pkgutil.iter_modules(formats.__path__)]
    found = [one for module in modules for one in getattr(module, "FORMATS", ())]  # DICOM is told by its folders
    return sorted(found, key=lambda one: NIFTI not in one.suffixes)


NIFTI = ".nii.gz"
"""The ending of label maps that a study predicts."""
FORMATS = _formats()
"""All formats, NIfTI first."""
BY_SUFFIX = {suffix: found for found in FORMATS for suffix in found.suffixes}
SUFFIXES = tuple(suffix for suffix, found in BY_SUFFIX.items() if not found.needs_spacing)
"""Endings of the files that are images or label maps by themselves."""
DETACHED = tuple(suffix for found in FORMATS for suffix in found.detached)
"""Endings of the headers whose voxels lie in other files."""
SUFFIXES_WITH_SPACING = tuple(BY_SUFFIX)
"""Endings of the files that can be opened where the user says how large their voxels are."""


def suffix_of(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """The ending of an image file's name, in lower case; empty for files of other kinds."""
    lower = name.lower()
    return next((suffix for suffix in sorted(suffixes, key=len, reverse=True) if lower.endswith(suffix)), "")


def stem_of(name: str) -> str:
    """An image file's name without its ending."""
    return name[: len(name) - len(suffix_of(name))]


def label_suffix_of(name: str) -> str:
    """The ending of the label map that is written for a scan of this name; that of NIfTI for folders of DICOM."""
    found = BY_SUFFIX.get(suffix_of(name))
    return NIFTI if found is None else found.label_suffix


def is_data_of_header(path: Path) -> bool:
    """Whether a header beside a file says that its voxels lie in that file."""
    own = path.resolve()
    headers = [other for other in path.parent.iterdir() if other.name.lower().endswith(DETACHED) and other.is_file()]
    return any(own in data_files_of(header) for header in headers)


def data_files_of(header: Path) -> tuple[Path, ...]:
    """The files in which the voxels of a header lie; empty for files of other kinds, and for faulty headers."""
    if not header.name.lower().endswith(DETACHED):
        return ()
    try:
        return read_header(header).files
    except UserError:  # it is told when the volume of this header is opened
        return ()


def open_volume(path: Path, hints: Hints = Hints()) -> Volume:  # noqa: B008
    """Opens a file, or a folder with one series of DICOM slices, by its header alone.

    Args:
        path: the file or folder.

    Raises:
        UserError: it is missing, damaged, of a format that is not read, or not a volume of one real number per voxel
            and channel; or it does not say how it lies in the patient, and nobody else does.
    """
    path = Path(path)
    if path.is_dir():
        return open_dicom(path, hints)
    found = BY_SUFFIX.get(suffix_of(path.name, SUFFIXES_WITH_SPACING))
    if found is None:
        raise UserError(f"{path}: files of this kind are not read; convert it to one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DamagedFileError(f"{path}: no such file")
    with reading(path):
        return found.open(path, hints)


def read_image(path: Path) -> tuple[np.ndarray, Geometry]:
    """An image as float32 (channels, z, y, x) in canonical order, and the grid of its file.

    Raises:
        UserError: as `open_volume`, or the file is truncated.
    """
    volume = open_volume(path)
    return volume.image(), volume.geometry


def read_labels(path: Path) -> tuple[np.ndarray, Geometry]:
    """A label map (z, y, x) in canonical order, uint8 or uint16, and the grid of its file.

    Raises:
        UserError: as `open_volume`, or the file is truncated, has several channels, or holds values that are not whole
            numbers from 0 to 65535.
    """
    volume = open_volume(path)
    return volume.labels(), volume.geometry


def read_geometry(path: Path) -> Geometry:
    """The grid of a file, from its header alone.

    Raises:
        UserError: as `open_volume`.
    """
    return open_volume(path).geometry
