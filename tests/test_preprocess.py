"""Preprocessing on cases that can be counted: box, intensities, grid, classes, foreground, shards."""

from __future__ import annotations

import json

import numpy as np
import pytest
from monai.transforms import ScaleIntensityRange
from scipy import ndimage

from helpers import preprocessing_plan
from megavoxel.cli import main
from megavoxel.config.setting import Preprocessing
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.planning.fingerprint import measure
from megavoxel.planning.plan import ChannelNormalisation, save_plan
from megavoxel.planning.planner import plan_preprocessing
from megavoxel.preprocessing.case import preprocess_image, preprocess_labels
from megavoxel.preprocessing.foreground import sample_foreground
from megavoxel.preprocessing.normalise import normalise
from megavoxel.preprocessing.resample import resample_image
from megavoxel.preprocessing.store import Box, open_case, read_box
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.masks import bounding_box, fill_holes, nonzero_mask
from scans import dataset, dataset_of, write_case

RANGE = ChannelNormalisation(scheme="range", lower=-21.0, upper=89.0)
CT = ChannelNormalisation(scheme="ct", mean=50.0, std=25.0, lower=-100.0, upper=200.0)


def geometry(shape, spacing=(1.0, 1.0, 1.0)) -> Geometry:
    """A file in RAS+ whose canonical shape and spacing (z, y, x) these are."""
    return Geometry(shape=tuple(reversed(shape)), affine=np.diag([*reversed(spacing), 1.0]))


def test_the_box_is_of_any_channel_and_an_empty_image_keeps_its_grid():
    image = np.zeros((2, 6, 7, 8))
    image[0, 2, 3, 4] = -5
    image[1, 4, 3, 1] = 1
    assert bounding_box(nonzero_mask(image)) == ((2, 5), (3, 4), (1, 5))
    assert bounding_box(nonzero_mask(image * 0)) == ((0, 6), (0, 7), (0, 8))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 1.0, 0.0])
def test_holes_are_filled_as_scipy_fills_them(share):
    mask = np.random.default_rng(0).random((9, 10, 11)) < share
    filled = fill_holes(mask)
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))
    assert bounding_box(filled) == bounding_box(mask)


def test_ct_is_clipped_and_scaled_by_the_dataset():
    image = np.array([-1000, -100, 50, 75, 200, 3000], dtype=np.float32).reshape(1, 1, 1, 6)
    np.testing.assert_allclose(normalise(image, [CT]).ravel(), [-6, -6, 0, 1, 6, 6])


def test_a_fixed_range_becomes_0_to_1_whatever_the_image():
    image = np.array([-1000, -21, 34, 78, 89, 3000], dtype=np.float32).reshape(1, 1, 1, 6)
    np.testing.assert_allclose(normalise(image, [RANGE]).ravel(), [0, 0, 0.5, 0.9, 1, 1], atol=1e-6)


def test_a_fixed_range_is_that_of_monai():
    image = np.random.default_rng(0).normal(30, 100, size=(1, 8, 9, 10)).astype(np.float32)
    expected = ScaleIntensityRange(a_min=-21, a_max=89, b_min=0, b_max=1, clip=True)(image)
    np.testing.assert_allclose(normalise(image.copy(), [RANGE]), expected, atol=1e-6)


def test_a_resampled_image_stays_in_its_range_and_air_is_what_patches_are_filled_up_with():
    image = np.full((1, 9, 9, 9), -1000, dtype=np.float32)
    image[0, 3:6, 3:6, 3:6] = 500
    plan = preprocessing_plan(spacing=(0.7, 0.8, 0.6), normalisation=(RANGE,))
    array, _ = preprocess_image(image, geometry((9, 9, 9)), plan, "a")
    assert array.shape == (1, 13, 11, 15)
    assert (array.min(), array.max()) == (0, 1)
    beyond = read_box(array, Box(start=(-1, 0, 0), shape=(1, 11, 15)))
    # Splines of order 3 ring a little below the cube, by less than 0.001 of the range.
    np.testing.assert_allclose(array[:, :1], beyond, atol=1e-3)


