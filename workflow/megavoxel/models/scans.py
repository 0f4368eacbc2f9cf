"""New scans among files and folders: one file per scan, one per channel, a folder per case, or a DICOM series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from re import fullmatch

from megavoxel.errors import UserError
from megavoxel.files import require_file_name
from megavoxel.volumes.formats.dicom import dicom_folders
from megavoxel.volumes.open import SUFFIXES, label_suffix_of, stem_of, suffix_of


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One case: its image files, or the folder of a DICOM series."""

    case: str
    """Name of its outputs."""
    files: tuple[Path, ...] = ()
    """One, or one per channel."""
    dicom: Path | None = None
    """Folder with DICOM files in it or below it."""

    @property
    def suffix(self) -> str:
        """Ending of the label map: that of the scan's own format, .nii.gz for DICOM and for all forms of NIfTI."""
        return ".nii.gz" if self.dicom else label_suffix_of(self.files[0].name)


def find_scans(inputs: Sequence[Path], *, one_file_per_case: bool = False) -> list[Scan]:
    """The scans that files and folders hold, in order.

    - A file is a scan. Files PREFIX_0000, PREFIX_0001, … beside one another are the channels of the case PREFIX, as
      nnU-Net names them, where there is a PREFIX_0000.
    - Of a folder: the files in it, and each folder in it as a case, with a file per channel or a DICOM series. A folder
      with DICOM files in it is a case itself.

    Args:
        one_file_per_case: whether a number at the end of a file's name means nothing.

    Raises:
        UserError: an input is missing or holds no scan, or two scans have the same name.
    """
    scans = [scan for given in inputs for scan in _scans_of(Path(given), one_file_per_case)]
    scans = scans if one_file_per_case else _joined(scans)
    names = [scan.case for scan in scans]
    for name in sorted(set(names)):
        require_file_name(name, "--input")
        if names.count(name) > 1:
            raise UserError(f"--input: two scans are called {name}; predict them into different folders")
    return scans


def in_order_of_channels(files: Sequence[Path], channels: Sequence[str]) -> tuple[Path, ...]:
    """A case's files in order of the channels: by their numbers or, in the folder of a case, by the channels' names.

    Raises:
        UserError: there are as many files as channels, and they have neither.
    """
    if len(files) != len(channels) or len(files) == 1 or all(_numbered(path) for path in files):
        return tuple(files)
    named = [[path for path in files if stem_of(path.name).casefold().endswith(name.casefold())] for name in channels]
    if any(len(paths) != 1 for paths in named) or len({paths[0] for paths in named}) != len(files):
        raise UserError(
            f"{files[0].parent}: which file is which channel? End their names in _0000, _0001, … in the order "
            f"{', '.join(channels)}, or in these names"
        )
    return tuple(paths[0] for paths in named)


def _scans_of(given: Path, one_file_per_case: bool) -> Iterator[Scan]:
    if given.is_file() and suffix_of(given.name):
        yield Scan(case=stem_of(given.name), files=(given,))
        return
    if not given.is_dir():
        known = ", ".join(SUFFIXES)
        raise UserError(f"--input {given}: no such image; allowed: files that end in {known}, and folders")
    found = _scans_in(given, one_file_per_case)
    if not found:
        raise UserError(f"--input {given}: there is no scan in this folder: no {', '.join(SUFFIXES)} and no DICOM")
    yield from found


def _scans_in(folder: Path, one_file_per_case: bool) -> list[Scan]:
    files = _image_files(folder)
    if not files and folder in dicom_folders(folder)[:1]:
        return [Scan(case=folder.resolve().name, dicom=folder)]
    scans = [Scan(case=stem_of(path.name), files=(path,)) for path in files]
    scans = scans if one_file_per_case else _joined(scans)
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return scans + [scan for path in below for scan in _case_folder(path)]


def _case_folder(folder: Path) -> list[Scan]:
    files = _image_files(folder)
    if files:
        return [Scan(case=folder.name, files=tuple(files))]
    return [Scan(case=folder.name, dicom=folder)] if dicom_folders(folder) else []


def _joined(scans: Sequence[Scan]) -> list[Scan]:
    """Files that are numbered from 0000 on and lie beside one another, as the channels of one scan."""

    def prefix(scan: Scan) -> tuple[Path, str] | None:
        number = _numbered(scan.files[0]) if len(scan.files) == 1 else None
        return (scan.files[0].parent, number[0]) if number else None

    first = {prefix(scan) for scan in scans if prefix(scan) and _numbered(scan.files[0])[1] == "0000"}
    joined: list[Scan] = []
    for key, group in groupby(scans, key=lambda scan: prefix(scan) if prefix(scan) in first else scan.case):
        members = list(group)
        if isinstance(key, tuple):
            files = sorted(path for member in members for path in member.files)
            joined.append(Scan(case=key[1], files=tuple(files)))
        else:
            joined += members
    return joined


def _numbered(path: Path) -> tuple[str, str] | None:
    match = fullmatch(r"(.+)_(\d{4})", stem_of(path.name))
    return (match[1], match[2]) if match else None


def _image_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if suffix_of(path.name))
