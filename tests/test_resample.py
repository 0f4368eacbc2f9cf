"""Resampling against SciPy and scikit-image, there and back, and label by label."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from megavoxel.data.grid import resampled_shape, separate_axis
from megavoxel.preprocessing.resample import (
    axis_weights,
    resample_image,
    resample_labels,
)

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


def full_volume(labels, shape, order):
    """Each label's mask on the whole grid by SciPy; also where a share is so near one half that rounding decides."""
    factors = [new / old for old, new in zip(labels.shape, shape, strict=True)]
    result, close = np.zeros(shape, dtype=labels.dtype), np.zeros(shape, dtype=bool)
    for label in np.unique(labels[labels > 0]):
        share = ndimage.zoom((labels == label).astype(float), factors, order=order, mode="nearest", grid_mode=True)
        result[share >= 0.5] = label
        close |= np.abs(share - 0.5) < 1e-5
    return result, close


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(19, 31, 17), (39, 19, 15), (11, 31, 27), (20, 25, 26)])
def test_labels_in_their_boxes_are_those_of_the_whole_volume(shape, order):
    labels = blobs((20, 24, 26))
    ours = resample_labels(labels, ISO, ISO, shape, order)
    expected, close = full_volume(labels, shape, order)
    assert ours.dtype == np.uint8
    assert close.mean() < 0.02
    np.testing.assert_array_equal(ours[~close], expected[~close])
    assert set(np.unique(ours)) == set(np.unique(expected))


@pytest.mark.parametrize("shape", [(10, 12, 13), (40, 48, 52), (20, 48, 13)])
def test_labels_at_half_and_double_size_are_equal_to_the_last_voxel(shape):
    labels = blobs((20, 24, 26))
    expected, _ = full_volume(labels, shape, 1)  # shares are multiples of 1/64, which no rounding touches
    np.testing.assert_array_equal(resample_labels(labels, ISO, ISO, shape, 1), expected)


def test_a_small_label_at_the_border_survives():
    labels = np.zeros((10, 10, 10), dtype=np.uint16)
    labels[8:, :2, 9:] = 300
    ours = resample_labels(labels, ISO, ISO, (20, 20, 20), 1)
    expected = np.zeros((20, 20, 20), dtype=np.uint16)
    expected[16:, :4, 18:] = 300
    assert ours[17:, :3, 18:].min() == 300
    assert (ours != expected).sum() <= 2 * 4 + 4  # only the rounded edge of the block


def test_exactly_one_half_belongs_to_the_later_label():
    labels = np.array([1, 2], dtype=np.uint8).reshape(1, 1, 2)
    assert resample_labels(labels, ISO, ISO, (1, 1, 1), 1).item() == 2


def test_labels_across_a_coarse_axis_are_repeated():
    labels = blobs((4, 12, 12))
    ours = resample_labels(labels, (8.0, 1.0, 1.0), ISO, (12, 12, 12), 1)
    np.testing.assert_array_equal(ours, labels.repeat(3, axis=0))
