"""Scores of every case for the page, worst cases first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored

PARTS = 10_000
"""Scores are written as whole numbers of so many parts."""


def ranked_cases(stored: Stored) -> pd.DataFrame:
    """Cases with their split and the study's first metric, the mean over models of the mean over labels; worst first,
    equal ones by name.

    A case without any value (its labels are in no map) comes last.
    """
    metric = stored.metrics[0]
    means = case_means(stored.scores).groupby(["case", "split"], as_index=False)[metric.name].mean()
    order = {"ascending": [metric.higher_is_better, True], "na_position": "last"}
    return means.sort_values([metric.name, "case"], **order, ignore_index=True)


def case_data(stored: Stored) -> dict[str, Any]:
    """What the page's script needs: names, and scores by metric, model, case and label.

    Returns:
        `models`, `labels`, `metrics` (their heads), `signs` (1 where higher is better, else -1), `cases` (`id`,
        `split`, `fold`; in the order of `ranked_cases`) and `scores`: nested lists
        [metric][model][case][label] of whole numbers, `parts` of which are 1; None where there is no
        value, and for a case that a model does not have.
    """
    cases = ranked_cases(stored)
    keys = cases[["case", "split"]].itertuples(index=False, name=None)
    folds = stored.scores.drop_duplicates("case").set_index("case")["fold"]
    models, labels = list(stored.definition.models), list(stored.labels)
    return {
        "models": models,
        "labels": labels,
        "metrics": [metric.head for metric in stored.metrics],
        "signs": [metric.sign for metric in stored.metrics],
        "parts": PARTS,
        "cases": [{"id": case, "split": split, "fold": folds[case]} for case, split in keys],
        "scores": [
            [_of_model(stored.scores, metric.name, model, list(cases["case"]), labels) for model in models]
            for metric in stored.metrics
        ],
    }


def _of_model(scores: pd.DataFrame, metric: str, model: str, cases: list[str], labels: list[str]) -> list[Any]:
    own = scores[(scores["metric"] == metric) & (scores["setting"] == model)]
    grid = own.pivot(index="case", columns="label", values="value").reindex(index=cases, columns=labels)
    scored = set(own["case"])
    rows = (grid.to_numpy() * PARTS).round()
    return [
        [None if np.isnan(value) else int(value) for value in row] if case in scored else None
        for case, row in zip(cases, rows, strict=True)
    ]
