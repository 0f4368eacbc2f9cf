"""Temperature and reliability: sums over voxels that can be counted by hand, and the cross-entropy of PyTorch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import properties, tiny_plan
from megavoxel.config.records import to_plain
from megavoxel.config.regions import Regions
from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.inference import confidence
from megavoxel.inference.confidence import BINS, TEMPERATURES, UNCHANGED, best_temperature, confidence_of, together
from megavoxel.inference.logits import Logits, OnNetworkGrid, header_of
from megavoxel.inference.temperature import fitted, load_temperature, read_confidence
from megavoxel.preprocessing.store import StoredCase


def case_of(values: np.ndarray, classes: np.ndarray, *, regions: Regions | None = None, told=None, **known):
    """Logits and the case of their voxels."""
    own = properties("a", classes.shape)
    header = replace(header_of(own, tiny_plan().preprocessing), regions=regions)
    disagreement = None if told is None else OnNetworkGrid(header=header, array=told[None].astype(np.float16))
    logits = Logits(header=header, array=values.astype(np.float16), disagreement=disagreement)
    return logits, StoredCase(properties=own, image=None, labels=classes, foreground={}, **known)


def drawn(seed: int = 0, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes that are drawn by their probabilities: with a sharpness of 1 these are calibrated."""
    random = np.random.default_rng(seed)
    values = random.normal(0, 2, (3, 40, 40, 40))
    shares = np.exp(values) / np.exp(values).sum(axis=0)
    classes = (random.random(values.shape[1:]) > shares.cumsum(axis=0)).sum(axis=0).clip(max=2)
    return values * sharpness, classes.astype(np.uint8)


def test_nll_is_the_cross_entropy_of_pytorch_at_every_temperature():
    values, classes = (array[..., :6, :5, :4] for array in drawn())
    found = confidence_of(*case_of(values, classes))
    assert found.voxels == classes.size
    logits = torch.from_numpy(values.astype(np.float16)).float().flatten(1).T
    target = torch.from_numpy(classes).long().flatten()
    for temperature, own in zip(TEMPERATURES, found.nll, strict=True):
        expected = torch.nn.functional.cross_entropy(logits / temperature, target, reduction="sum")
        assert own == pytest.approx(expected.item(), rel=1e-5)


def test_reliability_counts_voxels_by_their_probability():
    """Two voxels of the ball at 0.75, one of them right, one at 0.25 that is wrong, and one below the least."""
    values, classes = np.zeros((3, 1, 1, 4)), np.array([[[1, 0, 0, 0]]], dtype=np.uint8)
    values[1, 0, 0] = np.log([3, 3, 1 / 3, 1e-3])
    values[2] = -30
    found = confidence_of(*case_of(values, classes)).structures["ball"]
    high, low = int(0.75 * BINS), int(0.25 * BINS)
    assert [(found.voxels[UNCHANGED][place], found.hits[UNCHANGED][place]) for place in (high, low)] == [(2, 1), (1, 0)]
    assert sum(found.voxels[UNCHANGED]) == 3
    assert found.error(UNCHANGED) == pytest.approx((abs(1.5 - 1) + 0.25) / 3, abs=1e-3)
    assert sum(found.voxels[-1]) == 3, "the same voxels at every temperature"


def test_the_temperature_undoes_what_made_probabilities_too_sharp_and_leaves_calibrated_ones():
    calibrated = confidence_of(*case_of(*drawn()))
    assert TEMPERATURES[best_temperature(calibrated)] == 1
    sharp = confidence_of(*case_of(*drawn(sharpness=3.0)))
    assert TEMPERATURES[best_temperature(sharp)] == pytest.approx(3, rel=0.06)
    ball, place = sharp.structures["ball"], best_temperature(sharp)
    assert ball.error(place) < 0.02
    assert ball.error(UNCHANGED) > 0.1


