"""The points of a sweep beside one another: the numbers behind the tables of a study of one parameter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from megavoxel.config.study import Sweep
from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.published import Key
from megavoxel.reporting.statistics import case_means, differences, holm, mean_interval, paired_p
from megavoxel.reporting.stored import Stored

COLUMNS = [
    "sweep", "title", "split", "metric", "point", "models", "repeats", "cases", "mean", "low", "high", "repeat_sd",
    "difference", "difference_low", "difference_high", "p", "p_holm", "published", "published_difference",
]  # fmt: skip


def sweep_table(stored: Stored, published: pd.DataFrame) -> pd.DataFrame:
    """One line per sweep, split, metric and point; columns as in `COLUMNS`.

    The unit is the case: within a case the mean over labels is taken first, then the mean over the repeats of a point.
    Cases that one of the repeats lacks are left out. `low` and `high` bound the 95 % bootstrap interval of the mean
    over cases. `repeat_sd` is the standard deviation (n - 1) of the repeats' own means. The difference is to the first
    point of the sweep, over the cases that both have, with its paired bootstrap interval; p is Wilcoxon's signed-rank
    test over the same cases, empty where fewer than six differ. `p_holm` is corrected for one family: all comparisons
    with the first point of this sweep, in all metrics, on this split. Published values stand on the split that is
    reported last (test where it is scored).

    Args:
        published: as `megavoxel.reporting.published.read_published` gives it.
    """
    means = case_means(stored.scores)
    rows = []
    for sweep in stored.definition.sweeps:
        for split in stored.splits:
            lines = published_lines(published, sweep) if split == stored.splits[-1] else published[:0]
            rows += _sweep_rows(sweep, means[means["split"] == split], split, lines, stored.metrics)
    return pd.DataFrame(rows, columns=COLUMNS)


def published_lines(published: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """The lines of the published table that belongs to a sweep; none where there is no such table.

    It is the first whose `table` contains the sweep's title, or else its name as a word of its own; upper and lower
    case are the same.
    """
    title = published["table"].str.contains(sweep.title, case=False, regex=False)
    name = published["table"].str.contains(rf"(?<![\w-]){re.escape(sweep.name)}(?![\w-])", case=False, regex=True)
    found = published["table"][title if title.any() else name]
    return published[published["table"] == found.iloc[0]] if len(found) else published[:0]


def measured_points(
    table: pd.DataFrame, published: pd.DataFrame, sweeps: Sequence[Sweep], split: str
) -> dict[Key, float]:
    """Measured means of points by published table, point and metric.

    Args:
        table: as `sweep_table` gives it.
        published: as `megavoxel.reporting.published.read_published` gives it.
        sweeps: of the study.
        split: whose means.
    """
    measured = {}
    for sweep in sweeps:
        names = published_lines(published, sweep)["table"].unique()
        own = table[(table["sweep"] == sweep.name) & (table["split"] == split)]
        for name in names:
            measured |= {(name, row["point"], row["metric"]): row["mean"] for row in own.to_dict("records")}
    return measured


def models_of_rows(published: pd.DataFrame, definition: Definition) -> dict[tuple[str, str], tuple[str, ...]]:
    """The models that each published table and row is about: one, the repeats of a sweep's point, or none."""
    rows = list(published[["table", "row"]].itertuples(index=False, name=None))
    models = {(table, row): (row,) if row in definition.models else () for table, row in rows}
    for sweep in definition.sweeps:
        own = {
            (table, point): names
            for table in published_lines(published, sweep)["table"].unique()
            for point, names in sweep.points.items()
        }
        models |= {row: names for row, names in own.items() if row in models}
    return models


def point_scores(
    means: pd.DataFrame, models: Sequence[str], metrics: Sequence[Metric]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a point: of each case, and of each repeat.

    Args:
        means: lines of `case_means` of one split.
        models: the repeats.
        metrics: of the study.

    Returns:
        Mean over repeats with the columns case and one per metric, and mean over cases with setting in place of case;
        both over the cases that all repeats have.
    """
    part = means[means["setting"].isin(models)]
    shared = part[part.groupby("case")["setting"].transform("nunique") == len(models)]
    columns = [metric.name for metric in metrics]
    return shared.groupby("case")[columns].mean().reset_index(), shared.groupby("setting")[columns].mean().reset_index()


def _sweep_rows(
    sweep: Sweep, means: pd.DataFrame, split: str, published: pd.DataFrame, metrics: Sequence[Metric]
) -> list[dict[str, Any]]:
    points = {point: point_scores(means, models, metrics) for point, models in sweep.points.items()}
    first, _ = next(iter(points.values()))
    values = published.set_index(["row", "metric"])["value"].to_dict()
    rows = []
    for metric in (metric.name for metric in metrics):
        for point, (cases, repeats) in points.items():
            row = {"sweep": sweep.name, "title": sweep.title, "split": split, "metric": metric, "point": point}
            row |= {"models": " ".join(sweep.points[point]), "repeats": len(sweep.points[point]), "cases": len(cases)}
            row |= _own(cases[metric], repeats[metric])
            if point != next(iter(points)):
                row |= _against_first(differences(cases, first, metrics)[metric])
            row["published"] = values.get((point, metric), float("nan"))
            row["published_difference"] = row["mean"] - row["published"]
            rows.append(row)
    corrected = holm([row.get("p", float("nan")) for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def _own(cases: pd.Series, repeats: pd.Series) -> dict[str, float]:
    low, high = mean_interval(cases)
    return {"mean": cases.mean(), "low": low, "high": high, "repeat_sd": repeats.std()}


def _against_first(changes: pd.Series) -> dict[str, float]:
    low, high = mean_interval(changes)
    return {"difference": changes.mean(), "difference_low": low, "difference_high": high, "p": paired_p(changes)}
