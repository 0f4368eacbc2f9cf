"""Compressed voxels are compared with the checksum behind them: libraries stop at the last voxel, before it."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megavoxel.volumes.volume import unreadable

PART = 2**16
ADLER_BYTES = 4
"""At the end of a zlib stream: the Adler-32 of its content (RFC 1950)."""
ZLIB_OR_GZIP = 47
"""For zlib: the form of a stream is told by its beginning."""
SPARE = 2**20
"""Bytes that may lie behind voxels, beside as many again as they have."""
TRAILER_BYTES = 8
"""At the end of a gzip stream: the CRC-32 of its content, and the length of that (RFC 1952)."""


@contextmanager
def whole_stream(path: Path, length: int) -> Iterator[BinaryIO]:
    """A file opened for reading, unpacked where its name ends in `.gz`, and then read to its end after the block.

    Args:
        length: bytes that it unpacks to by its header.

    Raises:
        EOFError, OSError, zlib.error: after the block: the gzip stream is damaged or cut, or much longer than `length`.
    """
    is_packed = path.name.lower().endswith(".gz")
    with path.open("rb") as source:
        if not is_packed:
            yield source
            return
        with gzip.GzipFile(fileobj=source) as stream:
            yield stream
            _finish(stream, length)


def _finish(stream: gzip.GzipFile, length: int) -> None:
    """Reads a gzip stream to its end, where Python compares its checksum.

    Raises:
        EOFError, OSError, zlib.error: it is damaged or cut, or is longer than a small file should make anybody wait.
    """
    while stream.read(PART):
        if stream.tell() > 2 * length + SPARE:
            raise EOFError(f"it goes on behind the {length} bytes that its header claims")


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
                _finish(stream, voxels.nbytes)
    except (EOFError, OSError, zlib.error) as fault:
        raise unreadable(path, fault) from None


def require_unpacked(streams: Sequence[tuple[Path, int, int | None]], voxels: np.ndarray) -> None:
    """Compares what ITK unpacked of a MetaImage with what its streams hold: ITK goes on where unpacking fails.

    Where the voxels do not have the checksum behind the only stream, all streams are unpacked once more: the bytes of a
    number may be in the other order.

    Args:
        streams: file, byte at which a stream of zlib or gzip begins, and its bytes; None: it ends with the file.
        voxels: all of them, in the order of memory.

    Raises:
        UserError: a stream is damaged or cut, or holds something else than the voxels.
    """
    found, (path, begin, size) = zlib.adler32(voxels.data), streams[0]
    try:
        with path.open("rb") as source:
            source.seek((path.stat().st_size if size is None else begin + size) - ADLER_BYTES)
            if len(streams) == 1 and source.read(ADLER_BYTES) == found.to_bytes(ADLER_BYTES, "big"):
                return
        held = 1  # the Adler-32 of nothing
        for path, begin, size in streams:
            with path.open("rb") as source:
                source.seek(begin)
                held = _unpacked(source, size, held, voxels.nbytes)
        if held not in (found, zlib.adler32(voxels.byteswap().data)):
            raise ValueError("its header says something else of its compressed voxels than they are")
    except (EOFError, OSError, ValueError, zlib.error) as fault:
        raise unreadable(path, fault) from None


def _unpacked(source: BinaryIO, size: int | None, held: int, length: int) -> int:
    """The Adler-32 of what a stream of `size` bytes holds behind something whose Adler-32 is `held`."""
    stream, unpacked, left = zlib.decompressobj(wbits=ZLIB_OR_GZIP), 0, math.inf if size is None else size
    while not stream.eof:
        packed = stream.unconsumed_tail
        if not packed:
            packed = source.read(int(min(PART, left)))
            left -= len(packed)
        part = stream.decompress(packed, PART)
        held, unpacked = zlib.adler32(part, held), unpacked + len(part)
        if not packed and not part:
            raise EOFError("its compressed voxels end too early")
        if unpacked > 2 * length + SPARE:
            raise EOFError(f"it goes on behind the {length} bytes that its header claims")
    return held
