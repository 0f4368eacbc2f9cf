"""How stable the ranking of models is: ranks in bootstrap samples of the cases, as in challengeR (Wiesenfarth et al.
2021, Sci. Rep. 11:2369)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.best import LOWEST, comparable, ranked_rows, resampled_means
from megavoxel.reporting.statistics import EQUAL_DECIMALS, groups_of
from megavoxel.reporting.stored import Stored

FEW_CASES = 50
"""Below so many cases, or groups of them, intervals and rankings are unstable."""
RANKING_COLUMNS = [
    "split", "metric", "rank", "model", "cases", "mean", "mean_rank", "rank_low", "rank_high", "verdict", "tau",
    "tau_low", "tau_high",
]  # fmt: skip


def ranking_table(stored: Stored) -> pd.DataFrame:
    """Per split, metric that ranks and model: its rank, and its ranks in bootstrap samples of the cases.

    Models and means are those of the table of the best model, of every split and metric. `mean_rank` is the mean over
    samples, `rank_low` and `rank_high` bound the middle 95 % of them, `rank_1` and so on are the shares of samples in
    which the model has this rank; equal models share the best of their ranks. `tau` is the mean over samples of
    Kendall's tau (b) between the ranks of a sample and those of all cases, `tau_low` and `tau_high` bound the middle
    95 %. Where there are fewer than two models, or two cases, there are no lines.
    """
    rows = []
    for split in stored.splits:
        for metric in [metric for metric in stored.metrics if metric.ranks]:
            rows += _rows(stored, split, metric)
    shares = [f"rank_{number}" for number in range(1, max((row["rank"] for row in rows), default=0) + 1)]
    table = pd.DataFrame(rows, columns=[*RANKING_COLUMNS, *shares])
    return table.fillna(dict.fromkeys(shares, 0.0))


def few_cases(stored: Stored) -> dict[str, int]:
    """By split, the number of what is drawn for intervals, where there is too little of it."""
    counts = {}
    for split in stored.splits:
        cases = pd.Series(stored.scores.loc[stored.scores["split"] == split, "case"].unique())
        groups = groups_of(stored, cases)
        counts[split] = int((cases if groups is None else groups).nunique())
    return {split: count for split, count in counts.items() if count < FEW_CASES}


def _rows(stored: Stored, split: str, metric: Metric) -> list[dict[str, Any]]:
    sums, cases = comparable(stored, split, metric)
    if len(sums) < 2 or len(next(iter(sums.values())).values) < 2:
        return []
    told = ranked_rows(sums, metric)
    means = np.stack([resampled_means(sums[row["model"]]) for row in told])
    ranks = _ranks(means[:, ~np.isnan(means).any(axis=0)], metric)
    tau = _taus(ranks, _ranks(np.array([[row["mean"]] for row in told]), metric)[:, 0])
    shared = {"split": split, "metric": metric.name, "cases": cases} | tau
    rows = []
    for row, own in zip(told, ranks, strict=True):
        low, high = np.quantile(own, [LOWEST, 1 - LOWEST])
        found = {"mean_rank": own.mean(), "rank_low": low, "rank_high": high}
        found |= {f"rank_{number}": float((own == number).mean()) for number in range(1, len(told) + 1)}
        rows.append({key: row[key] for key in ("rank", "model", "mean", "verdict")} | shared | found)
    return rows


def _ranks(means: np.ndarray, metric: Metric) -> np.ndarray:
    """Ranks from 1 of each model in each sample, (models, samples)."""
    return stats.rankdata(-metric.sign * np.round(means, EQUAL_DECIMALS), method="min", axis=0)


def _taus(ranks: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    """Kendall's tau of the samples' ranks with those of all cases; NaN where all models are equal."""
    orders, times = np.unique(ranks, axis=1, return_counts=True)
    taus = np.repeat([stats.kendalltau(order, whole).statistic for order in orders.T], times)
    known = taus[~np.isnan(taus)]
    if not len(known):
        return dict.fromkeys(("tau", "tau_low", "tau_high"), np.nan)
    low, high = np.quantile(known, [LOWEST, 1 - LOWEST])
    return {"tau": float(known.mean()), "tau_low": float(low), "tau_high": float(high)}