def test_z_scores_are_of_each_channel():
    image = (
        np.random.default_rng(0).normal([[[[5]]], [[[-3]]]], [[[[2]]], [[[9]]]], size=(2, 8, 9, 10)).astype(np.float32)
    )
    rules = [ChannelNormalisation(scheme="z-score")] * 2
    expected = (image - image.mean((1, 2, 3), keepdims=True)) / image.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(normalise(image.copy(), rules), expected, atol=1e-5)


def test_z_scores_of_the_nonzero_region_leave_zero_outside():
    image = np.array([0, 1, 3, 0, 5, 0], dtype=np.float32).reshape(1, 1, 1, 6)
    inside = np.array([0, 1, 1, 0, 1, 0], dtype=bool).reshape(1, 1, 6)
    rule = ChannelNormalisation(scheme="z-score", inside_nonzero=True)
    spread = np.std([1, 3, 5])
    np.testing.assert_allclose(
        normalise(image, [rule], inside).ravel(), [0, -2 / spread, 0, 0, 2 / spread, 0], atol=1e-6
    )


@pytest.mark.parametrize("scheme", ["ct", "z-score"])
def test_constant_intensities_become_zero(scheme):
    rule = ChannelNormalisation(scheme=scheme, mean=4.0, std=0.0, lower=4.0, upper=4.0)
    assert (normalise(np.full((1, 3, 3, 3), 4, dtype=np.float32), [rule]) == 0).all()


def test_a_box_is_cut_out_turned_and_normalised():
    image = np.zeros((1, 6, 8, 10), dtype=np.float32)
    image[0, 1:4, 2:7, 3:9] = np.arange(1, 91).reshape(3, 5, 6)
    plan = preprocessing_plan(transpose=(2, 0, 1), spacing=(5.0, 1.0, 2.0), normalisation=(CT,))
    array, properties = preprocess_image(image, geometry((6, 8, 10), (1.0, 2.0, 5.0)), plan, "a")
    block = image[0, 1:4, 2:7, 3:9].transpose(2, 0, 1)
    np.testing.assert_allclose(array[0], (block - 50) / 25, atol=1e-6)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert image.max() == 90
    assert properties.full_shape == (10, 6, 8)
    assert properties.box == ((3, 9), (1, 4), (2, 7))
    assert properties.spacing == (5.0, 1.0, 2.0)
    assert properties.shape == (6, 3, 5)
    assert properties.file_shape == (10, 8, 6)
    assert properties.plan == plan.hash
    assert properties.geometry.canonical_shape == (6, 8, 10)


def test_normalisation_comes_before_resampling():
    # Clipped first, no intensity is beyond the limits of the interpolation; clipped last, the bright voxel would smear.
    image = np.full((1, 4, 4, 8), 50, dtype=np.float32)
    image[..., 4] = 10_000
    plan = preprocessing_plan(spacing=(1.0, 1.0, 0.5), normalisation=(CT,))
    array, _ = preprocess_image(image, geometry((4, 4, 8)), plan, "a")
    clipped = (np.clip(image, -100, 200) - 50) / 25
    np.testing.assert_allclose(array, resample_image(clipped, (1, 1, 1), (1, 1, 0.5), (4, 4, 16), 3), atol=1e-6)


def test_holes_of_the_nonzero_region_count_as_inside():
    image = np.zeros((1, 7, 7, 7), dtype=np.float32)
    image[0, 1:6, 1:6, 1:6] = 2
    image[0, 3, 3, 3] = 0
    rule = ChannelNormalisation(scheme="z-score", inside_nonzero=True)
    array, _ = preprocess_image(image, geometry((7, 7, 7)), preprocessing_plan(normalisation=(rule,)), "a")
    block = image[:, 1:6, 1:6, 1:6]
    np.testing.assert_allclose(array, (block - block.mean()) / block.std(), atol=1e-5)


