"""Compressed voxels are compared with the checksum behind them: libraries stop at the last voxel, before it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megavoxel.volumes.volume import unreadable

PART = 2**16
TRAILER_BYTES = 8
"""At the end of a gzip stream: the CRC-32 of its content, and the length of that (RFC 1952)."""


@contextmanager
def whole_stream(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading, unpacked where its name ends in `.gz`, and then read to its end after the block.

    Raises:
        EOFError, OSError, zlib.error: after the block: the gzip stream is damaged or cut.
    """
    is_packed = path.name.lower().endswith(".gz")
    with path.open("rb") as source:
        if not is_packed:
            yield source
            return
        with gzip.GzipFile(fileobj=source) as stream:
            yield stream
            finish(stream)


def finish(stream: gzip.GzipFile) -> None:
    """Reads a gzip stream to its end, where Python compares its checksum."""
    while stream.read(PART):
        pass


def require_whole_gzip(path: Path, begin: int, voxels: np.ndarray) -> None:
    """Compares what a library unpacked of a gzip stream with the stream's checksum.

    Where the voxels do not have this checksum, the stream is unpacked once more: it may hold them in another order, or
    in several parts.

    Args:
        begin: byte at which the stream begins.
        voxels: all of them, in the order of memory.

    Raises:
        UserError: the stream is damaged or cut.
    """
    try:
        with path.open("rb") as source:
            source.seek(-TRAILER_BYTES, 2)
            numbers = int.from_bytes(source.read(4), "little"), int.from_bytes(source.read(4), "little")
            if numbers == (zlib.crc32(voxels.data), voxels.nbytes % 2**32):
                return
            source.seek(begin)
            with gzip.GzipFile(fileobj=source) as stream:
                finish(stream)
    except (EOFError, OSError, zlib.error) as fault:
        raise unreadable(path, fault) from None
