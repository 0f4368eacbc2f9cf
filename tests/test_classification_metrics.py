"""Metrics of classification on cases that can be counted by hand, and against scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sklearn

from megavoxel.tasks.classification import metrics

HAND = {
    "target": np.array([0, 0, 0, 1]),
    "probabilities": np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]),
}


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def random_predictions(classes: int, count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    target = random.integers(classes, size=count)
    scores = random.normal(size=(count, classes)) + 1.0 * np.eye(classes)[target]
    rounded = np.exp(scores).round(1) + 0.05  # ties
    return target, rounded / rounded.sum(axis=1, keepdims=True)


def test_four_images_counted_by_hand():
    found = metrics.values(**HAND)
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 * 2 / (3 + 2) + 2 * 1 / (1 + 2)) / 2)
    assert found["auroc"] == pytest.approx(1.0)  # the one image of class 1 has the largest probability of it
    # Each image alone in its bin: |1 - .9|, |1 - .8|, |0 - .6|, |1 - .7|
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)
    assert metrics.confusion(**HAND, weights=ones(4)).tolist() == [[2, 1], [0, 1]]


def test_calibration_is_the_gap_of_a_whole_bin():
    target = np.array([0, 0, 0, 1])
    probabilities = np.tile([0.75, 0.25], (4, 1))  # all in one bin, three of four right
    assert metrics.values(target, probabilities)["ece"] == pytest.approx(0.0)
    assert metrics.values(1 - target, probabilities)["ece"] == pytest.approx(0.5)


def test_bins_are_closed_above():
    """3/15 belongs to the third bin and anything more to the fourth: right and wrong images then do not cancel out."""
    probabilities = np.full((2, 5), 0.2)
    probabilities[1] = [0.21, 0.2, 0.2, 0.2, 0.19]
    found = metrics.values(np.array([0, 1]), probabilities)
    assert found["ece"] == pytest.approx((abs(1 - 0.2) + abs(0 - 0.21)) / 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_those_of_scikit_learn(classes):
    target, probabilities = random_predictions(classes)
    predicted = probabilities.argmax(axis=1)
    found = metrics.values(target, probabilities)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(target, predicted))
    assert found["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(target, predicted))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(target, predicted, average="macro"))
    scores = probabilities[:, 1] if classes == 2 else probabilities
    assert found["auroc"] == pytest.approx(sklearn.roc_auc_score(target, scores, multi_class="ovr"))
    ours = metrics.confusion(target, probabilities, ones(len(target)))
    assert (ours == sklearn.confusion_matrix(target, predicted)).all()


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_weight_counts_an_image_so_often(name):
    target, probabilities = random_predictions(3, count=40)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, 40))
    metric = metrics.METRICS[name].function
    together = metric(target, probabilities, weights.astype(float))
    for own, value in zip(weights, together, strict=True):
        repeated = np.repeat(np.arange(40), own)
        alone = metric(target[repeated], probabilities[repeated], ones(len(repeated)))
        assert value == pytest.approx(float(alone))


def test_a_class_without_images_is_left_out():
    target, probabilities = np.array([0, 0]), np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    found = metrics.values(target, probabilities)
    assert found["balanced_accuracy"] == pytest.approx(0.5)
    assert np.isnan(found["auroc"])


def test_intervals_of_accuracy_are_those_of_scipys_bootstrap():
    from megavoxel.reporting.statistics import mean_interval

    target, probabilities = random_predictions(2, count=60)
    low, high = metrics.intervals(target, [probabilities])["accuracy"]
    expected = mean_interval(probabilities.argmax(axis=1) == target)
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_intervals_draw_the_images_of_all_repeats_together():
    target, probabilities = random_predictions(2, count=60)
    once, twice = (metrics.intervals(target, [probabilities] * count) for count in (1, 2))
    for name, ends in once.items():
        assert twice[name] == pytest.approx(ends), name


def test_intervals_draw_all_images_of_a_patient_together():
    target, probabilities = random_predictions(2, count=60)
    once = metrics.intervals(target, [probabilities])
    twice = metrics.intervals(np.repeat(target, 2), [np.repeat(probabilities, 2, axis=0)], np.repeat(np.arange(60), 2))
    for name, ends in once.items():
        assert twice[name] == pytest.approx(ends), name


def test_memory_of_many_images_goes_with_their_number():
    """5000 images with as many ranks: a table of images by ranks would be 200 MB for each class."""
    target, _ = random_predictions(4, count=5000)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=5000)
    weights = np.random.default_rng(1).integers(0, 3, size=(50, 5000)).astype(float)
    tracemalloc.start()
    metrics.auroc(target, probabilities, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
