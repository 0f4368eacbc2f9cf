"""Augmentations against batchgeneratorsv2, which nnU-Net's trainer uses; skipped where it is not installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from megavoxel.config.training import Augmentation
from megavoxel.training import intensity
from megavoxel.training.augmentation import Augmenter, Draws, rotation_matrix

pytest.importorskip("batchgeneratorsv2", reason="batchgeneratorsv2 is not installed: it is a peer, not a dependency")


@pytest.fixture
def image() -> torch.Tensor:
    noise = np.random.default_rng(0).normal(size=(2, 14, 15, 16))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 1, 1, 1)).astype(np.float32))


def factors(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.mark.parametrize("sigmas", [(0.5, 0.58, 0.59), (0.91, 0.92, 1.0), (0.7, 1.0, 0.5)])
def test_blur_is_theirs(image, sigmas):
    from batchgeneratorsv2.transforms.noise.gaussian_blur import blur_dimension

    expected = image
    for axis, sigma in enumerate(sigmas):
        expected = blur_dimension(expected, sigma, axis)
    torch.testing.assert_close(intensity.blur(image, sigmas), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_theirs(image, inverted):
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform

    chosen = {"apply_to_channel": torch.arange(2), "retain_stats": torch.ones(2), "gamma": torch.tensor([0.7, 1.5])}
    expected = GammaTransform(1, 0, False, 1, 1)._apply_to_image(
        image.clone(), **chosen, invert_image=torch.full((2,), inverted)
    )
    sign = -1 if inverted else 1
    ours = sign * intensity.change_gamma(sign * image, factors(0.7, 1.5))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_contrast_is_theirs(image):
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform

    expected = ContrastTransform(1, True, False, 1)._apply_to_image(
        image.clone(), apply_to_channel=torch.arange(2), multipliers=torch.tensor([0.75, 1.25])
    )
    torch.testing.assert_close(intensity.change_contrast(image, factors(0.75, 1.25)), expected)


@pytest.mark.parametrize("in_plane", [False, True])
def test_low_resolution_is_theirs(image, in_plane):
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

    zooms = torch.tensor([[1.0 if in_plane else 0.63, 0.63, 0.63]])
    expected = SimulateLowResolutionTransform(1, False, True, None)._apply_to_image(
        image[:1].clone(), apply_to_channel=[0], scales=zooms
    )
    torch.testing.assert_close(intensity.lower_resolution(image[:1], 0.63, in_plane=in_plane), expected)


@pytest.mark.parametrize("patch", [(8, 9, 10), (4, 14, 15)])
def test_rotation_and_scaling_of_image_and_labels_are_theirs(patch):
    """Same angles, same zoom, the same box: inside of it their interpolation of image and labels is ours."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform, create_affine_matrix_3d

    angles, zoom = (0.3, -0.2, 0.4), 0.9
    augmenter = Augmenter(Augmentation(), patch)
    augmenter.in_plane = False
    draws = Draws(matrix=rotation_matrix(angles) @ np.diag([zoom] * 3), mirrored=())
    box = augmenter.source_box((0, 0, 0), draws)
    random = np.random.default_rng(0)
    image = torch.from_numpy(ndimage.gaussian_filter(random.normal(size=box.shape), 1).astype(np.float32))[None]
    labels = torch.from_numpy(random.integers(0, 4, box.shape).astype(np.uint8))
    turned, turned_labels = augmenter.turn(image, labels, draws)

    theirs = SpatialTransform(patch, 0, False, p_rotation=1, p_scaling=1, border_mode_seg="constant")
    theirs.rotation, theirs.scaling = (lambda dim, **_: (angles[0], -angles[1], angles[2])[dim]), zoom
    np.testing.assert_allclose(create_affine_matrix_3d((angles[0], -angles[1], angles[2]), [zoom] * 3), draws.matrix)
    found = theirs(image=image, segmentation=labels[None].to(torch.int16))
    torch.testing.assert_close(turned, found["image"], atol=1e-5, rtol=1e-4)
    # Their shares are rounded to 1/2000: of voxels of pure noise a few are decided otherwise.
    assert (turned_labels != found["segmentation"][0]).float().mean() < 0.003
