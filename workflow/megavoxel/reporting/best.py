"""Which setting or ensemble is best by cross-validation: the choice that nnU-Net's `find_best_configuration` makes.

The measure is nnU-Net's: the mean over labels of the means over all validation cases, without post-processing. A value
that a case does not have, because both label maps are empty, is left out of the mean of its label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.statistics import BATCH, CONFIDENCE, EQUAL_DECIMALS, RESAMPLES, SEED
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.verdict import Gap

BEST_COLUMNS = [
    "rank", "model", "members", "metric", "cases", "mean", "low", "high", "difference", "difference_low",
    "difference_high", "verdict",
]  # fmt: skip
LOWEST = (1 - CONFIDENCE) / 2
BEST, TOGETHER, BEHIND = "best", "cannot be told apart", "behind"
UNDECIDED, LEFT_OUT = "too few cases differ", "not compared: other cases"


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Values of a model, summed over what is drawn for intervals: cases, or the groups that they belong to."""

    values: np.ndarray
    """(groups, labels)."""
    counts: np.ndarray
    """Cases with a value (groups, labels)."""

    def mean(self, times: np.ndarray) -> np.ndarray:
        """Mean over labels of the means over cases.

        Args:
            times: how often each group counts (…, groups).
        """
        counts = times @ self.counts
        means = np.divide(times @ self.values, counts, out=np.zeros(counts.shape), where=counts > 0)
        with np.errstate(invalid="ignore"):  # in a resample without any value
            return means.sum(axis=-1) / (counts > 0).sum(axis=-1)


def best_table(stored: Stored) -> pd.DataFrame:
    """All settings and ensembles, the best first, with the columns `BEST_COLUMNS`.

    Ranked are the models that are validated on the same cases as the first of those that have most; the others come
    last, without numbers. Equal ones are in the order of the study, settings before ensembles. `low` and `high` bound
    the 95 % bootstrap interval of the mean; `difference` is the mean minus that of the best model, with its paired
    interval. Cases are drawn, or the groups that they belong to.
    """
    metric = deciding_metric(stored)
    cases = _cases_of_models(stored, _lines(stored, "validation", metric))
    sums, _ = comparable(stored, "validation", metric)
    rows = ranked_rows(sums, metric)
    rows += [{"model": model, "verdict": LEFT_OUT} for model in cases if model not in sums]
    table = pd.DataFrame(rows, columns=BEST_COLUMNS).astype({"rank": "Int64"})
    members = {model: " ".join(own) for model, own in stored.definition.ensembles.items()}
    return table.assign(
        members=[members.get(model, "") for model in table["model"]],
        metric=metric.name,
        cases=[len(cases[model]) for model in table["model"]],
    )


def comparable(stored: Stored, split: str, metric: Metric) -> tuple[dict[str, Sums], int]:
    """The sums of the models that are scored on the same cases as the first of those that have most, and how many cases
    these are."""
    lines = _lines(stored, split, metric)
    cases = _cases_of_models(stored, lines)
    most = max(cases.values(), key=len, default=set())
    ranked = [model for model, own in cases.items() if own == most]
    return {model: _sums(stored, lines[lines["setting"] == model]) for model in ranked}, len(most)


def _lines(stored: Stored, split: str, metric: Metric) -> pd.DataFrame:
    return stored.scores[(stored.scores["split"] == split) & (stored.scores["metric"] == metric.name)]


def _cases_of_models(stored: Stored, lines: pd.DataFrame) -> dict[str, set[str]]:
    """The cases of each model that has a value, in the order of the study."""
    cases = {model: set(own["case"]) for model, own in lines.groupby("setting") if own["value"].notna().any()}
    return {model: cases[model] for model in stored.definition.models if model in cases}


def deciding_metric(stored: Stored) -> Metric:
    """DSC where the study scores it, else the study's first metric."""
    return next((metric for metric in stored.metrics if metric.key == "dsc"), stored.metrics[0])


def _sums(stored: Stored, lines: pd.DataFrame) -> Sums:
    """The sums of a model's lines of one metric, by groups in the order of their names."""
    whose = lines["case"].map(stored.groups) if stored.groups else lines["case"]
    values = lines["value"].groupby([whose.rename("group"), lines["label"]]).agg(["sum", "count"]).unstack("label")
    labels = list(stored.labels)
    kinds = {kind: values[kind].reindex(columns=labels, fill_value=0).fillna(0) for kind in ("sum", "count")}
    return Sums(values=kinds["sum"].to_numpy(float), counts=kinds["count"].to_numpy(float))


def ranked_rows(sums: dict[str, Sums], metric: Metric) -> list[dict[str, Any]]:
    """A row for each model, the best first: rank, mean with interval, difference to the best, and the verdict on it."""
    means = {model: float(own.mean(np.ones(len(own.values)))) for model, own in sums.items()}
    order = sorted(sums, key=lambda model: -metric.sign * round(means[model], EQUAL_DECIMALS))
    if not order:
        return []
    best, rows = sums[order[0]], []
    for rank, model in enumerate(order, start=1):
        own = sums[model]
        low, high = _interval(own, lambda times, own=own: own.mean(times))
        row = {"rank": rank, "model": model, "mean": means[model], "low": low, "high": high, "verdict": BEST}
        rows.append(row if rank == 1 else row | _against(best, own))
    return rows


def _against(best: Sums, own: Sums) -> dict[str, Any]:
    """What a row says of a model beside the best one."""
    once = np.ones(len(own.values))
    low, high = _interval(own, lambda times: own.mean(times) - best.mean(times))
    differs = np.round(own.values - best.values, EQUAL_DECIMALS).any(axis=1) | (own.counts != best.counts).any(axis=1)
    difference = float(own.mean(once) - best.mean(once))
    gap = Gap(name="", value=0.0, difference=difference, low=low, high=high, changed=int(differs.sum()))
    undecided = gap.changed and not gap.has_enough
    verdict = BEHIND if gap.is_apart else UNDECIDED if undecided else TOGETHER
    return {"difference": difference, "difference_low": low, "difference_high": high, "verdict": verdict}


def _interval(sums: Sums, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a statistic, as `mean_interval`; NaN where there is only one group.

    Args:
        sums: whose groups are drawn.
        statistic: takes how often each group is drawn in each resample (resamples, groups), and gives (resamples,).
    """
    if len(sums.values) < 2:
        return np.nan, np.nan
    found = np.concatenate([statistic(times) for times in _drawn(len(sums.values))])
    low, high = np.nanquantile(found, [LOWEST, 1 - LOWEST])
    return float(low), float(high)


def resampled_means(sums: Sums) -> np.ndarray:
    """The mean of a model in each bootstrap sample, (resamples,); the samples are the same for all models."""
    return np.concatenate([sums.mean(times) for times in _drawn(len(sums.values))])


def _drawn(groups: int) -> Iterator[np.ndarray]:
    """How often each group is drawn in the bootstrap samples, some of them at a time (resamples, groups)."""
    random = np.random.default_rng(SEED)
    for first in range(0, RESAMPLES, BATCH):
        size = min(BATCH, RESAMPLES - first)
        yield random.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(float)
