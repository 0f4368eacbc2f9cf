"""Dataset folders: what lies in one, putting one in place whole, linking one, and its checksums."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, file_sha256, write_text
from megavoxel.progress import BYTES, progress

CHECKSUMS = "checksums.tsv"
MARKER = ".made-by-megavoxel"


def visible_files(folder: Path) -> list[Path]:
    """The files below `folder`, relative to it and sorted; hidden files and folders (``.x``, ``._x``) are left out."""
    found = _walk(Path(folder), frozenset())
    return sorted((path.relative_to(folder) for path in found), key=Path.as_posix)


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:  # a link to a folder above itself
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, above | {here})
        elif entry.is_file():
            yield entry


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
    """Writes checksums.tsv: file, bytes and SHA-256 of every other visible file of `folder`, sorted by file."""
    rows = ["file\tbytes\tsha256"]
    sizes = {name: (folder / name).stat().st_size for name in visible_files(folder) if name != Path(CHECKSUMS)}
    with progress("checksums", sum(sizes.values()), unit=BYTES) as shown:
        for name, size in sizes.items():
            rows.append(f"{name.as_posix()}\t{size}\t{file_sha256(folder / name)}")
            shown.advance(size)
    write_text(folder / CHECKSUMS, "\n".join(rows) + "\n")
