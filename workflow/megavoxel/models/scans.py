"""New scans among files and folders: one file per scan, one per channel, a folder per case, or a DICOM series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch

from megavoxel.errors import UserError, printable
from megavoxel.files import require_file_name
from megavoxel.volumes.formats.dicom import dicom_folders, parts_of_one_series
from megavoxel.volumes.no_scans import is_link_to_nothing, is_no_scan, visible_entries
from megavoxel.volumes.open import SUFFIXES, data_files_of, is_data_of_header, label_suffix_of, stem_of, suffix_of

RECORD = "prediction.json"
"""In a folder of label maps that 'megavoxel predict' wrote: by what they were made."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One case: its image files, or the folder of a DICOM series."""

    case: str
    """Name of its outputs."""
    files: tuple[Path, ...] = ()
    """One, or one per channel."""
    dicom: Path | None = None
    """Folder with DICOM files in it or below it."""
    fault: str | None = None
    """Why there is nothing to label; such an entry has neither files nor a folder."""

    @property
    def contents(self) -> list[Path]:
        """All files that it is read from."""
        if self.dicom is not None:
            return sorted(filter(Path.is_file, self.dicom.rglob("*")))
        return [part for file in self.files for part in (file, *data_files_of(file))]

    @property
    def suffix(self) -> str:
        """Ending of the label map: that of the scan's own format, .nii.gz for DICOM and for all forms of NIfTI."""
        return label_suffix_of(self.files[0].name) if self.files else ".nii.gz"


def find_scans(inputs: Sequence[Path], *, one_file_per_case: bool = False, leave_out: bool = False) -> list[Scan]:
    """The scans that files and folders hold, in order, and behind them what is neither a scan nor known to be none.

    - A file is a scan. Files PREFIX_0000, PREFIX_0001, … beside one another are the channels of the case PREFIX, as
      nnU-Net names them, where there is a PREFIX_0000.
    - Of a folder: the files in it, and each folder in it as a case, with a file per channel or a DICOM series. A folder
      with DICOM files in it is a case itself, and so is one among whose folders the slices of a series are divided.
    - Hidden files, label maps that were predicted before, and what `is_no_scan` knows are passed over.

    Args:
        one_file_per_case: whether a number at the end of a file's name means nothing.
        leave_out: whether what is neither is said and left out; else it is an entry with a fault.

    Raises:
        UserError: an input is missing or holds no scan, or two scans have the same name.
    """
    scans = [scan for given in inputs for scan in _scans_of(Path(given), one_file_per_case)]
    scans = scans if one_file_per_case else _joined(scans)
    for name, times in sorted(Counter(scan.case for scan in scans).items()):
        require_file_name(name, "--input")
        if times > 1:
            raise UserError(f"--input: two scans are called {name}; predict them into different folders")
    others = [entry for given in inputs for entry in _not_understood(Path(given), scans)]
    if leave_out:
        for entry in others:
            print(printable(f"left out: {entry.fault}"), flush=True)
        return scans
    return scans + others


def in_order_of_channels(files: Sequence[Path], channels: Sequence[str]) -> tuple[Path, ...]:
    """A case's files in order of the channels: by their numbers or, in the folder of a case, by the channels' names.

    Raises:
        UserError: there are as many files as channels, and they have neither; or a number between is missing.
    """
    if len(files) != len(channels) or len(files) == 1:
        return tuple(files)
    if all(_numbered(path) for path in files):
        numbers = [_numbered(path)[1] for path in files]
        if numbers[0] == "0000" and numbers != [f"{number:04}" for number in range(len(files))]:
            raise UserError(f"{files[0].parent}: the channels {', '.join(numbers)} are there; expected 0000 and on")
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
        why = "a link to nothing" if is_link_to_nothing(given) else "no such image"
        raise UserError(f"--input {given}: {why}; allowed: files that end in {known}, and folders")
    found = _scans_in(given, one_file_per_case)
    if not found:
        others = [entry.fault for entry in _not_understood(given, ())]
        there = f": {others[0]}{f', and {len(others) - 1} more' if len(others) > 1 else ''}" if others else ""
        raise UserError(
            f"--input {given}: there is no scan in this folder: no {', '.join(SUFFIXES)} and no DICOM{there}"
        )
    yield from found


