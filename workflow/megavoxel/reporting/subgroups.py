"""Scores of the cases of a site, a scanner or a sex: subgroups by columns of a table that the dataset file names."""

from __future__ import annotations

from typing import Any

import pandas as pd

from megavoxel.reporting.statistics import case_means, groups_of, mean_interval
from megavoxel.reporting.stored import Stored


def subgroup_table(stored: Stored) -> pd.DataFrame:
    """Per column of the table of cases, its values, split and model: cases, and mean and SD over cases of each metric
    with the 95 % bootstrap interval of the mean, as in the summary.

    Cases without a value in a column are in none of its lines.
    """
    means, rows = case_means(stored.scores), []
    for column, cases in stored.subgroups.items():
        for value, split, model in _parts(stored, sorted(set(cases.values()))):
            chosen = (means["split"] == split) & (means["setting"] == model) & (means["case"].map(cases) == value)
            own = means[chosen]
            if len(own):
                place = {"column": column, "value": value, "split": split, "model": model, "cases": len(own)}
                rows.append(place | _numbers(stored, own))
    kinds = [f"{metric.key}_{kind}" for metric in stored.metrics for kind in ("mean", "sd", "low", "high")]
    return pd.DataFrame(rows, columns=["column", "value", "split", "model", "cases", *kinds])


def _parts(stored: Stored, values: list[str]) -> list[tuple[str, str, str]]:
    models = stored.definition.models
    return [(value, split, model) for split in stored.splits for value in values for model in models]


def _numbers(stored: Stored, own: pd.DataFrame) -> dict[str, Any]:
    found = {}
    for metric in stored.metrics:
        low, high = mean_interval(own[metric.name], groups_of(stored, own["case"]))
        numbers = {"mean": own[metric.name].mean(), "sd": own[metric.name].std(), "low": low, "high": high}
        found |= {f"{metric.key}_{kind}": number for kind, number in numbers.items()}
    return found
