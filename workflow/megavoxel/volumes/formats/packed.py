"""Compressed voxels are unpacked to their end, where their checksum is: libraries stop at the last voxel, before it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from megavoxel.files import file_state
from megavoxel.volumes.volume import unreadable

PART = 2**16
_seen: dict[tuple[Path, int], tuple[int, ...]] = {}
"""What this process found to be whole, by file and place, with the state of the file."""


def require_whole_gzip(path: Path, *, begin: int = 0) -> None:
    """Compares a gzip stream with its checksum, once per process: a flipped bit would change voxels without a word.

    Args:
        path: the file, which is read at about 300 MB of voxels per second.
        begin: byte at which the stream begins.

    Raises:
        UserError: the stream is damaged or cut.
    """
    state = file_state(path)
    if _seen.get((path, begin)) == state:
        return
    try:
        with path.open("rb") as source:
            source.seek(begin)
            with gzip.open(source) as stream:
                while stream.read(PART):
                    pass
    except (EOFError, OSError, zlib.error) as fault:
        raise unreadable(path, fault) from None
    _seen[path, begin] = state
