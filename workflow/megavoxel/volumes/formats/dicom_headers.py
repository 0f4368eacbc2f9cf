"""What DICOM files say of their images, read without the pixels (DICOM PS3.5, sections 6 to 10).

ITK gives the tags of a file, but not those inside of sequences, in which enhanced files say where each frame lies. Only
the elements that are asked for are kept; everything else is passed over.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from megavoxel.volumes.volume import unreadable

PREAMBLE = 128
"""Bytes of a DICOM file before the letters DICM (DICOM PS3.10, section 7.1)."""
MAGIC = b"DICM"
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
LONG_LENGTHS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Kinds of values whose length takes four bytes (PS3.5, table 7.1-1)."""
MOST_DEPTH = 32
MOST_VALUE = 2**16
MOST_INFLATED = 2**28
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
SYNTAX, STORED_CLASS = 0x00020010, 0x00020002
DIRECTORY = "1.2.840.10008.1.3.10"
"""Class of DICOMDIR, the list of the files of a medium."""
SHARED, PER_FRAME = 0x52009229, 0x52009230
PLANE_POSITION, PLANE_ORIENTATION = 0x00209113, 0x00209116
PIXEL_MEASURES, PIXEL_VALUES = 0x00289110, 0x00289145
SEQUENCES = {SHARED, PER_FRAME, PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES, PIXEL_VALUES}
CLASS, IMAGE_TYPE, INSTANCE, MODALITY, DESCRIPTION, SERIES = (
    0x00080016, 0x00080008, 0x00080018, 0x00080060, 0x0008103E, 0x0020000E,
)  # fmt: skip
NUMBER, POSITION, DIRECTIONS, IN_ACQUISITION, IN_SERIES, SLICES = (
    0x00200013, 0x00200032, 0x00200037, 0x00201002, 0x00201209, 0x00540081,
)  # fmt: skip
FRAME_OF_REFERENCE = 0x00200052
THICKNESS, DISTANCE, SPACING, SLOPE, INTERCEPT = 0x00180050, 0x00180088, 0x00280030, 0x00281053, 0x00281052
SAMPLES, FRAMES, ROWS, COLUMNS, BITS, SIGN = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280103
WANTED = {
    SYNTAX, STORED_CLASS, CLASS, IMAGE_TYPE, INSTANCE, MODALITY, DESCRIPTION, SERIES, NUMBER, POSITION, DIRECTIONS,
    IN_ACQUISITION, IN_SERIES, SLICES, THICKNESS, DISTANCE, SPACING, SLOPE, INTERCEPT, SAMPLES, FRAMES, ROWS, COLUMNS,
    BITS, SIGN, FRAME_OF_REFERENCE,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class More:
    """What is read of a file besides the elements of images."""

    values: Iterable[int] = ()
    """Tags, whose values may be of any length."""
    sequences: Iterable[int] = ()
    """Tags of sequences that have some of these."""
    pixels: bool = False
    """Whether uncompressed pixels are kept."""


@dataclass(frozen=True, kw_only=True)
class Elements:
    """Values of a file, or of an item of a sequence, by tag."""

    values: dict[int, bytes] = field(default_factory=dict)
    sequences: dict[int, tuple[Elements, ...]] = field(default_factory=dict)
    order: str = "<"
    """Order of the bytes of binary numbers, as `struct` writes it."""

    def text(self, tag: int) -> str:
        """One line; empty where the tag is missing. Letters are read as UTF-8, or else as Latin 1."""
        value = self.values.get(tag, b"").strip(b" \0")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        return "".join(sign if sign.isprintable() else "?" for sign in text)

    def numbers(self, tag: int, count: int) -> tuple[float, ...] | None:
        """`count` finite numbers written as text; None where the tag is missing or empty.

        Raises:
            ValueError: it has something else.
        """
        text = self.text(tag)
        if not text:
            return None
        try:
            numbers = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise ValueError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is {text[:60]!r}, expected {count} numbers")
        return numbers

    def number(self, tag: int) -> float | None:
        """One number written as text, as `numbers`."""
        found = self.numbers(tag, 1)
        return None if found is None else found[0]

    def short(self, tag: int) -> int:
        """A whole number of two bytes; 0 where it is missing."""
        value = self.values.get(tag, b"")
        return struct.unpack(f"{self.order}H", value[:2])[0] if len(value) >= 2 else 0

    def item(self, tag: int) -> Elements:
        """The first item of a sequence; one without elements where there is none."""
        return next(iter(self.sequences.get(tag, ())), Elements())


@dataclass(frozen=True, kw_only=True)
class Header:
    """A DICOM file without its pixels."""

    path: Path
    elements: Elements
    syntax: str
    """UID of the transfer syntax."""
    has_pixels: bool
    pixels: bytes | None = None
    """Uncompressed pixels, where they were asked for."""

    @cached_property
    def is_directory(self) -> bool:
        """Whether it lists the files of a medium."""
        return self.elements.text(STORED_CLASS) == DIRECTORY


def starts_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do: with DICM behind the preamble, or without one by its first element."""
    try:
        with path.open("rb") as source:
            head = source.read(PREAMBLE + len(MAGIC))
    except OSError:
        return False
    if head[PREAMBLE:] == MAGIC:
        return True
    group, element, length = struct.unpack("<HHI", head[:8]) if len(head) >= 8 else (0, 0, 0)
    has_kind = head[4:6].isalpha() and head[4:6].isupper()
    return group in (2, 8) and element <= 0x18 and (has_kind or 0 < length <= 64)


def read_header(path: Path, more: More = More()) -> Header:
    """What a file says of its image; its pixels are passed over, and seen to be there to their end.

    Args:
        more: what else to read.

    Raises:
        UserError: the file breaks off, or makes no sense.
    """
    try:
        with path.open("rb") as source:
            return _Reading(source, path, more).header()
    except (EOFError, OSError, ValueError, zlib.error, struct.error) as fault:
        raise unreadable(path, fault) from None


class _Reading:
    """A pass over the elements of a file."""

    def __init__(self, source: BinaryIO, path: Path, more: More) -> None:
        self.path = path
        self.long, self.sequences = frozenset(more.values), SEQUENCES.union(more.sequences)
        self.keeps_pixels, self.kept = more.pixels, None
        self.explicit, self.order = True, "<"
        self.pixels, self.pixel_bytes = False, None
        self._take(source)

    def _take(self, source: BinaryIO) -> None:
        """Goes on with this source, from its beginning."""
        self.source = source
        self.size = source.seek(0, io.SEEK_END)
        source.seek(0)

    def header(self) -> Header:
        """All elements but the pixels, which are passed over."""
        self._pass_preamble()
        meta = self._meta()
        syntax = meta.text(SYNTAX)
        if syntax:
            self.explicit = syntax != IMPLICIT
            self.order = ">" if syntax == BIG_ENDIAN else "<"
        else:
            self.explicit = self._peek(6)[4:].isalpha()
        if syntax == DEFLATED:
            self._take(io.BytesIO(self._inflated()))
        found = self._elements(self.size, 0)
        elements = Elements(values=meta.values | found.values, sequences=found.sequences, order=self.order)
        if self.pixels:
            self._require_pixels(elements)
        return Header(path=self.path, elements=elements, syntax=syntax, has_pixels=self.pixels, pixels=self.kept)

    def _pass_preamble(self) -> None:
        head = self._peek(PREAMBLE + len(MAGIC))
        self.source.seek(len(head) if head[PREAMBLE:] == MAGIC else 0)

    def _meta(self) -> Elements:
        """The group 0002, which is written in the same way in all files."""
        values = {}
        while self._peek(2) == b"\2\0":
            tag, _, length = self._head()
            if tag in WANTED and length <= MOST_VALUE:
                values[tag] = self._read(length)
            else:
                self._skip(length)
        return Elements(values=values)

    def _inflated(self) -> bytes:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        content = inflate.decompress(self.source.read(), MOST_INFLATED)
        if not inflate.eof:
            raise ValueError("its deflated part breaks off, or is too large")
        return content

    def _elements(self, end: int, depth: int) -> Elements:
        if depth > MOST_DEPTH:
            raise ValueError("its sequences lie too deep in one another")
        values, sequences = {}, {}
        while self.source.tell() < end:
            tag, kind, length = self._head()
            if tag in (ITEM_END, SEQUENCE_END):
                break
            if tag in PIXELS and depth == 0:
                self.pixels = True
                self.pixel_bytes = self._pass_pixels(length)
                break
            if tag in PIXELS and length == UNDEFINED:
                self._pass_pixels(length)
            elif kind == b"SQ" or length == UNDEFINED or (tag in self.sequences and kind != b"OB"):
                items = self._items(length, depth + 1, explicit=self.explicit and kind != b"UN")
                if tag in self.sequences:
                    sequences[tag] = items
            elif (tag in WANTED and length <= MOST_VALUE) or tag in self.long:
                values[tag] = self._read(length)
            else:
                self._skip(length)
        return Elements(values=values, sequences=sequences, order=self.order)

    def _items(self, length: int, depth: int, *, explicit: bool) -> tuple[Elements, ...]:
        end = self.size if length == UNDEFINED else self.source.tell() + length
        self._require(end)
        before, self.explicit, items = self.explicit, explicit, []
        while self.source.tell() < end:
            tag, _, size = self._head()
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise ValueError("an item of a sequence is missing")
            stop = self.size if size == UNDEFINED else self.source.tell() + size
            self._require(stop)
            items.append(self._elements(stop, depth))
        self.explicit = before
        return tuple(items)

    def _pass_pixels(self, length: int) -> int | None:
        """Passes over pixels; their bytes, or None where they are compressed, in fragments."""
        if length != UNDEFINED:
            if self.keeps_pixels:
                self.kept = self._read(length)
            else:
                self._skip(length)
            return length
        while True:
            tag, _, size = self._head()
            if tag == SEQUENCE_END:
                return None
            if tag != ITEM:
                raise ValueError("a fragment of its pixels is missing")
            self._skip(size)

    def _require_pixels(self, elements: Elements) -> None:
        """Refuses fewer bytes of uncompressed pixels than rows, columns and frames take."""
        frames = elements.number(FRAMES) or 1
        voxels = elements.short(ROWS) * elements.short(COLUMNS) * (elements.short(SAMPLES) or 1) * frames
        least = voxels * elements.short(BITS) / 8
        if self.pixel_bytes is not None and self.pixel_bytes < least:
            raise ValueError(f"it has {self.pixel_bytes} bytes of pixels, its header asks for {least:.0f}")

    def _head(self) -> tuple[int, bytes, int]:
        """Tag, kind of value where it is written, and length of the next element."""
        group, element = struct.unpack(f"{self.order}HH", self._read(4))
        tag = group << 16 | element
        if group == 0xFFFE or not self.explicit:
            return tag, b"", struct.unpack(f"{self.order}I", self._read(4))[0]
        kind, short = struct.unpack(f"{self.order}2sH", self._read(4))
        if kind in LONG_LENGTHS:
            return tag, kind, struct.unpack(f"{self.order}I", self._read(4))[0]
        return tag, kind, short

    def _peek(self, count: int) -> bytes:
        place = self.source.tell()
        found = self.source.read(count)
        self.source.seek(place)
        return found

    def _read(self, count: int) -> bytes:
        self._require(self.source.tell() + count)
        return self.source.read(count)

    def _skip(self, count: int) -> None:
        self._require(self.source.tell() + count)
        self.source.seek(count, io.SEEK_CUR)

    def _require(self, end: int) -> None:
        if end > self.size:
            raise EOFError("it ends within an element")
