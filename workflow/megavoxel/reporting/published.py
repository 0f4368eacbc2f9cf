"""Published numbers: their file, and the table that sets them beside the measured ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from megavoxel.config.study import Sweep
from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS, Metric
from megavoxel.evaluation.tidy import read_text
from megavoxel.reporting.costs import (
    PEAK,
    SECONDS,
    SECONDS_SD,
    Key,
    cascade_peaks,
    largest,
    seconds_of_models,
    with_peaks,
)
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.stored import Stored
from megavoxel.tasks.classification.metrics import METRICS as CLASSIFICATION_METRICS

COLUMNS = ["table", "row", "metric", "value", "source"]
KEYS = COLUMNS[:3]
COSTS = (PEAK, SECONDS, SECONDS_SD)
OTHER_METRICS = (
    f", one of them followed by a label ('DSC liver'), {PEAK} (GPU memory in GB), {SECONDS} or {SECONDS_SD} (inference "
    "per image)"
)
UNREADABLE = "published numbers cannot be read ({fault})"


def read_published(path: Path | None, *, classifies: bool = False) -> pd.DataFrame:
    """Lines of a file of published numbers, `value` as float64 and all else as text; none where there is no file.

    Args:
        classifies: whether they are of a study of image classification, whose metrics have no labels and no cost.

    Raises:
        UserError: the file cannot be read, has other columns, an unknown metric, a value that is no number or beyond
            the metric's range, or says something twice.
    """
    if path is None:
        return pd.DataFrame(columns=COLUMNS, dtype=str).astype({"value": float})
    metrics = {metric.name: metric for metric in (CLASSIFICATION_METRICS if classifies else METRICS).values()}
    table = read_text(path, COLUMNS, missing=UNREADABLE, unreadable=UNREADABLE, is_ours=False)
    names = table["metric"] if classifies else table["metric"].str.replace(r" \S.*$", "", regex=True)
    unknown = ~(names.isin(list(metrics)) | (table["metric"].isin(COSTS) & (not classifies)))
    numbers = pd.to_numeric(table["value"], errors="coerce")
    ranges = [(metrics[name].low, metrics[name].high) if name in metrics else (-math.inf, math.inf) for name in names]
    beyond = pd.Series(
        [not low <= value <= high for value, (low, high) in zip(numbers, ranges, strict=True)], table.index, bool
    )
    allowed = ", ".join(metrics) + ("" if classifies else OTHER_METRICS)
    faults = {
        f"unknown metric '{{metric}}'; allowed: {allowed}": unknown,
        "value '{value}' is not a number": numbers.isna(),
        "value '{value}' of {metric} is beyond its range": beyond,
        "there is a line for {table}, {row}, {metric} already; keep one of them": table.duplicated(KEYS),
    }
    for reason, wrong in faults.items():
        if wrong.any():
            line = table.index[wrong][0]
            raise UserError(f"{path}: line {line + 2}: {reason.format(**table.loc[line])}")
    return table.assign(value=numbers)


def published_table(published: pd.DataFrame, stored: Stored, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Published values beside the measured means, with the peak memory of each row; empty where nothing is published.

    Measured are those of the split that is reported last. A line's `row` is the name of a model, or of a point where
    its `table` is that of a sweep. Its `metric` is a metric's name (mean over labels and cases), one followed by a
    label (`DSC liver`; of a point with repeats the mean of their means), `peak_gib`, `seconds` or `seconds_sd`.
    Measured stays empty where the study has no such row or label. `peak_gib` has no difference: published are GB,
    measured GiB.

    Args:
        published: as `read_published` gives it.
        tables: with full numbers: `summary`, `labels`, `sweeps` and `inference_time`.
    """
    split, peaks, definition = stored.splits[-1], cascade_peaks(stored), stored.definition
    summary, labels = (tables[name][tables[name]["split"] == split] for name in ("summary", "labels"))
    means = _means(summary, labels, stored.metrics) | seconds_of_models(tables["inference_time"], split)
    points = measured_points(tables["sweeps"], published, definition.sweeps, split)
    models = models_of_rows(published, definition)
    keys = list(published[KEYS].itertuples(index=False, name=None))
    measured = [points.get(key, _measured(key[2], models[key[:2]], means, peaks)) for key in keys]
    table = published.rename(columns={"value": "published"})
    table["measured"] = pd.Series(measured, index=table.index, dtype=float)
    # Papers print GB and do not say of what size; measured are GiB. One from the other would be no number of either.
    table["difference"] = (table["measured"] - table["published"]).mask(table["metric"] == PEAK)
    table["split"] = split
    table = table[["table", "row", "metric", "published", "measured", "difference", "split", "source"]]
    return with_peaks(table, [models[key[:2]] for key in keys], peaks)


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
    """Measured means of points by published table, point and metric."""
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


def _measured(metric: str, models: Sequence[str], means: Mapping[tuple[str, str], float], peaks: pd.DataFrame) -> float:
    """Mean over models that are repeats of one another; NaN where there is none, or one lacks the metric."""
    if metric == PEAK:
        return largest(peaks, models)[PEAK]
    values = [means.get((model, metric), math.nan) for model in models]
    return sum(values) / len(values) if values else math.nan


def _means(summary: pd.DataFrame, labels: pd.DataFrame, metrics: Sequence[Metric]) -> dict[tuple[str, str], float]:
    values = {}
    for metric in metrics:
        column = f"{metric.key}_mean"
        for row in summary.to_dict("records"):
            values[row["model"], metric.name] = row[column]
        for row in labels.to_dict("records"):
            values[row["model"], f"{metric.name} {row['label']}"] = row[column]
    return values
