"""The slices of a DICOM series in their order, by the places that they state: single files, or frames of one file.

A library's own order of slices, or a grid that it makes up where a file states none, is never taken at its word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from megavoxel.errors import UserError
from megavoxel.files import file_sha256
from megavoxel.volumes.formats import dicom_headers as tags
from megavoxel.volumes.formats.dicom_headers import Elements, Header
from megavoxel.volumes.formats.itk import LPS_TO_RAS
from megavoxel.volumes.grid import assumed_affine
from megavoxel.volumes.volume import Hints, unreadable

UNEVEN = 0.1
"""Largest distance of a slice from its even place, in slices."""
SAME = 1e-3
"""Largest difference of directions and, in relation to their size, of pixels' sizes within a stack."""
GAP = 1.5
"""Steps between slices, in slices as thick as they state, from which on numbers that are missing count as slices."""
CONVERT = "; convert it to NIfTI, for example by dcm2niix, and look at the result"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A slice: a file, or a frame of one."""

    path: Path
    index: int
    """Among the frames of its file."""
    position: tuple[float, ...] | None
    """Centre of its first pixel in mm, LPS+."""
    directions: tuple[float, ...] | None
    """In which the columns' number rises, and in which the rows' does, LPS+."""
    spacing: tuple[float, ...] | None
    """Distance of rows, and of columns, in mm."""
    thickness: float | None
    """Distance of slices where it is stated, else their thickness, in mm."""
    scale: tuple[float, float]
    """Slope and intercept."""
    size: tuple[int, int]
    """Rows and columns."""
    stored: tuple[int, int]
    """Bits of a pixel, and whether they have a sign."""
    number: int | None
    """The file's number in its series (InstanceNumber)."""
    expected: int
    """Slices that the file says there are; 0: it says nothing."""

    def __str__(self) -> str:
        """Its file's name, for messages."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices that follow one another evenly."""

    frames: tuple[Frame, ...]
    """In order of the slices."""
    affine: np.ndarray
    """4 x 4, voxel index (i, j, k) to mm in RAS+."""
    is_oriented: bool
    """Whether the slices say where they lie."""
    doubts: tuple[str, ...] = ()
    """What speaks for slices that are missing at the ends."""


def frames_of(header: Header) -> tuple[Frame, ...]:
    """The slices of a file.

    Raises:
        UserError: a place or size is no number.
    """
    try:
        return _frames(header)
    except ValueError as fault:
        raise unreadable(header.path, fault) from None


def _frames(header: Header) -> tuple[Frame, ...]:
    top = header.elements
    count = int(top.number(tags.FRAMES) or 1)
    shared, own = top.item(tags.SHARED), top.sequences.get(tags.PER_FRAME, ())
    if own and len(own) != count:
        raise ValueError(f"it states {count} frames, and the places of {len(own)}")
    number = top.number(tags.NUMBER)
    known = {
        "path": header.path,
        "size": (top.short(tags.ROWS), top.short(tags.COLUMNS)),
        "stored": (top.short(tags.BITS), top.short(tags.SIGN)),
        "number": None if number is None else int(number),
        "expected": int(max(top.number(tags.IN_ACQUISITION) or 0, top.number(tags.IN_SERIES) or 0, _slices(top))),
    }
    if not own and count > 1:  # what the file states beside frames is the place of one of them, if of any
        top = Elements(values={tag: value for tag, value in top.values.items() if tag != tags.POSITION})
    return tuple(_frame(index, (*_groups(own, index), shared, top), known) for index in range(count))


def _slices(top: Elements) -> int:
    return 0 if top.number(tags.FRAMES) else top.short(tags.SLICES)


def _groups(own: Sequence[Elements], index: int) -> tuple[Elements, ...]:
    return (own[index],) if own else ()


