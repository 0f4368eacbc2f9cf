"""How far the networks of several folds disagree: by hand, beside SciPy, and as a map of a scan."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from helpers import properties, tiny_plan, woken
from megavoxel.inference.disagreement import Voices
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork

CPU = torch.device("cpu")
SURE = 40.0
"""A logit at which the other probabilities are 0 as far as float32 goes."""


def told(*logits, overlapping: bool = False) -> list[float]:
    """The disagreement of networks about voxels in a row; of each network, a row of logits per output."""
    voices = Voices(overlapping=overlapping)
    for own in logits:
        voices.add(torch.tensor(own, dtype=torch.float32)[None, :, None, None, :])
    return voices.disagreement().flatten().tolist()


def test_networks_that_are_certain_of_different_classes_disagree_by_the_logarithm_of_their_number():
    first = [[SURE, SURE, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    second = [[SURE, 0.0, 0.0], [0.0, SURE, 0.0], [0.0, 0.0, 0.0]]
    # The same class; two classes; neither knows anything, and both say so.
    assert told(first, second) == pytest.approx([0, math.log(2), 0], abs=1e-6)
    third = [[SURE, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, SURE, 0.0]]
    assert told(first, second, third)[1] == pytest.approx(math.log(3), abs=1e-6)


def test_one_of_three_that_is_certain_of_another_class():
    most, other = [[SURE], [0.0]], [[0.0], [SURE]]
    assert told(most, most, other) == pytest.approx([math.log(3) - 2 / 3 * math.log(2)], abs=1e-6)


def test_it_is_the_mean_divergence_from_the_mean_probabilities():
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(4, 3, 50))
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    expected = entropy(probabilities, probabilities.mean(axis=0, keepdims=True), axis=1).mean(axis=0)
    assert told(*logits.tolist()) == pytest.approx(expected, abs=1e-5)


def test_of_regions_the_one_counts_that_is_disputed_most():
    # The first region: both certain that it is there. The second: one says yes, the other no.
    assert told([[SURE], [SURE]], [[SURE], [-SURE]], overlapping=True) == pytest.approx([math.log(2)], abs=1e-6)
    assert told([[SURE], [SURE]], [[SURE], [SURE]], overlapping=True) == pytest.approx([0], abs=1e-6)


def test_the_map_of_a_window_is_that_of_its_networks_and_logits_stay_as_they_are(tmp_path):
    plan = tiny_plan(patch=(16, 16, 16))
    plan = replace(plan, inference=replace(plan.inference, mirror=False))
    networks = [woken(SegmentationNetwork(plan.network, seed=seed)) for seed in (1, 2, 3)]
    image = np.random.default_rng(1).normal(size=(1, 16, 16, 16)).astype(np.float32)
    with torch.no_grad():
        each = [network.eval()(torch.from_numpy(image)[None])[0][0].flatten(1).tolist() for network in networks]
    predictor = CasePredictor(plan, networks, "float32", CPU)
    case = properties("case", (16, 16, 16))
    plain = predictor.logits(image, case, None, tmp_path)
    both = predictor.logits(image, case, None, tmp_path, disagreement=True)
    assert plain.disagreement is None
    np.testing.assert_array_equal(both.array, plain.array)
    (slab,) = both.disagreement.slabs()
    found = slab.logits.flatten().numpy()
    np.testing.assert_allclose(found, told(*each), atol=1e-3)  # kept in float16
    assert found.max() > 0.01


def test_outside_of_the_crop_networks_do_not_disagree(tmp_path):
    plan = tiny_plan(patch=(16, 16, 16))
    networks = [woken(SegmentationNetwork(plan.network, seed=seed)) for seed in (1, 2)]
    image = np.random.default_rng(1).normal(size=(1, 16, 16, 16)).astype(np.float32)
    case = properties("case", (24, 16, 16))
    case = replace(case, shape=(16, 16, 16), box=((4, 20), (0, 16), (0, 16)))
    found = CasePredictor(plan, networks, "float32", CPU).logits(image, case, None, tmp_path, disagreement=True)
    values = torch.cat([slab.logits for slab in found.disagreement.slabs()], dim=1)[0].numpy()
    assert values.shape == (24, 16, 16)
    assert values[:4].max() == values[20:].max() == 0
    assert values[4:20].max() > 0
