"""Elastic deformation: displacements beside MONAI's rule, and patches that they move beside SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from megavoxel.config.training import Augmentation
from megavoxel.preprocessing.store import read_box
from megavoxel.training.augmentation import Augmenter, Draws, rotation_matrix
from megavoxel.training.elastic import deviation, displacement, largest_displacement, smoothing_matrix

NAMES = ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted")
OFF = dict.fromkeys(NAMES, 0.0) | {"mirror_axes": ()}


def drawn(patch, seed: int = 0, **keys) -> Draws:
    return Augmenter(Augmentation(**OFF | keys), patch).draw(np.random.default_rng(seed))


@pytest.mark.parametrize("sigma", [3.0, 10.0, 17.3])
def test_displacements_vary_and_hang_together_as_noise_of_every_voxel_that_scipy_smooths(sigma):
    """Seen in the middle of a line: beyond its ends, SciPy takes the noise for 0."""
    size = 201
    ours = smoothing_matrix(size, sigma)
    theirs = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="constant", truncate=5)
    middle = size // 2
    np.testing.assert_allclose((ours @ ours.T)[middle], (theirs @ theirs.T)[middle], atol=2e-3 / sigma)


def test_the_standard_deviation_is_the_one_that_the_keys_name():
    assert deviation(3, 10.0, 1000.0) == pytest.approx(1000 / (11.56 * 10**1.5), rel=1e-3)
    assert deviation(2, 10.0, 1000.0) == pytest.approx(1000 / (6.14 * 10), rel=1e-3)
    moved = np.stack([displacement((40, 44, 48), 4.0, 100.0, np.random.default_rng(seed)) for seed in range(8)])
    assert moved.std() == pytest.approx(deviation(3, 4.0, 100.0), rel=0.02)
    assert np.abs(moved).max() <= largest_displacement(3, 4.0, 100.0) * (1 + 1e-6)


@pytest.mark.parametrize("matrix", [np.eye(3), rotation_matrix((0.2, -0.1, 0.3)) @ np.diag([1.1, 0.9, 1.2])])
def test_a_deformed_patch_is_scipys_map_of_coordinates(matrix):
    random = np.random.default_rng(0)
    volume = ndimage.gaussian_filter(random.normal(size=(30, 34, 38)), 1.5).astype(np.float32)
    labels = random.integers(0, 4, (15, 17, 19)).astype(np.uint8).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    patch, start = (8, 10, 9), (10, 11, 12)
    moved = displacement(patch, 3.0, 60.0, random)
    draws = Draws(matrix=matrix, mirrored=(), displacement=moved, most_displaced=float(moved.abs().max()))
    augmenter = Augmenter(Augmentation(**OFF), patch)
    box = augmenter.source_box(start, draws)
    parts = torch.from_numpy(read_box(volume[None], box)), torch.from_numpy(read_box(labels, box))
    image, found = augmenter.apply(*parts, draws, random)
    half = (np.array(patch) - 1) / 2
    offsets = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij")) - half[:, None, None, None]
    places = np.tensordot(matrix, offsets + moved.numpy(), 1) + (np.array(start) + half)[:, None, None, None]
    np.testing.assert_allclose(image[0], ndimage.map_coordinates(volume, places, order=1), atol=5e-5)
    shares = np.stack([ndimage.map_coordinates((labels == label) * 1.0, places, order=1) for label in range(4)])
    largest, second = np.sort(shares, axis=0)[:-3:-1]
    clear = largest - second > 1e-4
    assert clear.mean() > 0.99
    assert (found.numpy() == shares.argmax(axis=0))[clear].all()


def test_a_flat_patch_is_deformed_alike_in_all_of_its_slices():
    random = np.random.default_rng(0)
    volume = ndimage.gaussian_filter(random.normal(size=(4, 40, 44)), 1.5).astype(np.float32)
    patch, start = (2, 14, 16), (1, 12, 13)
    augmenter = Augmenter(
        Augmentation(**OFF | {"elastic": 1, "elastic_sigma": (4, 4), "elastic_magnitude": (60, 60)}), patch
    )
    draws = augmenter.draw(random)
    assert draws.displacement.shape == (2, 14, 16)
    box = augmenter.source_box(start, draws)
    assert box.shape[0] == 2
    voxels = torch.from_numpy(read_box(volume[None], box))
    image, _ = augmenter.apply(voxels, torch.zeros(box.shape, dtype=torch.uint8), draws, random)
    places = np.stack(np.meshgrid(np.arange(14) + 12, np.arange(16) + 13, indexing="ij")) + draws.displacement.numpy()
    for row in range(2):
        expected = ndimage.map_coordinates(volume[row + 1], places, order=1)
        np.testing.assert_allclose(image[0, row], expected, atol=5e-5)


def test_a_shear_moves_along_each_axis_per_voxel_along_the_others_up_to_the_limit():
    matrices = [drawn((16, 16, 16), seed, shear=1, shear_limit=0.2).matrix for seed in range(100)]
    beside = np.array([[m[0, 1], m[0, 2], m[1, 0], m[1, 2], m[2, 0], m[2, 1]] for m in matrices])
    assert all((np.diag(matrix) == 1).all() for matrix in matrices)
    assert (np.abs(beside).max(axis=0) > 0.19).all()
    assert np.abs(beside).max() <= 0.2
    in_plane = drawn((3, 16, 16), shear=1).matrix
    assert (in_plane[0] == (1, 0, 0)).all()
    assert (in_plane[1:, 0] == 0).all()
    assert in_plane[1, 2] != 0 != in_plane[2, 1]


def test_each_axis_may_have_a_zoom_of_its_own():
    together, apart = (drawn((16, 16, 16), scaling=1, scaling_per_axis=way).matrix for way in (False, True))
    assert len(set(np.diag(together))) == 1
    assert len(set(np.diag(apart))) == 3


def test_a_shift_reads_whole_voxels_elsewhere():
    volume = torch.arange(20 * 20 * 20, dtype=torch.float32).view(1, 20, 20, 20)
    augmenter, random = (
        Augmenter(Augmentation(**OFF | {"shift": 1, "shift_limit": 0.3}), (4, 6, 10)),
        np.random.default_rng(0),
    )
    found = set()
    for _ in range(200):
        draws = augmenter.draw(random)
        box = augmenter.source_box((8, 8, 5), draws)
        assert box.start == tuple(np.add((8, 8, 5), draws.shift))
        voxels = torch.from_numpy(read_box(volume.numpy(), box))
        image, _ = augmenter.apply(voxels, torch.zeros(box.shape, dtype=torch.uint8), draws, random)
        z, y, x = box.start
        assert torch.equal(image, volume[:, z : z + 4, y : y + 6, x : x + 10])
        found.add(draws.shift)
    assert [sorted({shift[axis] for shift in found}) for axis in range(3)] == [
        [-1, 0, 1], [-2, -1, 0, 1, 2], [-3, -2, -1, 0, 1, 2, 3],
    ]  # fmt: skip


@pytest.mark.parametrize("patch", [(3, 6, 6), (3, 4, 8), (3, 5, 8)])
def test_quarter_turns_are_numpys(patch):
    """Of a patch that is not square, the source has the two sides exchanged, around the same middle."""
    volume = np.random.default_rng(0).normal(size=(1, 12, 20, 20)).astype(np.float32)
    augmenter, random = Augmenter(Augmentation(**OFF | {"quarter_turn": 1}), patch), np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        draws = augmenter.draw(random)
        box = augmenter.source_box((4, 8, 6), draws)
        voxels = read_box(volume, box)
        labels = (voxels[0] > 0).astype(np.uint8)
        image, found = augmenter.apply(torch.from_numpy(voxels), torch.from_numpy(labels), draws, random)
        assert image.shape[1:] == patch
        np.testing.assert_array_equal(image, np.rot90(voxels, draws.quarter_turns, (2, 3)))
        np.testing.assert_array_equal(found, np.rot90(labels, draws.quarter_turns, (1, 2)))
        middle = np.add(box.start, np.subtract(box.shape, 1) / 2) - np.add((4, 8, 6), np.subtract(patch, 1) / 2)
        assert np.abs(middle).max() <= 0.5
        seen.add(draws.quarter_turns)
    assert seen == {1, 2, 3}


def test_axes_are_mirrored_as_often_as_the_study_says():
    for probability, expected in ((0.0, ()), (1.0, (0, 2))):
        assert drawn((8, 8, 8), mirror_axes=(0, 2), mirror_probability=probability).mirrored == expected


def test_transforms_of_probability_zero_draw_no_random_numbers():
    """So that patches of a study without them stay what they are: one number for each of rotation, scaling and axes."""
    random, other = np.random.default_rng(0), np.random.default_rng(0)
    Augmenter(Augmentation(**OFF | {"mirror_axes": (0, 1, 2)}), (8, 8, 8)).draw(random)
    other.random(5)
    assert random.random() == other.random()
