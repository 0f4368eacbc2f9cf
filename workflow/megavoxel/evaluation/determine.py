"""Which post-processing the predictions of cross-validation call for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from megavoxel.evaluation.overlap import dice_per_label
from megavoxel.evaluation.pairs import Pair, read_pair
from megavoxel.evaluation.postprocessing import (
    Evidence,
    KeepLargest,
    Postprocessing,
    keep_largest_foreground,
    keep_largest_label,
)
from megavoxel.parallel import map_cases


def determine_postprocessing(
    pairs: Sequence[Pair], label_values: dict[str, int], *, processes: int = 1
) -> Postprocessing:
    """Tries to keep the largest component of the foreground, then of each label, as nnU-Net does.

    The foreground step is kept if the mean DSC over cases and labels rises strictly and no label's mean falls; the
    step of a label if the mean DSC of that label rises strictly. Means over cases leave out NaN (both maps empty) and
    the labels that a pair skips.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its reference.
    """
    trial = map_cases(
        partial(_try_foreground, label_values=label_values),
        pairs,
        processes=processes,
        title="keeping the largest foreground",
    )
    foreground = _judge_foreground(*_means(trial))
    trial = map_cases(
        partial(_try_labels, label_values=label_values, foreground=foreground.kept),
        pairs,
        processes=processes,
        title="keeping the largest of each label",
    )
    steps = [
        Evidence(step="label", label=name, before=_number(before), after=_number(after), kept=bool(after > before))
        for name, before, after in zip(label_values, *_means(trial), strict=True)
    ]
    kept = tuple(step.label for step in steps if step.kept)
    return Postprocessing(
        keep_largest=KeepLargest(foreground=foreground.kept, labels=kept),
        evidence=(foreground, *steps),
        cases=len(pairs),
    )


def disabled_postprocessing(reason: str) -> Postprocessing:
    """One that keeps everything, and says why."""
    return replace(Postprocessing(), reason=reason)


def _judge_foreground(before: np.ndarray, after: np.ndarray) -> Evidence:
    mean_before, mean_after = _nan_mean(before, axis=0), _nan_mean(after, axis=0)
    kept = bool(mean_after > mean_before) and not bool((after < before).any())
    return Evidence(step="foreground", before=_number(mean_before), after=_number(mean_after), kept=kept)


def _try_foreground(pair: Pair, label_values: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference, _ = read_pair(pair)
    before = _dice(pair, prediction, reference, label_values)
    prediction = prediction.copy()
    keep_largest_foreground(prediction)
    return before, _dice(pair, prediction, reference, label_values)


def _try_labels(pair: Pair, label_values: dict[str, int], foreground: bool) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference, _ = read_pair(pair)
    prediction = prediction.copy()
    if foreground:
        keep_largest_foreground(prediction)
    before = _dice(pair, prediction, reference, label_values)
    for value in label_values.values():
        keep_largest_label(prediction, value)
    return before, _dice(pair, prediction, reference, label_values)


def _dice(pair: Pair, prediction: np.ndarray, reference: np.ndarray, label_values: dict[str, int]) -> np.ndarray:
    """DSC per label, NaN for those that the pair skips."""
    dice = dice_per_label(prediction, reference, list(label_values.values()))
    return np.where([label in pair.skipped for label in label_values], np.nan, dice)


def _means(trial: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean DSC per label over cases, before and after."""
    before, after = (np.array(part) for part in zip(*trial, strict=True))
    return _nan_mean(before, axis=0), _nan_mean(after, axis=0)


def _nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
