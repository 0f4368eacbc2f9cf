"""Dataset folders: what lies in one, putting one in place whole, linking one, and its checksums."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from megavoxel.csv_files import guarded, unguarded
from megavoxel.datasets.cases import Case
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, file_sha256, table_text, write_text
from megavoxel.progress import BYTES, progress
from megavoxel.volumes.no_scans import is_link_to_nothing, is_no_scan, visible_entries
from megavoxel.volumes.open import is_data_of_header

CHECKSUMS = "checksums.tsv"
HEAD = "file\tbytes\tsha256"
DIGEST = re.compile("[0-9a-f]{64}")
MARKER = ".made-by-megavoxel"


def visible_files(folder: Path) -> list[Path]:
    """The files below `folder`, relative to it and sorted, links to nothing among them, since somebody misses those.

    Hidden files and folders (``.x``, ``._x``) are left out.
    """
    found = (path for path in visible_entries(Path(folder)) if path.is_file() or is_link_to_nothing(path))
    return sorted((path.relative_to(folder) for path in found), key=Path.as_posix)


def unused_files(root: Path, cases: Sequence[Case]) -> tuple[str, ...]:
    """Files of a dataset that belong to no case and are not known to be none, such as images without a label map.

    Looked at are the folders in which the cases' files lie, and those below.
    """
    used = {PurePosixPath(name) for case in cases for name in (*case.images, case.label) if name}
    folders = {name.parent for name in used}
    names = [PurePosixPath(name.as_posix()) for name in visible_files(root)]
    return tuple(
        str(name)
        for name in names
        if name not in used
        and folders & {*name.parents}
        and not used & {*name.parents}  # slices of a DICOM folder
        and not is_no_scan(root / name)
        and not is_data_of_header(root / name)
    )


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `path` on a clean exit; an exception leaves `path` as it was.

    Only what was made this way is ever replaced: images that a user put there by hand are never deleted.

    Raises:
        UserError: `path` is a file, a link, or a folder with content of another origin.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path}: a folder is to be written here, but a file or link stands in its place; move it away")
    if path.is_dir() and any(path.iterdir()) and not (path / MARKER).is_file():
        raise UserError(
            f"{path}: this folder has content that megavoxel did not make, so it is not replaced; move it away, or "
            "name it as the dataset's source 'folder' and choose another output"
        )
    with atomic_directory(path, replace=True) as partial:
        yield partial
        write_text(partial / MARKER, "megavoxel made this folder and replaces it as a whole.\n")


def link_folder(source: Path, target: Path, *, copy: bool = False) -> None:
    """Brings the visible files of `source` into the existing folder `target`: as links to their absolute paths.

    dataset.json is always copied; `copy` copies the other files, too.
    """
    for name in visible_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if copy or name == Path("dataset.json"):
            shutil.copyfile(source / name, target / name)
        else:
            (target / name).symlink_to((source / name).resolve())


def write_checksums(folder: Path) -> None:
    """Writes checksums.tsv: file, bytes and SHA-256 of every other visible file of `folder`, sorted by file.

    A link to nothing has no line.
    """
    rows = [HEAD]
    names = [name for name in visible_files(folder) if name != Path(CHECKSUMS) and (folder / name).is_file()]
    sizes = {name: (folder / name).stat().st_size for name in names}
    with progress("checksums", sum(sizes.values()), unit=BYTES) as shown:
        for name, size in sizes.items():
            rows.append(f"{guarded(name.as_posix())}\t{size}\t{file_sha256(folder / name)}")
            shown.advance(size)
    write_text(folder / CHECKSUMS, "\n".join(rows) + "\n")


def read_checksums(path: Path) -> dict[str, str]:
    """SHA-256 by file, from a checksums.tsv.

    Raises:
        UserError: the file is missing, cut or damaged.
    """
    return {name: digest for name, (_, digest) in _listed(path).items()}


def require_unchanged(checksums: Path) -> str:
    """Refuses a dataset whose files are no longer those that its checksums.tsv was written of.

    Only files that were touched since, by their times, are read. Files that are gone, or cannot be reached from this
    machine, are passed over: preprocessed cases can be all that is needed.

    Returns:
        SHA-256 of checksums.tsv.

    Raises:
        UserError: checksums.tsv is missing, cut or damaged, or a file has another content, or is not listed.
    """
    listed = _listed(checksums)
    written = checksums.stat().st_mtime
    for name, (size, digest) in listed.items():
        path = checksums.parent / name
        try:
            found = path.stat()
            is_touched = max(found.st_mtime, found.st_ctime) > written
            is_same = found.st_size == size and not (is_touched and file_sha256(path) != digest)
        except OSError:
            continue
        if not is_same:
            raise UserError(
                f"{path}: it was changed after the dataset was fetched, so that preprocessed cases may be those of the "
                "old file; bring the old file back, or take the new one by 'snakemake --forcerun fetch'"
            )
    kinds = {Path(name).suffix for name in listed}
    names = {name.as_posix() for name in visible_files(checksums.parent) if name.suffix in kinds}
    new = sorted(names - {CHECKSUMS, *listed})
    if new:
        raise UserError(
            f"{checksums}: {new[0]} is not listed, so the file was cut or the dataset changed; fetch the dataset again "
            "by 'snakemake --forcerun fetch'"
        )
    return file_sha256(checksums)


def _listed(checksums: Path) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 by file."""
    try:
        head, *lines = table_text(checksums).read().splitlines()
        rows = [line.split("\t") for line in lines]
        found = {unguarded(name): (int(size), digest) for name, size, digest in rows}
        if head != HEAD or not found or not all(DIGEST.fullmatch(digest) for _, digest in found.values()):
            raise ValueError(head)
    except FileNotFoundError:
        raise UserError(f"{checksums}: no such file; fetch the dataset by 'megavoxel fetch'") from None
    except ValueError:
        raise UserError(f"{checksums}: no table of {HEAD.split()}, or damaged; fetch the dataset again") from None
    return found
