"""The statistics of a comparison: an interval of a mean, a test of paired differences, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 12345
FEWEST_DIFFERENCES = 6
"""Of five pairs the smallest two-sided p is 1/16: no outcome could be called significant at 0.05."""
DECIMALS = 12
"""Differences are rounded to so many, so that equal ones are equal in spite of floating-point arithmetic."""
BATCH = 1000
"""Resamples held in memory at once."""


def mean_interval(values: Sequence[float] | np.ndarray, groups: Sequence[object] | None = None) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    For paired differences, give the difference of each case: cases are drawn, and both of its values with it.

    Args:
        values: (cases,); NaN values are left out.
        groups: whose each of the values is, none of them NaN: then groups are drawn, with all their cases; None: each
            case is drawn by itself.

    Returns:
        Lower and upper end, the same for the same values; NaN where there are fewer than two values or groups.
    """
    known = _known(values)
    places = np.arange(len(known)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if len(set(places)) < 2:
        return np.nan, np.nan
    found = stats.bootstrap(
        (np.bincount(places, weights=known), np.bincount(places)),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences lie symmetrically around zero.

    SciPy decides between the exact distribution and the normal approximation. Pairs without a difference are dropped,
    as in Wilcoxon's own test.

    Args:
        differences: (cases,); NaN values are left out.

    Returns:
        p, or NaN where fewer than six pairs differ.
    """
    known = _known(differences).round(DECIMALS)
    if np.count_nonzero(known) < FEWEST_DIFFERENCES:
        return np.nan
    return float(stats.wilcoxon(known).pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values corrected for their number by Holm's step-down method (Holm 1979, Scand. J. Statist. 6:65-70).

    Args:
        p_values: (tests,) of one family; NaN stands for a test that could not be made and does not count.

    Returns:
        (tests,) corrected p, at most 1; NaN where there was none.
    """
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(given.shape, np.nan)
    ascending = np.argsort(given, kind="stable")[: np.count_nonzero(~np.isnan(given))]
    factors = np.arange(len(ascending), 0, -1)
    corrected[ascending] = np.minimum(np.maximum.accumulate(given[ascending] * factors), 1.0)
    return corrected


def _known(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    return numbers[~np.isnan(numbers)]
