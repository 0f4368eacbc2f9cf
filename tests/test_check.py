"""Every kind of fault is found and named."""

from __future__ import annotations

import numpy as np
import pytest

from dataset_folder import AFFINE, SHAPE, Folder, image, labels
from megavoxel.datasets.cases import load_cases
from megavoxel.volumes.grid import Geometry, compare_grids


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_a_truncated_gzip_is_named(folder, capsys):
    path = folder.data / "imagesTr/case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    folder.finds(capsys, "case_1", "readable", "imagesTr/case_1.nii.gz", "truncated")


def test_a_truncated_label_is_named(folder, capsys):
    path = folder.data / "labelsTr/case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    folder.finds(capsys, "case_1", "readable", "labelsTr/case_1.nii.gz", "truncated")


def test_an_undeclared_value_is_named_with_the_declared_ones(folder, capsys):
    array = labels()
    array[0, 0, 0], array[0, 0, 1] = 7, 5
    folder.write("labelsTr/case_2", array)
    folder.finds(capsys, "case_2", "label-values", "5, 7", "0 background, 1 one, 2 two")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_value_that_is_not_finite_is_named(folder, capsys, value):
    array = image()
    array[0, 0, 0] = array[1, 1, 1] = value
    folder.write("imagesTr/case_0", array)
    folder.finds(capsys, "case_0", "finite", "2 voxels")


@pytest.mark.parametrize("value", [0.5, np.nan, -1])
def test_a_label_that_is_no_whole_number_is_named(folder, capsys, value):
    array = labels().astype(np.float32)
    array[0, 0, 0] = value
    folder.write("labelsTr/case_0", array)
    folder.finds(capsys, "case_0", "label-values", "whole numbers")


def test_a_label_of_another_shape_is_named(folder, capsys):
    folder.write("labelsTr/case_1", labels()[:, :, :-1])
    folder.finds(capsys, "case_1", "shape", "6 x 7 x 8", "6 x 7 x 7", "labelsTr/case_1.nii.gz")


def test_a_label_of_another_spacing_is_named(folder, capsys):
    folder.write("labelsTr/case_1", labels(), np.diag([1.0, 1.5, 2.01, 1.0]))
    folder.finds(capsys, "case_1", "spacing", "1 x 1.5 x 2 ", "1 x 1.5 x 2.01")


def test_a_label_in_another_place_is_named(folder, capsys):
    moved = AFFINE.copy()
    moved[0, 3] = 0.06
    folder.write("labelsTr/case_1", labels(), moved)
    folder.finds(capsys, "case_1", "affine", "0.06 mm apart", "0.05 mm")


def test_a_label_stored_in_another_orientation_is_named(folder, capsys):
    folder.write("labelsTr/case_1", labels(), np.diag([-1.0, 1.5, 2.0, 1.0]))
    folder.finds(capsys, "case_1", "affine", "10 mm apart")


def test_differences_within_the_tolerances_pass():
    first = Geometry(shape=SHAPE, affine=AFFINE)
    near = AFFINE.copy()
    near[0, 3], near[2, 2] = 0.045, 2.0019
    assert compare_grids(first, Geometry(shape=SHAPE, affine=near)) == []
    near[2, 2] = 2.0021
    assert [check for check, _ in compare_grids(first, Geometry(shape=SHAPE, affine=near))] == ["spacing"]


def test_a_turn_that_moves_only_far_corners_is_found():
    """Half a degree about the first corner of a long grid: nothing moves there, the far end by 0.87 mm."""
    angle = np.radians(0.5)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    grids = [Geometry(shape=(101, 2, 2), affine=affine) for affine in (np.eye(4), turned)]
    ((check, message),) = compare_grids(*grids)
    assert check == "affine"
    assert "0.873 mm" in message


def test_a_missing_label_is_named(folder, capsys):
    (folder.data / "labelsTr/case_1.nii.gz").unlink()
    folder.finds(capsys, "case_1", "missing-label", "labelsTr/case_1.nii.gz")


def test_a_training_case_listed_without_label_is_named(folder, capsys):
    del folder.content["training"][1]["label"]
    folder.finds(capsys, "case_1", "missing-label", "no label map")


def test_a_missing_image_is_named(folder, capsys):
    (folder.data / "imagesTr/case_1.nii.gz").unlink()
    folder.finds(capsys, "case_1", "missing-image", "imagesTr/case_1.nii.gz")


def test_a_constant_image_is_named(folder, capsys):
    folder.write("imagesTr/case_1", np.full(SHAPE, 4, np.int16))
    folder.finds(capsys, "case_1", "empty", "the value 4 in every voxel")


def test_an_image_without_voxels_is_named(folder, capsys):
    folder.write("imagesTr/case_1", np.zeros((0, 7, 8), np.int16))
    folder.write("labelsTr/case_1", np.zeros((0, 7, 8), np.uint8))
    folder.finds(capsys, "case_1", "empty", "no voxels")


def test_an_image_with_another_number_of_channels_is_named(folder, capsys):
    folder.write("imagesTr/case_1", image(2))
    folder.finds(capsys, "case_1", "channels", "2 channels, declared are 1: c0")


def test_an_image_with_two_axes_is_named(folder, capsys):
    folder.write("imagesTr/case_1", image()[:, :, 0])
    folder.finds(capsys, "case_1", "header", "three axes")


def test_four_axes_are_channels(tmp_path):
    folder = Folder(tmp_path, channels=2)
    assert folder.check() == 0
    cases = load_cases(tmp_path / "cases.json")
    assert cases.read_image(cases.cases[0])[0].shape == (2, 8, 7, 6)


def test_one_constant_channel_of_two_is_named(tmp_path, capsys):
    folder = Folder(tmp_path, channels=2)
    array = image(2)
    array[..., 1] = 3
    folder.write("imagesTr/case_0", array)
    folder.finds(capsys, "case_0", "empty", "channel 1 of imagesTr/case_0.nii.gz")


def test_channels_in_files_of_their_own_must_share_a_grid(tmp_path, capsys):
    folder = Folder(tmp_path, cases=0)
    folder.content = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "one": 1, "two": 2}}
    for case in ("p", "q"):
        folder.write(f"imagesTr/{case}_0000", image())
        folder.write(f"imagesTr/{case}_0001", image()[:-1] if case == "q" else image())
        folder.write(f"labelsTr/{case}", labels())
    assert folder.check() == 1
    assert [row[:2] for row in folder.rows()] == [("q", "shape")]
    assert "imagesTr/q_0000.nii.gz and imagesTr/q_0001.nii.gz" in capsys.readouterr().err
    assert [row[0] for row in folder.rows("ok")] == ["p"]