def _frame(index: int, places: Sequence[Elements], known: dict[str, object]) -> Frame:
    """A frame by what is stated of it alone, of all frames, or of the file."""

    def stated(sequence: int, tag: int, count: int) -> tuple[float, ...] | None:
        inner = [place.item(sequence) for place in places[:-1]]
        return next((found for place in (*inner, places[-1]) if (found := place.numbers(tag, count))), None)

    measures = tags.PIXEL_MEASURES
    distance = stated(measures, tags.DISTANCE, 1) or stated(measures, tags.THICKNESS, 1)
    slope, intercept = (stated(tags.PIXEL_VALUES, tag, 1) for tag in (tags.SLOPE, tags.INTERCEPT))
    return Frame(
        index=index,
        position=stated(tags.PLANE_POSITION, tags.POSITION, 3),
        directions=stated(tags.PLANE_ORIENTATION, tags.DIRECTIONS, 6),
        spacing=stated(measures, tags.SPACING, 2),
        thickness=abs(distance[0]) if distance else None,
        scale=((slope or (1.0,))[0], (intercept or (0.0,))[0]),
        **known,
    )


def without_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Leaves out files that are copies of another one, byte for byte."""
    kept: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        kept.setdefault((frame.position, frame.number, frame.index, frame.path.stat().st_size), []).append(frame)
    copies: set[Path] = set()
    for alike in kept.values():
        seen: set[str] = set()
        for path in dict.fromkeys(frame.path for frame in alike) if len(alike) > 1 else ():
            digest = file_sha256(path)
            copies |= {path} if digest in seen else set()
            seen.add(digest)
    return [frame for frame in frames if frame.path not in copies]


def stack_of(frames: Sequence[Frame], where: str, hints: Hints) -> Stack:
    """Slices in their order, and their grid.

    Args:
        frames: of one series.
        where: its folder and name, for messages.
        hints: `orientation` and `sides` count where the slices do not say it.

    Raises:
        UserError: slices differ in size or direction, lie at one place, are missing, are not evenly spaced, or do not
            say where they lie and `hints` does not either.
    """
    first = frames[0]
    other = next((frame for frame in frames if frame.size != first.size), None)
    if other is not None:
        sizes = " and ".join(f"{frame.size[1]} x {frame.size[0]} pixels in {frame}" for frame in (first, other))
        raise UserError(f"{where}: its slices have several sizes ({sizes}); bring the slices of one scan alone")
    lacking = [frame for frame in frames if frame.position is None or frame.directions is None]
    if len(lacking) == len(frames):
        return _assumed(frames, where, hints)
    if lacking:
        raise UserError(
            f"{where}: {len(lacking)} of {len(frames)} slices do not say where they lie, such as {lacking[0]}; bring "
            "the slices of one scan alone"
        )
    return _placed(frames, where, hints)


def _placed(frames: Sequence[Frame], where: str, hints: Hints) -> Stack:
    directions = np.array([frame.directions for frame in frames])
    row, column = directions[0].reshape(2, 3)
    odd = int(np.abs(directions - directions[0]).max(axis=1).argmax())
    if np.abs(directions[odd] - directions[0]).max() > SAME:
        raise UserError(
            f"{where}: its slices have several directions ({frames[0]} and {frames[odd]}), as those of several stacks "
            "or of an overview among them; bring the slices of one scan alone"
        )
    if abs(np.linalg.norm(row) - 1) > SAME or abs(np.linalg.norm(column) - 1) > SAME or abs(row @ column) > SAME:
        raise UserError(f"{where}: the directions of its rows and columns make no sense{CONVERT}")
    normal = np.cross(row, column)
    ordered = sorted(frames, key=lambda frame: float(np.dot(frame.position, normal)))
    height, width = _pixel(ordered, where, hints)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * width, column * height, _step(ordered, normal, where, hints)])
    affine[:3, 3] = ordered[0].position
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return Stack(frames=tuple(ordered), affine=affine, is_oriented=True, doubts=_doubts(ordered, affine))


def _step(frames: Sequence[Frame], normal: np.ndarray, where: str, hints: Hints) -> np.ndarray:
    """From a slice to the next one, in mm."""
    if len(frames) == 1:
        return normal * (frames[0].thickness or _assumed_side(2, where, hints, "how thick its one slice is"))
    places = np.array([frame.position for frame in frames])
    along = (places - places[0]) @ normal
    step = along[-1] / (len(frames) - 1)
    twin = int(np.diff(along).argmin())
    if along[twin + 1] - along[twin] <= UNEVEN * step:
        same = (
            f"{frames[twin]} and {frames[twin + 1]}"
            if frames[twin].path != frames[twin + 1].path
            else (f"frames {frames[twin].index + 1} and {frames[twin + 1].index + 1} of {frames[twin]}")
        )
        raise UserError(
            f"{where}: {len(frames)} slices are not evenly spaced: {same} lie at one place, as those of several times, "
            "echoes or stacks do; bring the slices of one of them"
        )
    even = places[0] + np.linspace(0, along[-1], len(places))[:, None] * normal
    away = np.linalg.norm(places - even, axis=1)
    if away.max() > UNEVEN * step:
        raise UserError(
            f"{where}: its {len(places)} slices are not evenly spaced, or their stack is not straight (around "
            f"{frames[int(away.argmax())]}); slices are missing, two scans share a series, or the gantry was tilted: "
            "bring all slices of one scan, or resample it to NIfTI"
        )
    return (places[-1] - places[0]) / (len(frames) - 1)


def _pixel(frames: Sequence[Frame], where: str, hints: Hints) -> tuple[float, float]:
    """Distance of rows, and of columns, in mm."""
    stated = [frame.spacing for frame in frames]
    if None in stated:
        return _assumed_side(1, where, hints, "how large its pixels are"), _assumed_side(0, where, hints, "")
    sizes = np.array(stated)
    if (sizes <= 0).any():
        raise UserError(f"{where}: the size of its pixels is stated as {sizes.min():g} mm{CONVERT}")
    if (np.abs(sizes - sizes[0]) > SAME * sizes[0]).any():
        raise UserError(f"{where}: its slices have pixels of several sizes; bring the slices of one scan alone")
    return float(sizes[0][0]), float(sizes[0][1])


def _assumed_side(axis: int, where: str, hints: Hints, what: str) -> float:
    if hints.sides is None:
        raise UserError(
            f"{where}: it does not say {what}; to predict, give its voxels' size in mm: --assume-spacing X Y Z"
        )
    return hints.sides[axis]


def _assumed(frames: Sequence[Frame], where: str, hints: Hints) -> Stack:
    """Slices that do not say where they lie, in order of their numbers, where the user says the rest."""
    if hints.orientation is None or hints.sides is None:
        raise UserError(
            f"{where}: its slices do not say where they lie in the patient, nor how far apart; to predict, give the "
            "directions of columns, rows and slices and the voxels' size in mm, such as --assume-orientation LPS "
            "--assume-spacing 0.8 0.8 3"
        )
    ordered = sorted(frames, key=lambda frame: (frame.number or 0, frame.index))
    if len({frame.path for frame in frames}) > 1:
        numbers = [frame.number for frame in ordered]
        if None in numbers or any(after - before != 1 for before, after in pairwise(numbers)):
            raise UserError(
                f"{where}: its slices do not say where they lie, and their numbers do not follow one another: slices "
                "are missing, or two scans share a series; bring all slices of one scan"
            )
    width, height = _pixel(ordered, where, hints)[::-1]
    affine = assumed_affine(ordered[0].path, (width, height, hints.sides[2]), hints.orientation)
    return Stack(frames=tuple(ordered), affine=affine, is_oriented=False, doubts=_doubts(ordered, affine))


def _doubts(frames: Sequence[Frame], affine: np.ndarray) -> tuple[str, ...]:
    """What speaks for slices that are missing where their places do not show it: at the ends, or every second one."""
    found = []
    expected = max(frame.expected for frame in frames)
    if expected > len(frames):
        found.append(f"its files speak of {expected} slices, and there are {len(frames)}")
    numbers = sorted(frame.number for frame in frames if frame.number is not None and frame.index == 0)
    if len(numbers) == len(frames) and numbers[0] > 1:
        found.append(f"its slices are numbered from {numbers[0]} on, so that those before it may be missing")
    thickness, step = frames[0].thickness, float(np.linalg.norm(affine[:3, 2]))
    has_holes = len(numbers) == len(frames) > 1 and numbers[-1] - numbers[0] >= len(numbers)
    if has_holes and thickness and step > GAP * thickness:
        found.append(
            f"its slices are {thickness:g} mm thick and {step:g} mm apart, and numbers between them are missing"
        )
    return tuple(found)