def test_regions_are_judged_each_by_itself():
    regions = Regions(values={"both": (1, 3), "core": (3,)}, class_order=(1, 3))
    values, classes = np.zeros((2, 1, 1, 2)), np.array([[[1, 2]]], dtype=np.uint8)
    values[:, 0, 0] = np.log([[3, 3], [1 / 3, 3]])
    found = confidence_of(*case_of(values, classes, regions=regions))
    assert found.nll[UNCHANGED] == pytest.approx(-4 * math.log(0.75), abs=2e-3)
    assert sum(found.structures["core"].hits[UNCHANGED]) == 1
    assert sum(found.structures["both"].hits[UNCHANGED]) == 2


def test_disagreement_is_the_mean_over_voxels_that_are_given_a_label():
    values, classes = np.zeros((3, 1, 1, 3)), np.zeros((1, 1, 3), dtype=np.uint8)
    values[1, 0, 0] = [5, 5, -5]
    told = np.array([[[0.25, 0.5, 9.0]]])
    assert confidence_of(*case_of(values, classes, told=told)).disagreement == pytest.approx(0.375)
    assert confidence_of(*case_of(-values, classes, told=told)).disagreement == pytest.approx(9.0)
    assert confidence_of(*case_of(values * 0 - 1, classes, told=told)).disagreement is None


def test_voxels_without_an_annotation_do_not_count():
    values, classes = (array[..., :2, :3, :4] for array in drawn())
    classes[0] = 3
    assert confidence_of(*case_of(values, classes, ignored=3)).voxels == 12
    unknown = confidence_of(*case_of(values, classes, unannotated=(2,)))
    assert (unknown.voxels, sum(unknown.nll)) == (0, 0)
    with pytest.raises(UserError, match="no case counts"):
        fitted({"fold-0": [unknown], "fold-1": [unknown]})


def test_of_a_large_case_voxels_are_drawn(monkeypatch):
    monkeypatch.setattr(confidence, "MOST_VOXELS", 6400)
    every, some = case_of(*drawn()), confidence_of(*case_of(*drawn()))
    assert some.voxels == pytest.approx(6400, abs=300)
    monkeypatch.undo()
    whole = confidence_of(*every)
    assert some.nll[UNCHANGED] / some.voxels == pytest.approx(whole.nll[UNCHANGED] / whole.voxels, rel=0.05)


def test_each_fold_is_held_against_the_temperature_of_the_others():
    sharpness = {"fold-0": 2.0, "fold-1": 2.0, "fold-2": 1.0}
    folds = {name: [confidence_of(*case_of(*drawn(seed, own)))] for seed, (name, own) in enumerate(sharpness.items())}
    found = fitted(folds)
    assert found.of_other_folds["fold-2"] == pytest.approx(2, rel=0.06)
    assert found.of_other_folds["fold-0"] < 2 / 1.09
    places = {name: TEMPERATURES.index(own) for name, own in found.of_other_folds.items()}
    expected = sum(folds[name][0].nll[place] for name, place in places.items()) / found.voxels
    assert found.held_out_nll == pytest.approx(expected)
    assert found.cases == 3
    assert fitted({"fold-0": folds["fold-0"]}).held_out_nll is None


def test_files_of_cases_are_read_back_and_damaged_ones_are_named(tmp_path):
    one = confidence_of(*case_of(*(array[..., :2, :3, :4] for array in drawn())))
    write_json(tmp_path / "a.json", to_plain(one))
    assert read_confidence(tmp_path) == {"a": one}
    assert together([one, one]).voxels == 2 * one.voxels
    write_json(tmp_path / "a.json", to_plain(replace(one, nll=one.nll[1:])))
    with pytest.raises(UserError, match=r"a\.json: expected 33 rows"):
        read_confidence(tmp_path)
    with pytest.raises(UserError, match="there is no CASE"):
        read_confidence(tmp_path / "none")
    write_json(tmp_path / "t.json", to_plain(fitted({"fold-0": [one]})) | {"temperature": 0})
    with pytest.raises(UserError, match=r"temperature: expected 0\.5 to 8"):
        load_temperature(tmp_path / "t.json")
