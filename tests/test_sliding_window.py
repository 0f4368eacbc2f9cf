"""The sliding window against MONAI's, and its slabs against the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from scipy import ndimage
from torch import nn

from megavoxel.inference.sliding_window import gaussian_weights, mirrored, outer_product, predict_slabs
from megavoxel.volumes.grid import window_starts

CPU = torch.device("cpu")


def whole(predictor, image: np.ndarray, patch, **keys) -> torch.Tensor:
    """All slabs together; they must follow one another without gap or overlap."""
    slabs = list(predict_slabs(predictor, image, patch=patch, step=0.5, sigma=0.125, device=CPU, **keys))
    assert [slab.start for slab in slabs] == [0, *(slab.stop for slab in slabs[:-1])]
    assert slabs[-1].stop == image.shape[1]
    return torch.cat([slab.logits for slab in slabs], dim=1)


@pytest.fixture
def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(2, 3, 3, padding=1).requires_grad_(False)


def test_windows_are_spread_evenly_and_end_at_the_last_voxel():
    assert window_starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert window_starts(90, 40, 0.5) == [0, 17, 33, 50]
    assert window_starts(40, 40, 0.5) == [0]
    assert window_starts(41, 40, 0.5) == [0, 1]
    # The example in nnU-Net's own code: 110 voxels, patches of 64, three steps.
    assert window_starts(110, 64, 0.5) == [0, 23, 46]


def test_an_image_smaller_than_the_patch_is_centred_in_one_window():
    assert window_starts(10, 16, 0.5) == [-3]
    assert window_starts(11, 16, 0.5) == [-2]


@pytest.mark.parametrize("shape", [(16, 24, 32), (8, 16, 40)])
def test_logits_equal_monais_where_the_windows_agree(convolution, shape):
    patch = (8, 16, 16)
    image = torch.randn(2, *shape)
    weights = outer_product([gaussian_weights(size, 0.125) for size in patch])
    theirs = sliding_window_inference(
        image[None], patch, 1, convolution, overlap=0.5, roi_weight_map=weights, padding_mode="constant"
    )[0]
    torch.testing.assert_close(whole(convolution, image.numpy(), patch), theirs)


def test_a_predictor_of_single_voxels_gives_its_own_values_whatever_the_windows():
    image = np.random.default_rng(0).normal(size=(1, 13, 21, 9)).astype(np.float32)
    for patch in ((5, 8, 4), (16, 8, 16), (13, 21, 9)):
        ours = whole(lambda window: torch.cat([window, 2 * window], dim=1), image, patch)
        np.testing.assert_allclose(ours.numpy(), np.concatenate([image, 2 * image]), atol=1e-5)


def test_one_window_over_the_whole_image_is_the_network_itself(convolution):
    image = torch.randn(2, 8, 9, 10)
    torch.testing.assert_close(whole(convolution, image.numpy(), (8, 9, 10)), convolution(image[None])[0])


def test_a_small_image_is_seen_with_zeros_around_it(convolution):
    image = torch.randn(2, 4, 6, 5)
    padded = torch.zeros(2, 8, 8, 8)
    padded[:, 2:6, 1:7, 1:6] = image
    expected = convolution(padded[None])[0, :, 2:6, 1:7, 1:6]
    torch.testing.assert_close(whole(convolution, image.numpy(), (8, 8, 8)), expected)


@pytest.mark.parametrize("sigma", [0.125, 0.4])
def test_gaussian_weights_of_odd_windows_equal_monais_above_the_floor_that_it_sets(sigma):
    ours = outer_product([gaussian_weights(size, sigma) for size in (9, 15, 11)])
    theirs = compute_importance_map((9, 15, 11), mode="gaussian", sigma_scale=sigma)
    torch.testing.assert_close((ours * theirs.max()).clamp(min=theirs.min()), theirs)


def test_gaussian_weights_by_hand():
    # Sigma is 8 / 8 = 1 voxel; as in nnU-Net, the peak of an even window is at voxel 8 // 2.
    expected = [math.exp(-0.5 * offset**2) for offset in (-4, -3, -2, -1, 0, 1, 2, 3)]
    assert gaussian_weights(8, 1 / 8).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", [8, 13, 64])
def test_gaussian_weights_equal_a_blurred_voxel(size):
    """nnU-Net blurs one voxel with SciPy, up to four sigma, and divides by the peak."""
    voxel = np.zeros(size)
    voxel[size // 2] = 1
    blurred = ndimage.gaussian_filter(voxel, size / 8, mode="constant")
    weights = gaussian_weights(size, 1 / 8).numpy()
    np.testing.assert_allclose(weights, blurred / blurred.max(), atol=1e-6)


def test_no_weight_vanishes_however_narrow_the_gaussian():
    weights = outer_product([gaussian_weights(64, 0.01)] * 3)
    assert weights.min() > 0


def test_mirroring_averages_over_all_subsets_of_axes():
    seen = []

    def predictor(window):
        seen.append(window.clone())
        return window * torch.arange(4.0)  # depends on the position along x

    image = torch.rand(1, 2, 3, 4)
    mean = whole(predictor, image.numpy(), (2, 3, 4), mirror_axes=(0, 2))
    assert all(torch.equal(window[0], image.flip(axes)) for window, axes in zip(seen, ((), 1, 3, (1, 3)), strict=True))
    torch.testing.assert_close(mean, image * (torch.arange(4.0) + torch.arange(3.0, -1, -1)) / 2)


def test_mirrored_windows_are_turned_back_one_at_a_time():
    window, calls = torch.rand(1, 1, 2, 3, 4), []
    versions = mirrored(lambda mirror: calls.append(1) or 2 * mirror, window, (0, 1, 2))
    assert torch.equal(next(versions), 2 * window)
    assert len(calls) == 1
    assert all(torch.equal(version, 2 * window) for version in versions)
    assert len(calls) == 8
