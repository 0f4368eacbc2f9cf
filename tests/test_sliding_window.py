"""The sliding window against MONAI's, and its slabs against the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from torch import nn

from megavoxel.inference.sliding_window import gaussian_weights, mirrored, predict_slabs, window_starts

CPU = torch.device("cpu")


def whole(predictor, image: np.ndarray, patch, sigma: float = 0.125) -> torch.Tensor:
    """All slabs together; they must follow one another without gap or overlap."""
    slabs = list(predict_slabs(predictor, image, patch=patch, step=0.5, sigma=sigma, device=CPU))
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


def test_an_image_smaller_than_the_patch_is_centred_in_one_window():
    assert window_starts(10, 16, 0.5) == [-3]
    assert window_starts(11, 16, 0.5) == [-2]


@pytest.mark.parametrize("shape", [(16, 24, 32), (8, 16, 40)])
def test_logits_equal_monais_where_the_windows_agree(convolution, shape):
    patch = (8, 16, 16)
    image = torch.randn(2, *shape)
    theirs = sliding_window_inference(
        image[None], patch, 1, convolution, overlap=0.5, mode="gaussian", sigma_scale=0.4, padding_mode="constant"
    )[0]
    # a wide Gaussian: MONAI raises weights below 1e-3, and here there are none
    torch.testing.assert_close(whole(convolution, image.numpy(), patch, sigma=0.4), theirs)


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
def test_gaussian_weights_equal_monais_above_the_floor_that_it_sets(sigma):
    ours = gaussian_weights((9, 16, 12), sigma)
    theirs = compute_importance_map((9, 16, 12), mode="gaussian", sigma_scale=sigma)
    torch.testing.assert_close((ours * theirs.max()).clamp(min=theirs.min()), theirs)
    assert ours.min() > 0


def test_mirroring_averages_over_all_subsets_of_axes():
    seen = []

    def predictor(window):
        seen.append(window.clone())
        return window * torch.arange(4.0)  # depends on the position along x

    window = torch.rand(1, 1, 2, 3, 4)
    mean = mirrored(predictor, (0, 2))(window)
    assert len(seen) == 4
    expected = window * (torch.arange(4.0) + torch.arange(3.0, -1, -1)) / 2
    torch.testing.assert_close(mean, expected)
    assert torch.equal(mirrored(predictor, ())(window), predictor(window))
