"""Series and multi-frame files of a made volume, whose elements a test can edit; `dicom_files` writes the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dicom_files import EXPLICIT_LITTLE_ENDIAN, FRAMES, SLICE, Tags, data_set, element

SHAPE = (5, 4, 6)
"""Of `voxels`: columns, rows and slices."""
SPACING, DISTANCE = (0.75, 0.5), 2.5
"""Distance of rows and of columns, and of slices, in mm."""
ORIGIN = (-10.0, 20.0, -30.0)
"""Of the first slice, LPS+."""

Items = list[tuple[int, str, object]]
"""Tag, kind and value of each element."""
Edit = Callable[[Items, int], Items]
"""From the elements of a slice, and its number, to others."""


def voxels() -> np.ndarray:
    """uint16 (columns, rows, slices), every one of another value."""
    return np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def tags_of(items: Items) -> Tags:
    """Elements by group and number, as `dicom_files` takes them."""
    return {
        (tag >> 16, tag & 0xFFFF): (kind, [tags_of(item) for item in value] if kind == "SQ" else value)
        for tag, kind, value in items
    }


def text(numbers: Sequence[float]) -> str:
    """Numbers as DICOM writes them."""
    return "\\".join(f"{number:g}" for number in numbers)


def write_file(path: Path, items: Items, *, kind: str = SLICE, preamble: bool = True) -> Path:
    """A file of these elements, which are sorted by tag."""
    meta = data_set({(2, 2): ("UI", kind), (2, 0x10): ("UI", EXPLICIT_LITTLE_ENDIAN)})
    head = bytes(128) + b"DICM" + element(2, 0, "UL", len(meta)) + meta if preamble else b""
    body = data_set(tags_of(items))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + body)
    return path


def common(pixels: np.ndarray, *, uid: str, number: int, kind: str = SLICE, modality: str = "CT") -> Items:
    """What every file says of itself; `pixels` are (rows, columns), or (frames, rows, columns)."""
    rows, columns = pixels.shape[-2:]
    return [
        (0x00080008, "CS", "ORIGINAL\\PRIMARY\\AXIAL"), (0x00080016, "UI", kind), (0x00080018, "UI", f"{uid}.{number}"),
        (0x00080060, "CS", modality), (0x0020000D, "UI", "1.2"), (0x0020000E, "UI", uid),
        (0x00200013, "IS", str(number)), (0x00280002, "US", 1), (0x00280004, "CS", "MONOCHROME2"),
        (0x00280010, "US", rows), (0x00280011, "US", columns), (0x00280100, "US", 16), (0x00280101, "US", 16),
        (0x00280102, "US", 15), (0x00280103, "US", 0), (0x7FE00010, "OW", pixels.astype("<u2").tobytes()),
    ]  # fmt: skip


def position(number: int) -> str:
    """Of a slice of `voxels`, in text."""
    return text((*ORIGIN[:2], ORIGIN[2] + DISTANCE * number))


def slice_items(number: int, *, uid: str = "1.2.3", slope: float = 1, modality: str = "CT") -> Items:
    """A slice of `voxels` as a file of its own."""
    place = [(0x00200032, "DS", position(number)), (0x00200037, "DS", "1\\0\\0\\0\\1\\0")]
    grid = [(0x00180050, "DS", f"{DISTANCE:g}"), (0x00280030, "DS", text(SPACING))]
    scale = [(0x00281052, "DS", "0"), (0x00281053, "DS", f"{slope:g}")]
    pixels = voxels()[:, :, number].T
    return [*common(pixels, uid=uid, number=number + 1, modality=modality), *place, *grid, *scale]


def write_series(
    folder: Path, numbers: Sequence[int] = range(SHAPE[2]), *, edit: Edit | None = None, **known: object
) -> Path:
    """Slices of `voxels` as IM1, IM2, …; `edit` changes the elements of each."""
    for number in numbers:
        items = slice_items(number, **known)
        write_file(folder / f"IM{number + 1}", edit(items, number) if edit else items)
    return folder


def without(*tags: int) -> Edit:
    """An `edit` that takes elements away."""
    return lambda items, _: [item for item in items if item[0] not in tags]


def changed(tag: int, kind: str, value: Callable[[int], str]) -> Edit:
    """An `edit` that gives an element another value, by the number of the slice."""
    return lambda items, number: [*without(tag)(items, number), (tag, kind, value(number))]


def write_frames(path: Path, order: Sequence[int], *, slopes: Sequence[float] | None = None) -> Path:
    """Slices of `voxels` as the frames of one enhanced file, each of which says where it lies."""
    pixels = np.stack([voxels()[:, :, number].T for number in order])
    measures = [(0x00180050, "DS", f"{DISTANCE:g}"), (0x00280030, "DS", text(SPACING))]
    shared = [(0x00209116, "SQ", [[(0x00200037, "DS", "1\\0\\0\\0\\1\\0")]]), (0x00289110, "SQ", [measures])]
    own = []
    for index, number in enumerate(order):
        slope = slopes[index] if slopes else 1
        values = [(0x00281052, "DS", "0"), (0x00281053, "DS", f"{slope:g}"), (0x00281054, "LO", "US")]
        place = [(0x00200032, "DS", position(number))]
        own.append([(0x00209113, "SQ", [place]), (0x00289145, "SQ", [values])])
    items = common(pixels, uid="1.2.3", number=1, kind=FRAMES)
    items += [(0x00280008, "IS", str(len(order))), (0x52009229, "SQ", [shared]), (0x52009230, "SQ", own)]
    return write_file(path, items, kind=FRAMES)