def _scans_in(folder: Path, one_file_per_case: bool) -> list[Scan]:
    files = _image_files(folder)
    if not files and folder in dicom_folders(folder)[:1]:
        return [Scan(case=folder.resolve().name, dicom=folder)]
    scans = [Scan(case=stem_of(path.name), files=(path,)) for path in files]
    scans = scans if one_file_per_case else _joined(scans)
    below = [scan for path in _folders_below(folder) for scan in _case_folder(path)]
    parts = parts_of_one_series([scan.dicom for scan in below if scan.dicom])
    if parts and len(parts) == len(scans) + len(below):
        return [Scan(case=folder.resolve().name, dicom=folder)]
    if parts:
        names = ", ".join(path.name for path in parts)
        raise UserError(f"--input {folder}: {names} hold slices of one series; bring them into one folder of their own")
    return scans + below


def _folders_below(folder: Path) -> list[Path]:
    below = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in below if not (path / RECORD).is_file())


def _case_folder(folder: Path) -> list[Scan]:
    files = _image_files(folder)
    if files:
        return [Scan(case=folder.name, files=tuple(files))]
    return [Scan(case=folder.name, dicom=folder)] if dicom_folders(folder) else []


def _joined(scans: Sequence[Scan]) -> list[Scan]:
    """Files that are numbered from 0000 on and lie beside one another, as the channels of one scan."""
    single = {scan.files[0]: _numbered(scan.files[0]) for scan in scans if len(scan.files) == 1}
    groups = {path: (path.parent, number[0]) for path, number in single.items() if number}
    begun = {groups[path] for path, number in single.items() if number and number[1] == "0000"}
    joined: dict[object, list[Path] | Scan] = {}
    for place, scan in enumerate(scans):
        group = groups.get(scan.files[0]) if len(scan.files) == 1 else None
        if group in begun:
            joined.setdefault(group, []).append(scan.files[0])
        else:
            joined[place] = scan
    return [
        value if isinstance(value, Scan) else Scan(case=key[1], files=tuple(sorted(value)))
        for key, value in joined.items()
    ]


def _numbered(path: Path) -> tuple[str, str] | None:
    match = fullmatch(r"(.+)_(\d{4})", stem_of(path.name))
    return (match[1], match[2]) if match else None


def _image_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if suffix_of(path.name))


def _not_understood(given: Path, scans: Sequence[Scan]) -> Iterator[Scan]:
    """What lies in a given folder, belongs to no scan, and is not known to be something else."""
    if not given.is_dir():
        return
    others: dict[tuple[Path, str], list[Path]] = {}
    taken = {path for scan in scans for path in scan.files}
    series = [scan.dicom for scan in scans if scan.dicom]
    for path in visible_entries(given):
        own = path.relative_to(given)
        is_predicted = any((given / parent / RECORD).is_file() for parent in list(own.parents)[:-1])
        if path in taken or is_predicted or any(path.is_relative_to(folder) for folder in series):
            continue
        if not is_no_scan(path) and not is_data_of_header(path):
            others.setdefault((path.parent, _reason(path, given)), []).append(path)
    for (_, reason), paths in others.items():
        more = f" and {len(paths) - 1} more beside it" if len(paths) > 1 else ""
        yield Scan(case=str(paths[0].relative_to(given)), fault=f"{paths[0]}{more}: {reason}")


def _reason(path: Path, given: Path) -> str:
    if is_link_to_nothing(path):
        return "a link to nothing: bring the file that it leads to"
    if suffix_of(path.name):
        return f"it lies deeper than the folder of a case; name {path.parent} as an input"
    if dicom_folders(path.parent):
        return "DICOM files beside scans of other formats; bring them into a folder of their own"
    return f"files of this kind are not read; move it out of {given}, or convert it to one of {', '.join(SUFFIXES)}"
