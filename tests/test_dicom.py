"""Series of DICOM slices: every file of one counts, in the place that it states, with its own rescale slope."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest

from dicom_bytes import (
    DISTANCE,
    ORIGIN,
    SHAPE,
    SPACING,
    changed,
    position,
    slice_items,
    text,
    voxels,
    without,
    write_file,
    write_frames,
    write_series,
)
from megavoxel.errors import UserError
from megavoxel.volumes.open import open_volume
from megavoxel.volumes.volume import Hints, Volume

POSITION, DIRECTIONS = 0x00200032, 0x00200037
AFFINE = np.array(
    [[-SPACING[1], 0, 0, -ORIGIN[0]], [0, -SPACING[0], 0, -ORIGIN[1]], [0, 0, DISTANCE, ORIGIN[2]], [0, 0, 0, 1]]
)
"""Of `voxels`, RAS+."""


def assert_whole(volume: Volume) -> None:
    """All of `voxels`, where they are."""
    np.testing.assert_allclose(volume.geometry.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(volume.voxels(None), voxels())


def refused(folder, hints: Hints = Hints()) -> str:  # noqa: B008
    with pytest.raises(UserError) as error:
        open_volume(folder, hints).image()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_slices_lie_where_they_say(tmp_path):
    assert_whole(open_volume(write_series(tmp_path)))


def test_a_file_without_preamble_is_read(tmp_path):
    for number in range(SHAPE[2]):
        write_file(tmp_path / f"IM{number}.dcm", slice_items(number), preamble=False)
    assert_whole(open_volume(tmp_path))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5]])
def test_frames_of_one_file_are_ordered_by_their_places(tmp_path, order):
    write_frames(tmp_path / "frames", order)
    assert_whole(open_volume(tmp_path))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([0, 1, 2, 4, 5], "5 slices are not evenly spaced"),
        ([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], "frames 1 and 7 of frames lie at one place"),
    ],
)
def test_frames_with_a_gap_or_of_several_stacks_are_refused(tmp_path, order, words):
    write_frames(tmp_path / "frames", order)
    assert words in refused(tmp_path)


def test_frames_that_do_not_say_where_they_lie_are_refused(tmp_path):
    pixels = voxels().transpose(2, 1, 0)
    items = [item for item in slice_items(0) if item[0] != 0x7FE00010]
    items += [(0x7FE00010, "OW", pixels.tobytes()), (0x00280008, "IS", str(SHAPE[2]))]
    write_file(tmp_path / "frames", items)
    assert "its slices do not say where they lie in the patient" in refused(tmp_path)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("fault", ["empty", "cut in the pixels", "cut in the header", "a link to nothing"])
def test_a_slice_that_cannot_be_read_is_named_wherever_it_is(tmp_path, place, fault):
    write_series(tmp_path)
    path = tmp_path / {"first": "IM1", "middle": "IM3", "last": f"IM{SHAPE[2]}"}[place]
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "a link to nothing":
        path.unlink()
        path.symlink_to("nothing")
    else:
        path.write_bytes(path.read_bytes()[: -9 if "pixels" in fault else 300])
    assert f"{path}: " in refused(tmp_path)


def test_missing_slices_are_told_by_places_by_numbers_and_by_what_files_say(tmp_path):
    assert "slices are missing" in refused(write_series(tmp_path / "middle", [0, 1, 3, 4, 5]))
    (doubt,) = open_volume(write_series(tmp_path / "first", [2, 3, 4, 5])).doubts
    assert "its slices are numbered from 3 on" in doubt
    last = write_series(tmp_path / "last", [0, 1, 2, 3], edit=lambda items, _: [*items, (0x00201002, "IS", "6")])
    assert open_volume(last).doubts == ("its files speak of 6 slices, and there are 4",)
    (doubt,) = open_volume(write_series(tmp_path / "every second", [0, 2, 4])).doubts
    assert doubt == "its slices are 2.5 mm thick and 5 mm apart, and numbers between them are missing"


def test_a_series_may_lie_in_several_folders_and_be_there_twice(tmp_path):
    write_series(tmp_path / "a", [0, 1, 2])
    write_series(tmp_path / "b", [3, 4, 5])
    assert_whole(open_volume(tmp_path))
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    shutil.copytree(tmp_path / "a", tmp_path / ".Trash-1000")
    assert_whole(open_volume(tmp_path))


def test_two_times_of_one_series_are_refused(tmp_path):
    write_series(tmp_path / "first")
    write_series(tmp_path / "second", edit=changed(0x00200013, "IS", lambda number: str(number + 50)))
    assert "lie at one place, as those of several times" in refused(tmp_path)


def test_what_lies_beside_slices_and_is_known_to_be_none_is_passed_over(tmp_path):
    write_series(tmp_path)
    write_file(tmp_path / "DICOMDIR", [], kind="1.2.840.10008.1.3.10")
    own = [(0x00080016, "UI", "1.3.46.670589.11.0.0.12.2"), (0x00080060, "CS", "CT"), (0x0020000E, "UI", "1.2.3")]
    write_file(tmp_path / "XX_0001", own)
    report = [(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.88.11"), (0x00080060, "CS", "SR")]
    write_file(tmp_path / "IM99", [*report, (0x0020000E, "UI", "1.2.9")])
    for name in (".DS_Store", "._IM1", "Thumbs.db", "VERSION", "notes"):
        (tmp_path / name).write_bytes(b"words" if name == "notes" else b"\0\1")
    assert_whole(open_volume(tmp_path))
    (tmp_path / "IM98").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "IM98: it lies among the slices of a scan and is none that can be read" in refused(tmp_path)


def test_slices_of_several_sizes_directions_or_pixels_are_refused(tmp_path):
    write_series(tmp_path / "size")
    small = [item for item in slice_items(0) if item[0] not in (0x00280010, 0x7FE00010)]
    write_file(tmp_path / "size/IM9", [*small, (0x00280010, "US", 2), (0x7FE00010, "OW", bytes(20))])
    assert "its slices have several sizes (5 x 4 pixels in IM1 and 5 x 2 pixels in IM9)" in refused(tmp_path / "size")

    turned = changed(DIRECTIONS, "DS", lambda number: text((0, 1, 0, 0, 0, -1) if number == 3 else (1, 0, 0, 0, 1, 0)))
    assert "several directions (IM1 and IM4)" in refused(write_series(tmp_path / "turned", edit=turned))

    coarse = changed(0x00280030, "DS", lambda number: "1\\1" if number == 3 else "2\\2")
    assert "pixels of several sizes" in refused(write_series(tmp_path / "coarse", edit=coarse))


@pytest.mark.parametrize("value", ["a\\b\\c", "1\\2", "nan\\1\\2", "1e999\\0\\0"])
def test_a_position_that_is_none_is_a_fault_of_its_file(tmp_path, value):
    write_series(tmp_path, edit=changed(POSITION, "DS", lambda _: value))
    assert "IM1: cannot be read to its end ((0020,0032) is" in refused(tmp_path)


def test_slices_without_a_place_take_what_the_user_says_in_order_of_their_numbers(tmp_path):
    lost = without(POSITION, DIRECTIONS)
    write_series(tmp_path / "all", edit=lost)
    assert "--assume-orientation LPS --assume-spacing" in refused(tmp_path / "all")
    assert "to predict, give" in refused(tmp_path / "all", Hints(orientation="LPS"))
    hints = Hints(orientation="LPS", sides=(9.0, 9.0, 2.5))
    volume = open_volume(tmp_path / "all", hints)
    np.testing.assert_array_equal(volume.voxels(None), voxels())
    np.testing.assert_allclose(volume.geometry.affine, np.diag([-SPACING[1], -SPACING[0], 2.5, 1]))
    assert not volume.is_oriented
    write_series(tmp_path / "gap", [0, 1, 4, 5], edit=lost)
    assert "their numbers do not follow one another" in refused(tmp_path / "gap", hints)
    write_series(tmp_path / "some", edit=lambda items, number: lost(items, number) if number == 4 else items)
    assert "1 of 6 slices do not say where they lie, such as IM5" in refused(tmp_path / "some", hints)


def test_a_lone_slice_is_as_thick_as_it_says_or_as_the_user_says(tmp_path):
    assert open_volume(write_series(tmp_path / "said", [0])).shape == (1, 1, 4, 5)
    write_series(tmp_path / "unsaid", [0], edit=without(0x00180050))
    assert "how thick its one slice is" in refused(tmp_path / "unsaid")
    assert open_volume(tmp_path / "unsaid", Hints(sides=(1.0, 1.0, 7.0))).geometry.affine[2, 2] == 7


@pytest.mark.parametrize("kind", ["files", "frames"])
def test_each_slice_has_its_own_rescale_slope(tmp_path, kind):
    slopes = [1.0, 0.5, 0.001, 2.0, 0.25, 10.0]
    if kind == "files":
        for number, slope in enumerate(slopes):
            write_file(tmp_path / f"IM{number}", slice_items(number, slope=slope, modality="PT"))
    else:
        write_frames(tmp_path / "frames", range(SHAPE[2]), slopes=slopes)
    wanted = voxels() * np.array(slopes)
    np.testing.assert_allclose(open_volume(tmp_path).voxels(np.float32), wanted, rtol=1e-6)


def test_sequences_too_deep_and_lengths_beyond_the_file_are_faults(tmp_path):
    nested = b""
    for _ in range(40):
        nested = struct.pack("<HHI", 0xFFFE, 0xE000, len(nested)) + nested
        nested = struct.pack("<HH2sHI", 0x5200, 0x9229, b"SQ", 0, len(nested)) + nested
    path = write_file(tmp_path / "IM1", slice_items(0))
    path.write_bytes(path.read_bytes()[:-52] + nested)
    assert "lie too deep in one another" in refused(tmp_path)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<I", 2**31))
    assert "cannot be read to its end" in refused(tmp_path)


def test_positions_are_those_that_the_helper_writes():
    assert position(2) == "-10\\20\\-25"
