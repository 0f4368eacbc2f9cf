"""Resampling against SciPy and scikit-image, there and back, and label by label."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from megavoxel.preprocessing.resample import (
    axis_weights,
    resample_image,
    resample_labels,
)
from megavoxel.volumes.grid import resampled_shape, separate_axis

ISO = (1.0, 1.0, 1.0)


def smooth(shape, *, seed=0, sigma=1.5):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (image / image.std()).astype(np.float32)


def blobs(shape, *, seed=0):
    image = smooth(shape, seed=seed, sigma=2.5)
    return np.digitize(image, np.quantile(image, [0.5, 0.7, 0.85, 0.97])).astype(np.uint8)


@pytest.mark.parametrize(
    ("current", "new", "axis"),
    [
        ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), None),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 5.0), (5.0, 1.0, 1.0), 2),
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None),
        ((0.24, 1.25, 1.25), (9.0, 1.0, 1.0), None),
    ],
)
def test_the_axis_that_is_resampled_on_its_own(current, new, axis):
    assert separate_axis(current, new) == axis


def test_the_new_shape_is_rounded_halves_to_even_and_never_zero():
    assert resampled_shape((10, 9, 1), (1.0, 1.0, 1.0), (2.0, 2.0, 9.0)) == (5, 4, 1)
    assert resampled_shape((7, 100, 33), (3.0, 0.7, 1.0), (1.0, 0.5, 1.0)) == (21, 140, 33)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(17, 9, 30), (5, 30, 22), (12, 20, 41), (1, 20, 21)])
def test_images_are_those_of_scikit_image(shape, order):
    transform = pytest.importorskip("skimage.transform")
    image = smooth((12, 20, 22))
    ours = resample_image(image[None], ISO, ISO, shape, order)[0]
    theirs = transform.resize(image.astype(np.float64), shape, order, mode="edge", anti_aliasing=False)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_one_axis_is_what_zoom_makes_of_it():
    line = np.random.default_rng(0).normal(size=13)
    expected = ndimage.zoom(line, 29 / 13, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(axis_weights(13, 29, 3) @ line, expected, atol=1e-6)


def test_values_stay_within_the_range_of_the_image():
    image = np.zeros((1, 8, 8, 8), dtype=np.float32)
    image[0, 2:6, 2:6, 2:6] = 1
    free = ndimage.zoom(image[0], 2, order=3, mode="nearest", grid_mode=True)
    assert free.max() > 1.05
    ours = resample_image(image, ISO, ISO, (16, 16, 16), 3)
    assert (ours.min(), ours.max()) == (0, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_a_coarse_axis_are_resampled_in_plane_and_repeated(axis):
    transform = pytest.importorskip("skimage.transform")
    image = np.moveaxis(smooth((4, 15, 18)), 0, axis)
    spacing = tuple(8.0 if other == axis else 1.0 for other in range(3))
    new = tuple(8 if other == axis else size + 5 for other, size in enumerate(image.shape))
    ours = np.moveaxis(resample_image(image[None], spacing, ISO, new, 3)[0], axis, 0)
    plane = ours.shape[1:]
    for index, part in enumerate(ours):
        source = np.moveaxis(image, axis, 0)[index // 2].astype(np.float64)
        expected = transform.resize(source, plane, 3, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(part, expected, atol=1e-5)


def test_nearest_slices_are_those_of_map_coordinates():
    image = smooth((7, 6, 5))
    ours = resample_image(image[None], (9.0, 1.0, 1.0), ISO, (12, 6, 5), 3)[0]
    rows = (np.arange(12) + 0.5) * 7 / 12 - 0.5
    where = np.meshgrid(rows, np.arange(6), np.arange(5), indexing="ij")
    np.testing.assert_allclose(ours, ndimage.map_coordinates(image, where, order=0, mode="nearest"), atol=1e-6)


def test_an_unchanged_shape_returns_the_array_itself():
    image, labels = smooth((4, 5, 6))[None], blobs((4, 5, 6))
    assert resample_image(image, (2.0, 1.0, 1.0), ISO, (4, 5, 6), 3) is image
    assert resample_labels(labels, (2.0, 1.0, 1.0), ISO, (4, 5, 6), 1) is labels


def test_there_and_back_stays_close():
    image = smooth((24, 30, 28), sigma=3)
    there = resample_image(image[None], ISO, (0.8, 0.8, 0.8), (30, 38, 35), 3)
    back = resample_image(there, (0.8, 0.8, 0.8), ISO, image.shape, 3)[0]
    inner = (slice(3, -3),) * 3
    assert np.abs(back - image)[inner].max() < 0.02
    assert np.abs(back - image).mean() < 0.01


def shares(labels, shape, order):
    """Values and, of each, the mask on the new grid by SciPy."""
    factors, values = [new / old for old, new in zip(labels.shape, shape, strict=True)], np.unique(labels)
    masks = [
        ndimage.zoom((labels == n).astype(float), factors, order=order, mode="nearest", grid_mode=True) for n in values
    ]
    return values, np.stack(masks)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(19, 31, 17), (39, 19, 15), (11, 31, 27), (20, 25, 26)])
def test_the_label_with_the_largest_share_takes_the_voxel(shape, order):
    labels = blobs((20, 24, 26))
    ours = resample_labels(labels, ISO, ISO, shape, order)
    values, found = shares(labels, shape, order)
    second, first = np.sort(found, axis=0)[-2:]
    clear = first - second > 1e-6
    assert ours.dtype == np.uint8
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(ours[clear], values[found.argmax(axis=0)][clear])


@pytest.mark.parametrize("shape", [(10, 12, 13), (40, 48, 52), (20, 48, 13)])
def test_of_equal_shares_the_nearest_voxels_label_wins_and_else_the_smallest(shape):
    labels = blobs((20, 24, 26))
    values, found = shares(labels, shape, 1)  # multiples of 1/64, which no rounding touches
    leading = found == found.max(axis=0)
    factors = [new / old for old, new in zip(labels.shape, shape, strict=True)]
    nearest = ndimage.zoom(labels, factors, order=0, mode="nearest", grid_mode=True)
    nearest_leads = (leading & (values[:, None, None, None] == nearest)).any(axis=0)
    assert (leading.sum(axis=0) > 1).any()
    expected = np.where(nearest_leads, nearest, values[leading.argmax(axis=0)])
    np.testing.assert_array_equal(resample_labels(labels, ISO, ISO, shape, 1), expected)


def test_many_labels_are_decided_in_parts_with_the_same_result(monkeypatch):
    labels = blobs((20, 24, 26))
    whole = resample_labels(labels, ISO, ISO, (31, 37, 39), 1)
    monkeypatch.setattr("megavoxel.preprocessing.resample.VOTES_AT_ONCE", 101)
    np.testing.assert_array_equal(resample_labels(labels, ISO, ISO, (31, 37, 39), 1), whole)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((19, 31, 17), ISO), ((40, 48, 52), ISO), ((41, 37, 39), (8.0, 1.0, 1.0)), ((7, 19, 50), ISO)],
)
def test_labels_are_those_of_nnunet(shape, spacing):
    peer = pytest.importorskip(
        "nnunetv2.preprocessing.resampling.default_resampling", reason="the peer is not installed"
    )
    labels = blobs((20, 24, 26), seed=1)
    theirs = peer.resample_data_or_seg_to_shape(
        labels[None].astype(np.float32), shape, spacing, ISO, is_seg=True, order=1, order_z=0, force_separate_z=None
    )
    np.testing.assert_array_equal(resample_labels(labels, spacing, ISO, shape, 1), theirs[0])


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((19, 31, 17), ISO), ((40, 12, 52), ISO), ((41, 37, 39), (8.0, 1.0, 1.0)), ((20, 30, 26), ISO)],
)
def test_images_are_those_of_nnunet(shape, spacing):
    peer = pytest.importorskip(
        "nnunetv2.preprocessing.resampling.default_resampling", reason="the peer is not installed"
    )
    image = np.stack([smooth((20, 24, 26), seed=seed) for seed in (0, 1)])
    theirs = peer.resample_data_or_seg_to_shape(image, shape, spacing, ISO, order=3, order_z=0, force_separate_z=None)
    np.testing.assert_allclose(resample_image(image, spacing, ISO, shape, 3), theirs, atol=1e-5)


def test_a_small_label_at_the_border_survives():
    labels = np.zeros((10, 10, 10), dtype=np.uint16)
    labels[8:, :2, 9:] = 300
    ours = resample_labels(labels, ISO, ISO, (20, 20, 20), 1)
    expected = np.zeros((20, 20, 20), dtype=np.uint16)
    expected[16:, :4, 18:] = 300
    assert ours[17:, :3, 18:].min() == 300
    assert (ours != expected).sum() <= 2 * 4 + 4  # only the rounded edge of the block


def test_three_labels_without_a_majority_leave_no_hole():
    # The new voxel lies between all eight: shares 3/8, 3/8 and 2/8; none reaches one half.
    labels = np.array([3, 1, 1, 1, 2, 2, 2, 3], dtype=np.uint8).reshape(2, 2, 2)
    assert (
        resample_labels(labels, ISO, ISO, (1, 1, 1), 1).item() == 1
    )  # the nearest voxel (the last) has a 3, which lost


def test_exactly_one_half_belongs_to_the_nearest_voxel():
    # Halves of a voxel count as nearer to the later one.
    for pair, expected in (([1, 2], 2), ([2, 1], 1), ([1, 0], 0)):
        labels = np.array(pair, dtype=np.uint8).reshape(1, 1, 2)
        assert resample_labels(labels, ISO, ISO, (1, 1, 1), 1).item() == expected


def test_labels_across_a_coarse_axis_are_repeated():
    labels = blobs((4, 12, 12))
    ours = resample_labels(labels, (8.0, 1.0, 1.0), ISO, (12, 12, 12), 1)
    np.testing.assert_array_equal(ours, labels.repeat(3, axis=0))
