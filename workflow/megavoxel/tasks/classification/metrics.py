"""Accuracy, balanced accuracy, macro F1, AUROC, ECE and the confusion matrix, of weighted images.

An image's weight is how often it counts: 1 for the figure itself, and its number of draws in a bootstrap resample. All
functions take many sets of weights at once, so that thousands of resamples are a few operations of NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megavoxel.evaluation.metrics import Metric

BINS = 15
"""Bins of equal width of the ECE (Guo et al., ICML 2017)."""
CONFIDENCE, RESAMPLES, SEED, TOGETHER = 0.95, 9999, 12345, 500
"""Confidence, resamples and seed of all intervals of the report; `TOGETHER` resamples are held in memory at once."""


def confusion(target: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight of the images by their class (rows) and predicted class (columns): (..., classes, classes)."""
    classes = probabilities.shape[1]
    pairs = np.eye(classes**2)[target * classes + probabilities.argmax(axis=1)]
    return (weights @ pairs).reshape(*weights.shape[:-1], classes, classes)


def accuracy(target: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the images whose most probable class is theirs."""
    correct = probabilities.argmax(axis=1) == target
    return weights @ correct / weights.sum(axis=-1)


def balanced_accuracy(target: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the share of their images that was found; a class without images is left out."""
    table = confusion(target, probabilities, weights)
    found = np.diagonal(table, axis1=-2, axis2=-1)
    return _mean_of_present(found, table.sum(axis=-1))


def macro_f1(target: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of 2 found / (images + predictions); a class with neither is left out."""
    table = confusion(target, probabilities, weights)
    found = 2 * np.diagonal(table, axis1=-2, axis2=-1)
    return _mean_of_present(found, table.sum(axis=-1) + table.sum(axis=-2))


def auroc(target: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probability that a random image of a class has a larger probability of it than one of another class, ties counted
    half; with several classes the mean of one against the rest (of two, both are the same). A class without images, or
    with all of them, is left out.
    """
    values = []
    for number in range(probabilities.shape[1]):
        order = np.argsort(probabilities[:, number])
        _, first = np.unique(probabilities[order, number], return_index=True)
        ranked, is_own = weights[..., order], target[order] == number
        positive = np.add.reduceat(ranked * is_own, first, axis=-1)
        negative = np.add.reduceat(ranked * ~is_own, first, axis=-1)
        below = np.cumsum(negative, axis=-1) - negative
        won = (positive * (below + negative / 2)).sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(won / (positive.sum(axis=-1) * negative.sum(axis=-1)))
    return _nanmean(np.stack(values, axis=-1))


def expected_calibration_error(target: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ECE (Guo et al., ICML 2017, eq. 3): images in 15 equal bins of their largest probability; the mean, over images,
    of their bin's distance between accuracy and mean probability. 0 is best."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == target
    # Bins are open below and closed above, as in the paper.
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = weights @ (np.eye(BINS)[number] * (correct - confidence)[:, None])
    return np.abs(gap).sum(axis=-1) / weights.sum(axis=-1)


METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            name="accuracy",
            shown="Accuracy",
            title="accuracy",
            definition="the share of images whose most probable class is theirs",
            function=accuracy,
        ),
        Metric(
            name="balanced_accuracy",
            shown="Balanced accuracy",
            title="balanced accuracy",
            definition="the mean over classes of the share of their images that was found",
            function=balanced_accuracy,
        ),
        Metric(
            name="macro_f1",
            shown="Macro F1",
            title="macro F1",
            definition="the mean over classes of the harmonic mean of precision and recall",
            function=macro_f1,
        ),
        Metric(
            name="auroc",
            shown="AUROC",
            title="area under the receiver operating characteristic",
            definition="of several classes the mean of one against the rest",
            function=auroc,
        ),
        Metric(
            name="ece",
            shown="ECE",
            title="expected calibration error",
            definition=f"{BINS} bins of equal width (Guo et al. 2017)",
            direction="lower",
            function=expected_calibration_error,
        ),
    )
}
"""Functions take targets int (images,), probabilities (images, classes) and weights (..., images), and give (...)."""


def values(target: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All metrics of some images."""
    weights = np.ones(len(target))
    return {name: float(metric.function(target, probabilities, weights)) for name, metric in METRICS.items()}


def intervals(
    target: np.ndarray, repeats: list[np.ndarray], patients: Sequence[str] | None = None
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap interval of each metric's mean over repeats (Efron and Tibshirani 1993, chapter 13).

    Patients are drawn, with all of their images and the predictions of all repeats.

    Args:
        target: (images,).
        repeats: probabilities (images, classes) of the same images by several runs.
        patients: whose each image is; None: each is a patient's only one.

    Returns:
        Lower and upper end by metric, the same for the same values; NaN where there are fewer than two patients.
    """
    groups = np.arange(len(target)) if patients is None else np.unique(patients, return_inverse=True)[1]
    count = len(np.unique(groups))
    if count < 2:
        return dict.fromkeys(METRICS, (float("nan"), float("nan")))
    random, found = np.random.default_rng(SEED), {name: [] for name in METRICS}
    for first in range(0, RESAMPLES, TOGETHER):
        draws = random.integers(count, size=(min(TOGETHER, RESAMPLES - first), count))
        weights = np.stack([np.bincount(draw, minlength=count)[groups] for draw in draws]).astype(float)
        for name, metric in METRICS.items():
            found[name].append(np.mean([metric.function(target, own, weights) for own in repeats], axis=0))
    tail = 50 * (1 - CONFIDENCE)
    ends = {name: np.nanpercentile(np.concatenate(own), [tail, 100 - tail]) for name, own in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _mean_of_present(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return _nanmean(parts / wholes)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is a number; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
