"""Augmentations against SciPy, MONAI-free arithmetic and cases that can be seen through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from megavoxel.config.study import Augmentation
from megavoxel.preprocessing.store import read_box
from megavoxel.training import intensity
from megavoxel.training.augmentation import Augmenter, Draws, rotation_matrix

NOTHING = Augmentation(
    rotation=0, scaling=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma=0, gamma_inverted=0,
    mirror_axes=(),
)  # fmt: skip


def noise_volume(*shape: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.5).astype(np.float32)


def transform(volume: np.ndarray, labels: np.ndarray, patch, start, matrix):
    augmenter = Augmenter(NOTHING, patch)
    draws = Draws(matrix=matrix, mirrored=())
    box = augmenter.source_box(start, draws)
    return augmenter.apply(
        torch.from_numpy(read_box(volume[None], box)),
        torch.from_numpy(read_box(labels, box)),
        draws,
        np.random.default_rng(0),
    )


def test_nothing_drawn_leaves_the_patch_as_it_is():
    image, labels = torch.rand(2, 4, 5, 6), torch.randint(0, 3, (4, 5, 6))
    augmenter, random = Augmenter(NOTHING, (4, 5, 6)), np.random.default_rng(0)
    draws = augmenter.draw(random)
    assert augmenter.source_box((1, 2, 3), draws).shape == (4, 5, 6)
    result = augmenter.apply(image, labels, draws, random)
    assert torch.equal(result[0], image)
    assert torch.equal(result[1], labels)


@pytest.mark.parametrize("angles", [(0.3, 0.0, 0.0), (0.2, -0.4, 0.5)])
@pytest.mark.parametrize("zoom", [0.83, 1.3])
def test_rotation_and_scaling_equal_scipys_affine_transform(angles, zoom):
    volume, labels = noise_volume(30, 34, 38), np.random.default_rng(1).integers(0, 4, (30, 34, 38))
    patch, start = (10, 13, 12), (9, 10, 11)
    matrix = rotation_matrix(angles) @ np.diag([zoom] * 3)
    image, turned = transform(volume, labels, patch, start, matrix)
    half = (np.array(patch) - 1) / 2
    offset = np.array(start) + half - matrix @ half
    expected = ndimage.affine_transform(volume, matrix, offset, patch, order=1)
    np.testing.assert_allclose(image[0].numpy(), expected, atol=2e-5)
    nearest = ndimage.affine_transform(labels, matrix, offset, patch, order=0)
    assert (turned.numpy() != nearest).mean() < 0.002


def test_a_flat_patch_is_turned_in_its_plane_only():
    volume, labels = noise_volume(6, 40, 40), np.zeros((6, 40, 40), dtype=np.int64)
    patch, start, angle = (3, 12, 12), (1, 14, 14), 1.1
    augmenter = Augmenter(replace(NOTHING, rotation=1), patch)
    assert augmenter.in_plane
    matrix = rotation_matrix((angle, 0, 0))
    assert augmenter.source_box(start, Draws(matrix=matrix, mirrored=())).shape[0] == 3
    image, _ = transform(volume, labels, patch, start, matrix)
    half = (np.array(patch[1:]) - 1) / 2
    plane = matrix[1:, 1:]
    offset = np.array(start[1:]) + half - plane @ half
    for row in range(3):
        expected = ndimage.affine_transform(volume[row + 1], plane, offset, patch[1:], order=1)
        np.testing.assert_allclose(image[0, row].numpy(), expected, atol=2e-5)


def test_a_flat_patch_never_scales_across_its_planes():
    augmenter = Augmenter(replace(NOTHING, scaling=1), (3, 12, 12))
    matrix = augmenter.draw(np.random.default_rng(3)).matrix
    assert matrix[0, 0] == 1
    assert matrix[1, 1] == matrix[2, 2] != 1


@pytest.mark.parametrize(
    ("patch", "asked", "largest"),
    [((16, 16, 16), None, 30), ((3, 12, 12), None, 180), ((3, 12, 12), 15.0, 15), ((16, 16, 16), 60.0, 60)],
)
def test_angles_stay_below_the_limit_and_come_near_it(patch, asked, largest):
    augmenter, random = Augmenter(replace(NOTHING, rotation=1, rotation_degrees=asked), patch), np.random.default_rng(0)
    angles = np.degrees([np.abs(augmenter._angles(random)).max() for _ in range(300)])
    assert 0.9 * largest < angles.max() <= largest


def test_image_and_labels_are_mirrored_together():
    image, labels = torch.rand(1, 2, 3, 4), torch.randint(0, 3, (2, 3, 4))
    augmenter = Augmenter(NOTHING, (2, 3, 4))
    result = augmenter.apply(image, labels, Draws(matrix=None, mirrored=(0, 2)), np.random.default_rng(0))
    assert torch.equal(result[0][0], image[0].flip(0, 2))
    assert torch.equal(result[1], labels.flip(0, 2))


def test_drawn_shares_are_those_asked_for():
    settings = Augmentation()
    augmenter, random = Augmenter(settings, (16, 16, 16)), np.random.default_rng(0)
    draws = [augmenter.draw(random) for _ in range(4000)]
    spatial = np.mean([draw.matrix is not None for draw in draws])
    assert spatial == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    assert np.mean([0 in draw.mirrored for draw in draws]) == pytest.approx(0.5, abs=0.03)


def test_blur_equals_scipys():
    image = torch.from_numpy(noise_volume(9, 10, 11))[None]
    expected = ndimage.gaussian_filter(image[0].numpy(), 0.8, mode="nearest", truncate=3 / 0.8)
    np.testing.assert_allclose(intensity.blur(image, 0.8)[0].numpy(), expected, atol=1e-5)


def test_gamma_keeps_mean_and_standard_deviation_and_the_order_of_intensities():
    image = torch.rand(2, 4, 5, 6) * 3 - 1
    curved = intensity.change_gamma(image, torch.tensor([0.7, 1.4]).view(2, 1, 1, 1))
    torch.testing.assert_close(curved.mean(dim=(1, 2, 3)), image.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(curved.std(dim=(1, 2, 3)), image.std(dim=(1, 2, 3)))
    assert torch.equal(curved[0].flatten().argsort(), image[0].flatten().argsort())
    assert not torch.allclose(curved, image, atol=1e-2)


def test_contrast_stays_in_the_former_range():
    image = torch.tensor([0.0, 1.0, 2.0, 5.0]).view(1, 1, 2, 2)
    changed = intensity.change_contrast(image, torch.full((1, 1, 1, 1), 1.25))
    assert changed.flatten().tolist() == pytest.approx([0.0, 0.75, 2.0, 5.0])


def test_low_resolution_keeps_the_first_axis_of_flat_patches():
    image = torch.rand(1, 4, 8, 8)
    lowered = intensity.lower_resolution(image, 0.5, in_plane=True)
    torch.testing.assert_close(lowered.mean(dim=(2, 3)), lowered.mean(dim=(2, 3)))
    constant = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
    torch.testing.assert_close(intensity.lower_resolution(constant, 0.5, in_plane=True), constant)
    assert not torch.allclose(lowered, image)


def test_noise_has_the_standard_deviation_that_was_drawn():
    noisy = intensity.add_noise(torch.zeros(1, 30, 30, 30), 0.1, np.random.default_rng(0))
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05)


def test_factors_lie_in_their_range_and_half_of_them_below_one():
    random = np.random.default_rng(0)
    factors = np.array([intensity.draw_factor((0.7, 1.4), random) for _ in range(2000)])
    assert factors.min() >= 0.7
    assert factors.max() <= 1.4
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.04)


def test_each_augmentation_changes_the_image_when_its_probability_is_one():
    image = torch.from_numpy(noise_volume(8, 8, 8))[None].repeat(2, 1, 1, 1)
    for key in ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"):
        settings = replace(NOTHING, **{key: 1.0})
        changed = [intensity.augment(image, settings, np.random.default_rng(seed), in_plane=False) for seed in range(4)]
        assert any(not torch.allclose(result, image, atol=1e-4) for result in changed), key
        assert all(result.shape == image.shape for result in changed)
