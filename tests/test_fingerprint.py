"""Fingerprints of datasets whose numbers can be counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from megavoxel.cli import main
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.planning import fingerprint as module
from megavoxel.planning.fingerprint import load_fingerprint, measure
from scans import dataset, write_case


def block(shape, box, value):
    array = np.zeros(shape, dtype=np.float32)
    array[box] = value
    return array


@pytest.fixture
def two_cases(tmp_path):
    """One case with a foreground of one voxel (100), one with three (0, 0, 10): voxels and cases weigh differently."""
    one = block((4, 5, 6), np.s_[1:3, 1:4, 0:6], 7)
    one[1, 1, 1] = 100
    two = block((4, 5, 8), np.s_[:], 5)
    two[0, 0, :3] = [0, 0, 10]
    cases = [
        write_case(tmp_path, "b", two, block(two.shape, np.s_[0, 0, :3], 1), spacing=(2.0, 1.0, 1.0)),
        write_case(tmp_path, "a", one, block(one.shape, np.s_[1, 1, 1], 3), spacing=(3.0, 0.5, 0.75)),
        write_case(tmp_path, "t", two * 1000, split="test"),
    ]
    return dataset(tmp_path, cases)


def test_shapes_and_boxes_are_counted_in_canonical_order(two_cases):
    found = measure(two_cases)
    assert [case.id for case in found.cases] == ["a", "b"]
    first, second = found.cases
    assert (first.spacing, first.shape, first.cropped_shape) == ((3.0, 0.5, 0.75), (4, 5, 6), (2, 3, 6))
    assert (second.shape, second.cropped_shape) == ((4, 5, 8), (4, 5, 8))
    assert first.crop_ratio == pytest.approx(36 / 120)
    assert found.median_crop_ratio == pytest.approx((0.3 + 1.0) / 2)


def test_each_case_weighs_the_same_in_the_intensities(two_cases):
    intensities = measure(two_cases).intensities[0]
    mean = (100 + 10 / 3) / 2
    square = (100**2 + 10**2 / 3) / 2
    assert intensities.mean == pytest.approx(mean)
    assert intensities.std == pytest.approx(math.sqrt(square - mean**2))
    assert (intensities.minimum, intensities.maximum) == (0, 100)
    assert (intensities.percentile_0_5, intensities.median, intensities.percentile_99_5) == (0, 10, 100)


def test_percentiles_of_one_case_are_those_of_numpy(tmp_path):
    image = np.random.default_rng(0).integers(-1000, 2000, size=(20, 30, 40)).astype(np.float32)
    labels = (image > -500).astype(np.uint8)
    intensities = measure(dataset(tmp_path, [write_case(tmp_path, "a", image, labels)])).intensities[0]
    foreground = image[labels > 0].astype(np.float64)
    assert intensities.mean == pytest.approx(foreground.mean())
    assert intensities.std == pytest.approx(foreground.std())
    expected = np.percentile(foreground, [0.5, 50, 99.5])
    found = [intensities.percentile_0_5, intensities.median, intensities.percentile_99_5]
    np.testing.assert_allclose(found, expected, atol=1)


def test_a_large_foreground_is_sampled_and_the_sample_stays_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_VOXELS", 2000)
    image = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32) + 10
    cases = dataset(tmp_path, [write_case(tmp_path, "a", image, np.ones(image.shape))])
    first = measure(cases).intensities[0]
    assert first == measure(cases).intensities[0]
    assert first.mean == pytest.approx(image.mean(), abs=0.1)
    assert first.mean != pytest.approx(image.mean(), abs=1e-6)


def test_channels_are_measured_one_by_one_and_the_box_is_of_any_channel(tmp_path):
    image = np.stack([block((3, 3, 9), np.s_[:, :, 2:4], 1), block((3, 3, 9), np.s_[:, :, 5:7], 2)])
    case = write_case(tmp_path, "a", image, block((3, 3, 9), np.s_[1, 1, 5], 1))
    found = measure(dataset(tmp_path, [case], channels=("T1", "T2")))
    assert found.cases[0].cropped_shape == (3, 3, 5)
    assert [channel.mean for channel in found.intensities] == [0, 2]


def test_noise_of_the_affine_does_not_reach_the_spacing(tmp_path):
    case = write_case(tmp_path, "a", np.ones((2, 2, 2)), np.ones((2, 2, 2)), spacing=(1.0000001, 0.99999994, 0.7))
    assert measure(dataset(tmp_path, [case])).cases[0].spacing == (1.0, 1.0, 0.7)


def test_several_processes_give_the_same(two_cases):
    assert measure(two_cases, processes=2) == measure(two_cases)


def test_a_dataset_without_foreground_is_refused(tmp_path):
    case = write_case(tmp_path, "a", np.ones((3, 3, 3)), np.zeros((3, 3, 3)))
    with pytest.raises(UserError, match="no training case has any foreground"):
        measure(dataset(tmp_path, [case]))


def test_a_case_without_labels_and_a_dataset_without_cases_are_refused(tmp_path):
    with pytest.raises(UserError, match="case a: it has no label map"):
        measure(dataset(tmp_path, [write_case(tmp_path, "a", np.ones((3, 3, 3)))]))
    with pytest.raises(UserError, match="no training cases"):
        measure(dataset(tmp_path, []))


def test_a_damaged_case_is_named_and_nothing_is_written(tmp_path, two_cases, capsys):
    image = tmp_path / "imagesTr/b_0.nii.gz"
    image.write_bytes(image.read_bytes()[:60])
    save_cases(tmp_path / "cases.json", two_cases)
    output = tmp_path / "out/fingerprint.json"
    assert main(["fingerprint", "--cases", str(tmp_path / "cases.json"), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert "error: case b: " in error
    assert "b_0.nii.gz" in error
    assert not output.exists()


def test_the_stage_writes_the_file_and_one_line_per_case(tmp_path, two_cases, capsys):
    save_cases(tmp_path / "cases.json", two_cases)
    output = tmp_path / "fingerprint.json"
    assert main(["fingerprint", "--cases", str(tmp_path / "cases.json"), "--output", str(output)]) == 0
    assert load_fingerprint(output) == measure(two_cases)
    written = json.loads(output.read_text())
    assert set(written) == {"dataset", "channels", "cases", "intensities", "modalities"}
    assert written["modalities"] == {}
    assert "a: 4 x 5 x 6 voxels of 3 x 0.5 x 0.75 mm, 30% in the nonzero box" in capsys.readouterr().out
