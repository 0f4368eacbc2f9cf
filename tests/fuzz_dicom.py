"""DICOM series and files of many frames, each spoilt in a way that people reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from dicom_files import Tags, dicom_file, frames_tags, numbers, slice_tags
from fuzz_example import GIVEN, Example, Truth
from fuzz_image import COLUMNS, COUNT, ORIGIN, ROWS, SPACING, STACK, TRUTH, Files, example

POSITION, DIRECTIONS, PIXELS, SLOPE = (0x20, 0x32), (0x20, 0x37), (0x28, 0x30), (0x28, 0x1053)
NO_NUMBERS = ["", "x", "0\\0", "0\\0\\x", "0\\0\\nan", "0\\0\\inf", "0\\0\\1e300", "0\\0\\0\\0", "\\\\", "0\\0\\--3"]
KNOWN = {".DS_Store": b"\0\0\0\1Bud1", "._1.dcm": b"\0\5\x16\7" + bytes(200), "Thumbs.db": b"x" * 99}
KNOWN |= {".hidden/1.dcm": b"x"}
"""Files that lie beside scans and are none."""


# Series of slices.


def positions() -> list[tuple[float, float, float]]:
    """First voxel of each slice in the axes of the patient (LPS), mm."""
    return [(ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] * number) for number in range(COUNT)]


def sound_slices() -> list[Tags]:
    """The image as one series."""
    return [slice_tags(STACK[n], n, place, SPACING) for n, place in enumerate(positions())]


def files_of(slices: list[Tags]) -> Files:
    """A file for each slice."""
    return {f"scan/{number + 1}.dcm": dicom_file(tags) for number, tags in enumerate(slices)}


@st.composite
def spoilt_series(draw: st.DrawFn) -> Example:
    """A series of slices with one thing wrong or unusual."""
    ways: list[Callable[[st.DrawFn], Example]] = [
        _names_in_no_order, _cut_file, _empty_file, _missing_slice, _position_of_one, _position_of_all, _directions,
        _pixels, _slopes, _other_size, _known_files, _second_series, _link, _copied, _parted, _moved, _bytes, _turned,
    ]  # fmt: skip
    return draw(st.sampled_from(ways))(draw)


def _any(draw: st.DrawFn) -> int:
    return draw(st.integers(0, COUNT - 1))


def _names_in_no_order(draw: st.DrawFn) -> Example:
    order = draw(st.permutations(range(COUNT)))
    ending = draw(st.sampled_from([".dcm", "", ".ima", ".DCM"]))
    files = {f"scan/IM{place:04d}{ending}": dicom_file(tags) for place, tags in zip(order, sound_slices(), strict=True)}
    return example("series: names in no order", files, True)


def _cut_file(draw: st.DrawFn) -> Example:
    files = files_of(sound_slices())
    name = f"scan/{draw(st.sampled_from([1, 4, COUNT]))}.dcm"
    length = draw(st.integers(1, len(files[name]) - 1))
    files[name] = files[name][:length]
    # A file that is too short to say that it is DICOM is still called .dcm.
    return example(f"series: {name} cut", files, False)


def _empty_file(draw: st.DrawFn) -> Example:
    name = f"scan/{draw(st.sampled_from([1, 4, COUNT]))}.dcm"
    return example(f"series: {name} empty", files_of(sound_slices()) | {name: b""}, False)


def _missing_slice(draw: st.DrawFn) -> Example:
    files = files_of(sound_slices())
    for number in draw(st.sets(st.integers(2, COUNT - 1), min_size=1, max_size=3)):
        del files[f"scan/{number}.dcm"]
    # Every second slice of a stack is a sound one of thicker slices; such sets have five slices left at least.
    return example("series: slices missing", files, False)


def _position_of_one(draw: st.DrawFn) -> Example:
    slices, number = sound_slices(), _any(draw)
    if draw(st.booleans()):
        slices[number][POSITION] = ("DS", draw(st.sampled_from(NO_NUMBERS)))
    else:
        del slices[number][POSITION]
    return example("series: position of one slice", files_of(slices), False)


def _position_of_all(draw: st.DrawFn) -> Example:
    slices, text = sound_slices(), draw(st.sampled_from([None, *NO_NUMBERS, "0\\0\\0"]))
    for tags in slices:
        tags.pop(POSITION) if text is None else tags.update({POSITION: ("DS", text)})
    return example("series: position of all slices", files_of(slices), False)


def _directions(draw: st.DrawFn) -> Example:
    slices = sound_slices()
    values = [None, "", "1\\0\\0\\0\\1", "0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "x", "1\\0\\0\\0\\nan\\0"]
    text = draw(st.sampled_from(values))
    chosen = slices if draw(st.booleans()) else [slices[_any(draw)]]
    for tags in chosen:
        tags.pop(DIRECTIONS) if text is None else tags.update({DIRECTIONS: ("DS", text)})
    return example("series: directions", files_of(slices), False)


def _pixels(draw: st.DrawFn) -> Example:
    slices, text = sound_slices(), draw(st.sampled_from([None, "", "0\\0", "x", "-1\\2", "nan\\1", "1.5"]))
    for tags in slices:
        tags.pop(PIXELS) if text is None else tags.update({PIXELS: ("DS", text)})
    return example("series: spacing of pixels", files_of(slices), False)


def _slopes(draw: st.DrawFn) -> Example:
    """Numbers are stored so that slope times number is the same as in the sound series."""
    slices = sound_slices()
    for number in range(COUNT):
        slope = draw(st.sampled_from([1.0, 2.0, 0.5]))
        values = np.round(STACK[number] / 2) * 2 / slope
        slices[number][SLOPE] = ("DS", f"{slope:g}")
        slices[number][0x7FE0, 0x10] = ("OW", values.astype("<i2").tobytes())
    even = Truth(voxels=(np.round(STACK / 2) * 2)[:, ::-1, ::-1], first=TRUTH.first, last=TRUTH.last)
    return example("series: slopes vary", files_of(slices), None, even)


def _other_size(draw: st.DrawFn) -> Example:
    slices, number = sound_slices(), _any(draw)
    plane = np.zeros((ROWS + draw(st.sampled_from([-1, 1])), COLUMNS), np.int16)
    slices[number] = slice_tags(plane, number, positions()[number], SPACING)
    return example("series: one slice of another size", files_of(slices), False)


def _known_files(draw: st.DrawFn) -> Example:
    names = draw(st.sets(st.sampled_from(sorted(KNOWN)), min_size=1))
    beside = {f"scan/{name}": KNOWN[name] for name in names}
    return example("series: files that are no scan beside it", files_of(sound_slices()) | beside, True)


def _second_series(draw: st.DrawFn) -> Example:
    others = [
        slice_tags(STACK[number], number, place, SPACING, series="1.2.3.8") for number, place in enumerate(positions())
    ]
    count = draw(st.integers(1, COUNT))
    files = {f"scan/b{number}.dcm": dicom_file(tags) for number, tags in enumerate(others[:count])}
    return example("series: two in one folder", files_of(sound_slices()) | files, False)


def _link(draw: st.DrawFn) -> Example:
    name = draw(st.sampled_from(["scan/9.dcm", "other.nii.gz", "scan2.nrrd"]))
    made = example("series: a link to nowhere beside it", files_of(sound_slices()), False)
    return Example(
        what=made.what, files=made.files | {f"{GIVEN}/{name}": Path("nowhere")}, read=made.read, is_sound=False
    )


def _copied(draw: st.DrawFn) -> Example:
    files, number = files_of(sound_slices()), _any(draw) + 1
    copies = range(1, COUNT + 1) if draw(st.booleans()) else [number]
    folder = draw(st.sampled_from(["scan/copy-", "scan/copy/"]))
    return example("series: copied twice", files | {f"{folder}{n}.dcm": files[f"scan/{n}.dcm"] for n in copies}, None)


def _parted(draw: st.DrawFn) -> Example:
    half = draw(st.integers(2, COUNT - 2))
    files = {f"scan/{'a' if n < half else 'b'}/{n}.dcm": dicom_file(tags) for n, tags in enumerate(sound_slices())}
    return example("series: in two folders", files, None)


def _moved(draw: st.DrawFn) -> Example:
    slices, number = sound_slices(), draw(st.integers(1, COUNT - 1))
    place = list(positions()[number])
    place[draw(st.integers(0, 2))] += draw(st.sampled_from([1.0, -1.0, 50.0]))
    slices[number][POSITION] = ("DS", numbers(place))
    return example("series: one slice out of place", files_of(slices), False)


def _bytes(draw: st.DrawFn) -> Example:
    files, name = files_of(sound_slices()), f"scan/{_any(draw) + 1}.dcm"
    content = bytearray(files[name])
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.integers(0, len(content) - 2 * ROWS * COLUMNS))] = draw(st.integers(0, 255))
    return example("series: bytes of a header", files | {name: bytes(content)}, None, None)


def _turned(draw: st.DrawFn) -> Example:
    """Instance numbers that run against the positions, or are all the same."""
    slices, same = sound_slices(), draw(st.booleans())
    for number, tags in enumerate(slices):
        tags[0x20, 0x13] = ("IS", "1" if same else str(COUNT - number))
    return example("series: instance numbers", files_of(slices), True)


# One file with many frames.


@st.composite
def spoilt_frames(draw: st.DrawFn) -> Example:
    """A multi-frame file whose frames lie in another way than their number says."""
    places, slopes, order = positions(), [1.0] * COUNT, list(range(COUNT))
    way = draw(st.sampled_from(["order", "gap", "stacks", "none", "slopes", "number", "cut", "same"]))
    is_sound: bool | None = False
    if way == "order":
        order, is_sound = draw(st.permutations(order)), None
    elif way == "gap":
        after = draw(st.integers(1, COUNT - 1))
        places = [(x, y, z + 2 * SPACING[2] * (n >= after)) for n, (x, y, z) in enumerate(places)]
    elif way == "stacks":
        places = [places[number % (COUNT // 2)] for number in range(COUNT)]
    elif way == "same":
        places = [places[0]] * COUNT
    elif way == "slopes":
        slopes, is_sound = [draw(st.sampled_from([1.0, 2.0])) for _ in range(COUNT)], None
    places = [] if way == "none" else places
    stored = np.stack([STACK[n] // 2 if slopes[n] == 2 else STACK[n] // 2 * 2 for n in range(COUNT)])
    stack = stored if way == "slopes" else STACK
    tags = frames_tags(stack[order], [places[n] for n in order] if places else [], SPACING, [slopes[n] for n in order])
    if way == "number":
        tags[0x28, 8] = ("IS", draw(st.sampled_from(["7", "9", "0", "-1", "x", "100000000"])))
    content = dicom_file(tags)
    if way == "cut":
        content = content[: draw(st.integers(200, len(content) - 1))]
    even = Truth(voxels=(STACK // 2 * 2)[:, ::-1, ::-1].astype(float), first=TRUTH.first, last=TRUTH.last)
    return example(f"frames: {way}", {"scan/f.dcm": content}, is_sound, even if way == "slopes" else TRUTH)
