"""What lies beside scans and is known to be none: directories of media, notes, tables, pictures and hidden files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

NAMES = {"dicomdir", "thumbs.db", "desktop.ini", "autorun.inf", "lockfile", "version", "checksums.tsv"}
"""Names, in lower case, of files that programs and systems leave."""
SUFFIXES = (
    ".bmp", ".bval", ".bvec", ".cfg", ".css", ".csv", ".db", ".dll", ".doc", ".docx", ".exe", ".gif", ".htm", ".html",
    ".ini", ".ipynb", ".jpeg", ".jpg", ".js", ".json", ".log", ".m", ".md", ".npz", ".pdf", ".pkl", ".png", ".pptx",
    ".pth", ".py", ".r", ".rst", ".rtf", ".sh", ".svg", ".toml", ".tsv", ".txt", ".webp", ".xls", ".xlsx", ".xml",
    ".yaml", ".yml",
)  # fmt: skip
"""Endings, in lower case, of notes, tables, programs, and pictures of two axes."""
POINTERS = (b"version https://git-lfs", b"/annex/objects", b"../.git/annex", b".git/annex")
"""How the text begins that stands in place of a file that was not fetched."""
TEXT_BYTES = 1024
CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f"))


def visible_entries(folder: Path) -> Iterator[Path]:
    """Files, and links to nothing, below a folder, in order of their names; what is hidden is left out.

    Folders are gone through after the files that lie beside them, and a link to a folder above itself is not followed.
    """
    yield from _entries(folder, frozenset())


def _entries(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        return
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield from (path for path in visible if not path.is_dir())
    for path in visible:
        if path.is_dir():
            yield from _entries(path, above | {here})


def is_link_to_nothing(path: Path) -> bool:
    """Whether a path is a link whose file is not there."""
    return path.is_symlink() and not path.exists()


def is_no_scan(path: Path) -> bool:
    """Whether a file that is in no format of scans is known to be something else, by its name or as a text."""
    if is_link_to_nothing(path) or not path.is_file():
        return False
    name = path.name.lower()
    return name.startswith(".") or name in NAMES or name.endswith(SUFFIXES) or (not path.suffix and _is_text(path))


def _is_text(path: Path) -> bool:
    with path.open("rb") as source:
        head = source.read(TEXT_BYTES)
    if not head or head.startswith(POINTERS) or head != head.translate(None, CONTROL):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as fault:
        return fault.reason == "unexpected end of data"
    return True
