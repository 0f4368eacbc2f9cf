"""DICOM files byte by byte (PS3.5, explicit VR, little endian), so that a test can say in them whatever it likes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
SLICE, FRAMES = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
"""CT Image Storage and Enhanced CT Image Storage."""
LONG = ("OB", "OW", "SQ", "UN", "UT")
"""VRs whose length has four bytes."""
Tags = dict[tuple[int, int], tuple[str, Any]]
"""VR and value by group and element; a value is text, bytes, a whole number, or the items of a sequence."""


def element(group: int, number: int, kind: str, value: object) -> bytes:
    """A data element."""
    content = _content(kind, value)
    length = struct.pack("<HI", 0, len(content)) if kind in LONG else struct.pack("<H", len(content))
    return struct.pack("<HH", group, number) + kind.encode() + length + content


def _content(kind: str, value: object) -> bytes:
    if kind == "SQ":
        return b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in map(data_set, value))
    if isinstance(value, int):
        return struct.pack("<H" if kind == "US" else "<I", value)
    content = value if isinstance(value, bytes) else str(value).encode()
    return content + (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(content) % 2)


def data_set(tags: Tags) -> bytes:
    """Elements in order of their tags."""
    return b"".join(element(*tag, *tags[tag]) for tag in sorted(tags))


def dicom_file(tags: Tags, syntax: str = EXPLICIT_LITTLE_ENDIAN) -> bytes:
    """A file with its preamble and meta information."""
    meta = {
        (2, 1): ("OB", b"\0\1"),
        (2, 2): ("UI", tags[8, 0x16][1]),
        (2, 3): ("UI", tags[8, 0x18][1]),
        (2, 0x10): ("UI", syntax),
        (2, 0x12): ("UI", "1.2.3.9"),
    }
    described = data_set(meta)
    return bytes(128) + b"DICM" + element(2, 0, "UL", len(described)) + described + data_set(tags)


def numbers(values: Sequence[float]) -> str:
    """Decimal strings."""
    return "\\".join(f"{value:g}" for value in values)


def common(uid: str, series: str, sop_class: str) -> Tags:
    """What slices and frames share."""
    return {
        (8, 8): ("CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        (8, 0x16): ("UI", sop_class),
        (8, 0x18): ("UI", uid),
        (8, 0x60): ("CS", "CT"),
        (8, 0x103E): ("LO", "made"),
        (0x10, 0x10): ("PN", "X"),
        (0x10, 0x20): ("LO", "1"),
        (0x20, 0xD): ("UI", "1.2.3.4"),
        (0x20, 0xE): ("UI", series),
        (0x20, 0x52): ("UI", "1.2.3.5"),
        (0x28, 2): ("US", 1),
        (0x28, 4): ("CS", "MONOCHROME2"),
        (0x28, 0x100): ("US", 16),
        (0x28, 0x101): ("US", 16),
        (0x28, 0x102): ("US", 15),
        (0x28, 0x103): ("US", 1),
    }


def slice_tags(
    plane: np.ndarray, number: int, position: Sequence[float], spacing: Sequence[float], *, series: str = "1.2.3.6"
) -> Tags:
    """A slice of CT in the axes of the patient (LPS).

    Args:
        plane: int16, (rows, columns), as stored.
        number: of the slice, which makes its UID.
        position: of its first voxel, mm.
        spacing: of columns, rows and slices, mm.
        series: UID.
    """
    return common(f"{series}.{number + 1}", series, SLICE) | {
        (0x18, 0x50): ("DS", f"{spacing[2]:g}"),
        (0x20, 0x11): ("IS", "1"),
        (0x20, 0x13): ("IS", str(number + 1)),
        (0x20, 0x32): ("DS", numbers(position)),
        (0x20, 0x37): ("DS", "1\\0\\0\\0\\1\\0"),
        (0x28, 0x10): ("US", plane.shape[0]),
        (0x28, 0x11): ("US", plane.shape[1]),
        (0x28, 0x30): ("DS", numbers((spacing[1], spacing[0]))),
        (0x28, 0x1052): ("DS", "0"),
        (0x28, 0x1053): ("DS", "1"),
        (0x7FE0, 0x10): ("OW", plane.astype("<i2").tobytes()),
    }


def frames_tags(
    stack: np.ndarray, positions: Sequence[Sequence[float]], spacing: Sequence[float], slopes: Sequence[float]
) -> Tags:
    """A multi-frame CT in the axes of the patient (LPS).

    Args:
        stack: int16, (frames, rows, columns), as stored.
        positions: of the first voxel of each frame, mm; empty: no frame says where it lies.
        spacing: of columns, rows and frames, mm.
        slopes: of each frame.
    """
    measures = {(0x18, 0x50): ("DS", f"{spacing[2]:g}"), (0x28, 0x30): ("DS", numbers((spacing[1], spacing[0])))}
    measures[0x18, 0x88] = ("DS", f"{spacing[2]:g}")
    shared = {(0x28, 0x9110): ("SQ", [measures])}
    if positions:
        shared[0x20, 0x9116] = ("SQ", [{(0x20, 0x37): ("DS", "1\\0\\0\\0\\1\\0")}])
    frames = []
    for number, slope in enumerate(slopes):
        value = {(0x28, 0x1052): ("DS", "0"), (0x28, 0x1053): ("DS", f"{slope:g}"), (0x28, 0x1054): ("LO", "HU")}
        frame: Tags = {(0x28, 0x9145): ("SQ", [value])}
        if positions:
            frame[0x20, 0x9113] = ("SQ", [{(0x20, 0x32): ("DS", numbers(positions[number]))}])
        frames.append(frame)
    return common("1.2.3.7.1", "1.2.3.7", FRAMES) | {
        (0x28, 8): ("IS", str(len(stack))),
        (0x28, 0x10): ("US", stack.shape[1]),
        (0x28, 0x11): ("US", stack.shape[2]),
        (0x5200, 0x9229): ("SQ", [shared]),
        (0x5200, 0x9230): ("SQ", frames),
        (0x7FE0, 0x10): ("OW", stack.astype("<i2").tobytes()),
    }