def test_z_scores_of_the_nonzero_region_are_those_of_nnunet():
    cropping = pytest.importorskip("nnunetv2.preprocessing.cropping.cropping", reason="the peer is not installed")
    schemes = pytest.importorskip("nnunetv2.preprocessing.normalization.default_normalization_schemes")
    image = np.random.default_rng(0).normal(100, 20, size=(1, 9, 10, 11)).astype(np.float32)
    image[:, :2], image[:, :, 8:] = 0, 0
    image[0, 5, 4, 3:6], image[0, 2:4, 0, 0] = 0, 0  # a hole, and a notch at the border
    array, box, _ = cropping.crop_to_nonzero(image.copy(), np.zeros(image.shape, dtype=np.int8))
    expected = schemes.ZScoreNormalization(use_mask_for_norm=True, intensityproperties={}).run(array[0], box[0])
    rule = ChannelNormalisation(scheme="z-score", inside_nonzero=True)
    ours, _ = preprocess_image(image, geometry(image.shape[1:]), preprocessing_plan(normalisation=(rule,)), "a")
    assert (ours[0, :2, 0, 0] == 0).all()
    np.testing.assert_allclose(ours[0], expected, atol=1e-5)


def test_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match=r"case a: the image has 2 channels; the plan has 1 \(CT\)"):
        preprocess_image(np.ones((2, 3, 3, 3), dtype=np.float32), geometry((3, 3, 3)), preprocessing_plan(), "a")


@pytest.fixture
def cropped():
    """Properties of a case of 4 × 4 × 4 voxels whose first slice is empty."""
    image = np.ones((1, 4, 4, 4), dtype=np.float32)
    image[0, 0] = 0
    return preprocess_image(image, geometry((4, 4, 4)), preprocessing_plan(), "a")[1]


def test_labels_become_classes_by_their_position_in_the_plan(cropped):
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[0] = 1
    labels[1, 0] = 3
    labels[2, 1] = 1
    classes = preprocess_labels(labels, cropped, preprocessing_plan())
    expected = np.zeros((3, 4, 4))
    expected[0, 0] = 2
    expected[1, 1] = 1
    np.testing.assert_array_equal(classes, expected)
    assert classes.dtype == np.uint8


def test_an_unknown_value_and_another_shape_are_refused(cropped):
    labels = np.zeros((4, 4, 4), dtype=np.uint16)
    labels[2, 2, 2] = 700
    with pytest.raises(
        UserError, match=r"case a: the label map holds 700; the plan knows 0 and 1 \(ball\), 3 \(cube\)"
    ):
        preprocess_labels(labels, cropped, preprocessing_plan())
    with pytest.raises(UserError, match="case a: the label map has shape"):
        preprocess_labels(labels[:3], cropped, preprocessing_plan())


def test_more_than_255_labels_need_two_bytes(cropped):
    plan = preprocessing_plan(labels={f"l{value}": value for value in range(1, 301)})
    labels = np.full((4, 4, 4), 300, dtype=np.uint16)
    assert preprocess_labels(labels, cropped, plan).max() == 300


def test_foreground_is_sampled_per_class_and_depends_on_the_id_alone():
    classes = np.zeros((20, 300, 300), dtype=np.uint8)
    classes[:, :, :30] = 2  # 180 000 voxels: 10 000 are kept
    classes[3, 4, 40:47] = 5
    sampled = sample_foreground(classes, "a")
    assert {label: voxels.shape for label, voxels in sampled.items()} == {2: (10_000, 3), 5: (7, 3)}
    for label, voxels in sampled.items():
        assert voxels.dtype == np.int32
        assert (classes[tuple(voxels.T)] == label).all()
        assert len(np.unique(voxels, axis=0)) == len(voxels)
    again, other = sample_foreground(classes, "a"), sample_foreground(classes, "b")
    np.testing.assert_array_equal(again[2], sampled[2])
    assert (other[2] != sampled[2]).any()


def test_of_a_large_class_one_percent_is_kept():
    classes = np.ones((101, 100, 101), dtype=np.uint8)  # 1 020 100 voxels
    assert len(sample_foreground(classes, "a")[1]) == 10_201
    assert sample_foreground(classes * 0, "a") == {}


