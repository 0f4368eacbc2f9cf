"""Checksums of stored arrays, in the form that `sha256sum --check` reads: bits that flip on a disk are seen.

blosc2 and JSON have no checksums of their own. Each process that trains or predicts looks at a file once; SHA-256 takes
about 1.3 s per GB, so that a training of an hour may have 27 GB of cases until this is 1 % of its time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import file_sha256, file_state, write_text

REMEDY = "run 'megavoxel preprocess' again with --resume, which makes such cases anew (snakemake --forcerun preprocess)"
_seen: dict[Path, tuple[int, ...]] = {}
"""What this process found as it was written, with the state of the file."""


def write_checksums(path: Path, files: Sequence[Path], texts: Mapping[str, str]) -> None:
    """Writes the checksums of files that lie beside `path`.

    Args:
        files: these are read.
        texts: by name, what is going to be written to further files.
    """
    sums = {file.name: file_sha256(file) for file in files}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_text(path, "".join(f"{checksum}  {name}\n" for name, checksum in sorted(sums.items())))


def require_as_written(path: Path, *, case: str, remedy: str = REMEDY) -> set[str]:
    """Compares files with the checksums that were written for them, and returns their names.

    Files that are missing are passed over, for those who open them.

    Raises:
        UserError: a file has other bytes, or there are no checksums. It names the case and the file.
    """
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        sums = {name: checksum for checksum, name in lines}
    except (OSError, ValueError) as fault:
        raise UserError(f"case {case}: {path}: missing or damaged ({fault}); {remedy}") from None
    for name, checksum in sums.items():
        file = path.parent / Path(name).name
        if file.is_file() and not _is_as_written(file, checksum):
            raise UserError(f"case {case}: {file}: damaged: its checksum is not that of {path.name}; {remedy}")
    return set(sums)


def _is_as_written(file: Path, checksum: str) -> bool:
    state = file_state(file)
    if _seen.get(file) != state:
        if file_sha256(file) != checksum:
            return False
        _seen[file] = state
    return True
