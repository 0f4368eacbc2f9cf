"""Augmentations against SciPy, MONAI-free arithmetic and cases that can be seen through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from megavoxel.config.training import Augmentation
from megavoxel.preprocessing.store import read_box
from megavoxel.training import augmentation, intensity
from megavoxel.training.augmentation import Augmenter, Draws, rotation_matrix, sample_labels

NOTHING = Augmentation(
    rotation=0, scaling=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma=0, gamma_inverted=0,
    mirror_axes=(),
)  # fmt: skip


def noise_volume(*shape: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.5).astype(np.float32)


def blocks(*shape: int) -> np.ndarray:
    """Labels 0 to 3 in random blocks of 2 x 2 x 2 voxels."""
    small = np.random.default_rng(1).integers(0, 4, [size // 2 for size in shape]).astype(np.uint8)
    return small.repeat(2, 0).repeat(2, 1).repeat(2, 2)


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
    volume, labels = noise_volume(30, 34, 38), blocks(30, 34, 38)
    patch, start = (10, 13, 12), (9, 10, 11)
    matrix = rotation_matrix(angles) @ np.diag([zoom] * 3)
    image, turned = transform(volume, labels, patch, start, matrix)
    half = (np.array(patch) - 1) / 2
    offset = np.array(start) + half - matrix @ half
    expected = ndimage.affine_transform(volume, matrix, offset, patch, order=1)
    np.testing.assert_allclose(image[0].numpy(), expected, atol=2e-5)
    masks = [ndimage.affine_transform((labels == n) * 1.0, matrix, offset, patch, order=1) for n in range(4)]
    largest, second = np.sort(masks, axis=0)[:-3:-1]
    # Where two labels have equal shares but for rounding, SciPy's choice is as good as ours.
    clear = largest - second > 1e-4
    assert clear.mean() > 0.99
    assert (turned.numpy() == np.argmax(masks, axis=0))[clear].all()


@pytest.mark.parametrize("slices", [(), (1,)])
def test_a_label_with_the_largest_share_wins_over_the_nearest_voxels(slices):
    labels = torch.tensor([[1, 2], [3, 2]], dtype=torch.uint8)[None]
    labels = labels.view(1, *slices, 2, 2)
    # 0.4 of the way along x and 0.45 along y: 1 is nearest and has 0.33, but 2 has 0.22 + 0.18 = 0.40.
    for at, expected in (((2 * 0.4 - 1, 2 * 0.45 - 1), 2), ((-0.9, -0.9), 1)):
        grid = torch.tensor([*at, *(0.0 for _ in slices)]).view(1, *slices, 1, 1, -1)
        assert sample_labels(labels, grid).item() == expected


def test_of_equal_shares_the_nearest_voxels_label_is_taken():
    labels = torch.tensor([[5, 3]], dtype=torch.int32)[None]
    for along, expected in ((-0.01, 5), (0.01, 3)):
        grid = torch.tensor([along, 0.0]).view(1, 1, 1, 2)
        assert sample_labels(labels, grid).item() == expected
    # Two corners of 3 weigh as much together as the one of 5.
    for nearest in (0, 2):
        corners, shares = torch.tensor([[5], [4], [3], [3]]), torch.tensor([[0.4], [0.2], [0.4], [0.0]])
        corners, shares = corners.roll(nearest, 0), shares.roll(nearest, 0)
        assert augmentation._largest_share(corners, shares).item() == corners[shares.argmax()].item()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_axes_of_one_voxel_can_be_turned(dtype):
    labels = torch.randint(0, 200, (1, 1, 5, 1), dtype=dtype)
    grid = torch.zeros(1, 1, 5, 1, 3)
    grid[..., 1] = torch.linspace(-1, 1, 5).view(1, 1, 5, 1)
    assert torch.equal(sample_labels(labels, grid), labels.long())


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


@pytest.mark.parametrize("patch", [(16, 16, 16), (3, 12, 12)])
@pytest.mark.parametrize(("in_plane", "largest"), [(True, 180), (False, 30)])
def test_the_study_may_say_whether_patches_turn_in_plane(patch, in_plane, largest):
    augmenter, random = Augmenter(replace(NOTHING, rotation=1, in_plane=in_plane), patch), np.random.default_rng(0)
    angles = np.degrees([augmenter._angles(random) for _ in range(300)])
    assert 0.9 * largest < np.abs(angles).max() <= largest
    assert (np.abs(angles).max(axis=0) > 0).tolist() == [True, not in_plane, not in_plane]


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


def test_zoom_factors_are_spread_evenly():
    """Uniform from 0.7 to 1.4, as in nnU-Net, where only intensity factors are below one in half of the draws."""
    augmenter, random = Augmenter(replace(NOTHING, scaling=1), (16, 16, 16)), np.random.default_rng(0)
    zooms = np.array([augmenter.draw(random).matrix[0, 0] for _ in range(4000)])
    assert 0.7 <= zooms.min() < 0.71
    assert 1.39 < zooms.max() <= 1.4
    assert (zooms < 1).mean() == pytest.approx(3 / 7, abs=0.03)


def test_drawn_shares_are_those_asked_for():
    settings = Augmentation()
    augmenter, random = Augmenter(settings, (16, 16, 16)), np.random.default_rng(0)
    draws = [augmenter.draw(random) for _ in range(4000)]
    spatial = np.mean([draw.matrix is not None for draw in draws])
    assert spatial == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    assert np.mean([0 in draw.mirrored for draw in draws]) == pytest.approx(0.5, abs=0.03)


def test_blur_equals_scipys():
    image, sigmas = torch.from_numpy(noise_volume(9, 10, 11))[None], (0.5, 0.8, 1.0)
    expected = ndimage.gaussian_filter(image[0].numpy(), sigmas, mode="mirror", radius=(1, 2, 3))
    np.testing.assert_allclose(intensity.blur(image, sigmas)[0].numpy(), expected, atol=1e-6)


def test_blur_of_a_patch_of_one_slice_stays_in_its_plane():
    image = torch.rand(1, 1, 8, 8)
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), 1.0, mode="mirror", radius=3)
    np.testing.assert_allclose(intensity.blur(image, (1.0, 1.0, 1.0))[0, 0].numpy(), expected, atol=1e-6)


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
    noisy = intensity.add_noise(torch.zeros(1, 30, 30, 30), 0.1, intensity.standard_noise((1, 30, 30, 30), 0))
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05)


def test_uniform_noise_lies_within_its_limits_and_has_the_same_standard_deviation():
    noise = intensity.standard_noise((1, 30, 30, 30), 0, uniform=True) * 0.1155
    assert noise.std().item() == pytest.approx(0.1155, rel=0.02)
    assert 0.19 < noise.max().item() < 0.2001
    assert -0.2001 < noise.min().item() < -0.19


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