@pytest.fixture
def stage(tmp_path):
    """Three cases, one of them without labels, and a function that runs the stage on them."""
    random = np.random.default_rng(0)
    images = [random.normal(50, 20, size=(6, 8, 9)).astype(np.float32) for _ in range(3)]
    labels = np.zeros((6, 8, 9), dtype=np.uint8)
    labels[2:4, 2:5, 3:6] = 3
    cases = dataset(
        tmp_path,
        [
            write_case(tmp_path, "c", images[0], labels, spacing=(2.0, 1.0, 1.0)),
            write_case(tmp_path, "a", images[1], labels, spacing=(2.0, 1.0, 1.0)),
            write_case(tmp_path, "b", images[2], split="test"),
        ],
    )
    save_cases(tmp_path / "cases.json", cases)
    save_plan(tmp_path / "plan.json", preprocessing_plan(normalisation=(CT,)))

    def run(*options: str, folder: str = "out", output: str = "marker.json") -> int:
        paths = {"--cases": "cases.json", "--plan": "plan.json", "--folder": folder, "--output": output}
        written = [text for name, path in paths.items() for text in (name, str(tmp_path / path))]
        return main(["preprocess", *written, *options])

    return run


def test_the_stage_stores_every_case_and_a_marker(tmp_path, stage, capsys):
    assert stage("--patch", "4", "4", "4") == 0
    marker = json.loads((tmp_path / "marker.json").read_text())
    plan = preprocessing_plan(normalisation=(CT,))
    assert marker == {"plan": plan.hash, "shard": 0, "shards": 1, "cases": ["a", "b", "c"]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a: 6 x 8 x 9 cropped to 6 x 8 x 9, resampled to 12 x 8 x 9; 1 of 3"
    assert len(lines) == 3
    stored = open_case(tmp_path / "out", "a")
    assert stored.image.shape == (1, 12, 8, 9)
    np.testing.assert_array_equal(np.unique(stored.labels[:]), [0, 2])
    assert list(stored.foreground) == [2]
    assert open_case(tmp_path / "out", "b").labels is None


def test_shards_and_processes_give_the_same_cases(tmp_path, stage):
    assert stage() == 0
    for shard in (0, 1):
        assert stage("--shard", str(shard), "--shards", "2", folder="other", output=f"{shard}.json") == 0
    assert stage("--processes", "2", folder="third", output="third.json") == 0
    assert [json.loads((tmp_path / f"{n}.json").read_text())["cases"] for n in (0, 1)] == [["a", "c"], ["b"]]
    for case in "abc":
        first = open_case(tmp_path / "out", case)
        for folder in ("other", "third"):
            second = open_case(tmp_path / folder, case)
            assert second.properties == first.properties
            np.testing.assert_array_equal(second.image[:], first.image[:])
            for label, voxels in first.foreground.items():
                np.testing.assert_array_equal(second.foreground[label], voxels)


def test_resume_keeps_cases_of_the_same_plan_only(tmp_path, stage, capsys):
    assert stage() == 0
    written = (tmp_path / "out/a.image.b2nd").stat().st_mtime_ns
    (tmp_path / "out/b.json").unlink()
    capsys.readouterr()
    assert stage("--resume") == 0
    assert "2 of 3 cases are there already" in capsys.readouterr().out
    assert (tmp_path / "out/a.image.b2nd").stat().st_mtime_ns == written
    assert (tmp_path / "out/b.json").is_file()
    spoilt = bytearray((tmp_path / "out/b.image.b2nd").read_bytes())
    spoilt[-100] ^= 1
    (tmp_path / "out/b.image.b2nd").write_bytes(spoilt)
    assert stage("--resume") == 0
    assert "case b: " in (said := capsys.readouterr().out)
    assert "b.image.b2nd: damaged: its checksum is not that of b.sha256" in said
    assert (tmp_path / "out/b.image.b2nd").read_bytes() != spoilt
    save_plan(tmp_path / "plan.json", preprocessing_plan(normalisation=(CT,), image_order=1))
    assert stage("--resume") == 0
    assert (tmp_path / "out/a.image.b2nd").stat().st_mtime_ns > written


def test_resume_makes_a_case_again_whose_files_are_others(tmp_path, stage, capsys):
    def checksums(content: str) -> list[str]:
        files = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*Tr/*"))
        lines = [f"{name}\t1\t{(content if 'a_0' in name.name else '0') * 64}" for name in files]
        (tmp_path / "checksums.tsv").write_text("\n".join(["file\tbytes\tsha256", *lines, ""]))
        return ["--resume", "--checksums", str(tmp_path / "checksums.tsv")]

    assert stage(*checksums("1")) == 0
    capsys.readouterr()
    assert stage(*checksums("1")) == 0
    assert "3 of 3 cases are there already" in capsys.readouterr().out
    assert stage(*checksums("2")) == 0
    assert "2 of 3 cases are there already" in capsys.readouterr().out


def test_markers_of_all_shards_become_one(tmp_path, stage, capsys):
    for shard in ("0", "1"):
        assert stage("--shard", shard, "--shards", "2", output=f"{shard}.json") == 0
    words = ["--cases", str(tmp_path / "cases.json"), "--output", str(tmp_path / "done.json")]
    parts = [str(tmp_path / "0.json"), str(tmp_path / "1.json")]
    assert main(["preprocess", "--collect", *parts, *words]) == 0
    marker = json.loads((tmp_path / "done.json").read_text())
    assert (marker["shards"], marker["cases"]) == (2, ["a", "b", "c"])
    assert main(["preprocess", "--collect", parts[0], *words]) == 1
    assert "these are not all shards" in capsys.readouterr().err


def test_a_damaged_case_is_named_and_leaves_no_marker(tmp_path, stage, capsys):
    image = tmp_path / "imagesTr/b_0.nii.gz"
    image.write_bytes(image.read_bytes()[:100])
    assert stage() == 1
    assert "megavoxel preprocess: error: case b: " in capsys.readouterr().err
    assert not (tmp_path / "marker.json").exists()
    assert not list((tmp_path / "out").glob("b.*"))
    assert not list((tmp_path / "out").glob(".partial*"))


def test_a_shard_that_does_not_exist_is_refused(stage, capsys):
    assert stage("--shard", "2", "--shards", "2") == 1
    assert "--shard 2: with --shards 2 it must be 0 to 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.real_data
def test_real_cases_are_what_numpy_and_scikit_image_make_of_them(real_data):
    transform = pytest.importorskip("skimage.transform")
    cases = dataset_of(real_data / "openkbp_headneck", limit=2)
    plan = plan_preprocessing(cases, measure(cases), Preprocessing(spacing=(4.0, 3.0, 4.0)))
    rule = plan.normalisation[0]
    for case in cases.cases:
        image, grid = cases.read_image(case)
        array, properties = preprocess_image(image, grid, plan, case.id)
        classes = preprocess_labels(cases.read_labels(case), properties, plan)
        assert plan.transpose == (1, 0, 2)
        z, y, x = (slice(axis.min(), axis.max() + 1) for axis in np.nonzero(image[0]))
        expected = (np.clip(image[0, z, y, x].swapaxes(0, 1), rule.lower, rule.upper) - rule.mean) / rule.std
        shape = [
            round(n * old / new) for n, old, new in zip(expected.shape, properties.spacing, plan.spacing, strict=True)
        ]
        expected = transform.resize(expected.astype(np.float64), shape, 3, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(array[0], expected, atol=2e-5)
        labels = cases.read_labels(case)[z, y, x].swapaxes(0, 1)
        masks = [labels == value for value in (0, *plan.labels.values())]
        shares = [transform.resize(mask.astype(float), shape, 1, mode="edge", anti_aliasing=False) for mask in masks]
        second, first = np.sort(shares, axis=0)[-2:]
        clear = first - second > 1e-6  # rounding decides between equal shares
        assert (classes > 0).sum() > 1000
        assert clear.mean() > 0.999
        np.testing.assert_array_equal(classes[clear], np.argmax(shares, axis=0)[clear])


@pytest.mark.real_data
def test_real_slices_across_a_coarse_axis_are_taken_as_they_are(real_data):
    cases = dataset_of(real_data / "chaos_mr_t2", limit=1)
    plan = plan_preprocessing(cases, measure(cases), Preprocessing(spacing=(3.85, 1.25, 1.25)))
    image, grid = cases.read_image(cases.cases[0])
    array, properties = preprocess_image(image, grid, plan, "a")
    np.testing.assert_array_equal(array[:, ::2], array[:, 1::2])
    classes = preprocess_labels(cases.read_labels(cases.cases[0]), properties, plan)
    assert array.shape[1:] == classes.shape == properties.shape
    np.testing.assert_array_equal(np.unique(classes), range(5))
