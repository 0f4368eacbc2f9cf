"""Weights of windows whose centre counts twice, against weights that are added up voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from helpers import tiny_plan
from megavoxel.config.setting import Inference
from megavoxel.inference import predict, sliding_window
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.sliding_window import (
    central_half,
    gaussian_weights,
    predict_slabs,
    sum_of_products,
    total_terms,
    window_terms,
)
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.volumes.grid import window_starts

CPU = torch.device("cpu")
SHAPES = pytest.mark.parametrize(
    ("shape", "patch"), [((9, 13, 11), (4, 6, 8)), ((5, 20, 3), (8, 5, 6)), ((7, 7, 16), (1, 3, 8))]
)


def terms_of(kind: str, patch: tuple[int, ...]) -> list[list[torch.Tensor]]:
    return window_terms(kind, patch, sigma=0.125, device=CPU)


def slow_weights(patch: tuple[int, ...]) -> np.ndarray:
    """2 where all three axes are in their central half, by the definition."""
    weights = np.ones(patch)
    for voxel in np.ndindex(*patch):
        positions = [(index + 0.5) / size for index, size in zip(voxel, patch, strict=True)]
        if all(0.25 <= position <= 0.75 for position in positions):
            weights[voxel] = 2
    return weights


def windows_of(shape: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, ...]]:
    axes = (window_starts(size, extent, 0.5) for size, extent in zip(shape, patch, strict=True))
    return list(itertools.product(*axes))


def slow_mean(image: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """The weighted mean of `own_logits` over all windows, voxel by voxel."""
    weights, shape = slow_weights(patch), image.shape
    sums, totals = np.zeros(shape), np.zeros(shape)
    for start in windows_of(shape, patch):
        for voxel in np.ndindex(*patch):
            place = tuple(first + offset for first, offset in zip(start, voxel, strict=True))
            if all(0 <= index < size for index, size in zip(place, shape, strict=True)):
                sums[place] += weights[voxel] * (image[place] + 0.1 * sum(voxel))
                totals[place] += weights[voxel]
    return sums / totals


def own_logits(window: torch.Tensor) -> torch.Tensor:
    """Logits that differ between windows: the image plus a tenth of how far a voxel is from the window's corner."""
    z, y, x = (torch.arange(size) for size in window.shape[2:])
    return window + 0.1 * (z[:, None, None] + y[:, None] + x)


@pytest.mark.parametrize(
    ("size", "central"),
    [
        (1, [1]),
        (2, [1, 1]),
        (3, [0, 1, 0]),
        (4, [0, 1, 1, 0]),
        (5, [0, 1, 1, 1, 0]),
        (6, [0, 1, 1, 1, 1, 0]),
        (8, [0, 0, 1, 1, 1, 1, 0, 0]),
    ],
)
def test_the_central_half_of_an_axis_by_hand(size, central):
    assert central_half(size).tolist() == central


def test_the_centre_has_twice_the_weight_and_no_voxel_more():
    weights = sum_of_products(terms_of("centre", (8, 8, 8)))
    assert (weights == 2).sum() == 4**3
    assert (weights == 1).sum() == 8**3 - 4**3
    assert (weights[2:6, 2:6, 2:6] == 2).all()


@SHAPES
def test_a_window_weighs_what_the_definition_says(shape, patch):
    np.testing.assert_array_equal(sum_of_products(terms_of("centre", patch)).numpy(), slow_weights(patch))


@SHAPES
def test_totals_are_the_weights_of_all_windows_added_up(shape, patch):
    terms, weights, totals = terms_of("centre", patch), slow_weights(patch), np.zeros(shape)
    for start in windows_of(shape, patch):
        for voxel in np.ndindex(*patch):
            place = tuple(first + offset for first, offset in zip(start, voxel, strict=True))
            if all(0 <= index < size for index, size in zip(place, shape, strict=True)):
                totals[place] += weights[voxel]
    starts = [window_starts(size, extent, 0.5) for size, extent in zip(shape, patch, strict=True)]
    np.testing.assert_array_equal(sum_of_products(total_terms(shape, starts, terms)).numpy(), totals)


@SHAPES
@pytest.mark.parametrize("slab_bytes", [1, sliding_window.SLAB_BYTES])
def test_predictions_are_the_weighted_mean_of_the_windows(shape, patch, slab_bytes, monkeypatch):
    monkeypatch.setattr(sliding_window, "SLAB_BYTES", slab_bytes)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    keys = {"patch": patch, "step": 0.5, "sigma": 0.125, "device": CPU}
    slabs = [slab.logits for slab in predict_slabs(own_logits, image[None], weights="centre", **keys)]
    np.testing.assert_allclose(torch.cat(slabs, dim=1)[0].numpy(), slow_mean(image, patch), atol=1e-5)
    if min(shape) > min(patch) > 1:
        gaussian = torch.cat([slab.logits for slab in predict_slabs(own_logits, image[None], **keys)], dim=1)
        assert (gaussian - torch.cat(slabs, dim=1)).abs().max() > 0.01, "the two kinds differ"


def test_gaussian_weights_are_a_single_term():
    (term,) = terms_of("gaussian", (4, 6, 8))
    for axis, size in zip(term, (4, 6, 8), strict=True):
        assert axis.equal(gaussian_weights(size, 0.125))


def test_the_key_of_the_plan_reaches_the_window(tmp_path, monkeypatch):
    plan = tiny_plan(inference=Inference(weights="centre"))
    network = SegmentationNetwork(plan.network)
    save_weights(tmp_path / "model.pt", network, plan_hash=plan.hash, precision="float32")
    given = {}
    monkeypatch.setattr(predict, "predict_slabs", lambda *_, **keys: given.update(keys) or iter(()))
    list(CasePredictor.from_files(plan, [tmp_path / "model.pt"], CPU).slabs(np.zeros((1, 8, 8, 8))))
    assert given["weights"] == "centre"
