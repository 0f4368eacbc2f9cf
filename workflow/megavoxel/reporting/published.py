"""Published numbers: their file, and the table that sets them beside the measured ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS, Metric
from megavoxel.evaluation.tidy import read_text
from megavoxel.reporting.memory import Peak, largest, with_peaks

COLUMNS = ["table", "row", "metric", "value", "source"]
KEYS = COLUMNS[:3]
Key = tuple[str, str, str]
"""A line's table, row and metric."""
PEAK = "peak_gib"
"""The metric of published memory: of a GPU in training, in GB as the paper prints it."""
SECONDS, SECONDS_SD = "seconds", "seconds_sd"
"""The metrics of published inference time per image: the mean, and the standard deviation that is printed with it."""
SCORES = tuple(metric.name for metric in METRICS.values())
METRIC = re.compile(rf"{PEAK}|{SECONDS}|{SECONDS_SD}|({'|'.join(SCORES)})( \S.*)?")


def read_published(path: Path | None) -> pd.DataFrame:
    """Lines of a file of published numbers, `value` as float64 and all else as text; none where there is no file.

    Raises:
        UserError: the file cannot be read, has other columns, an unknown metric, a value that is no number, or says
            something twice.
    """
    if path is None:
        return pd.DataFrame(columns=COLUMNS, dtype=str).astype({"value": float})
    fault = "published numbers cannot be read ({fault})"
    table = read_text(path, COLUMNS, missing=fault, unreadable=fault)
    unknown = table.index[~table["metric"].str.fullmatch(METRIC)]
    if len(unknown):
        raise UserError(
            f"{path}: line {unknown[0] + 2}: unknown metric '{table['metric'][unknown[0]]}'; allowed: "
            f"{', '.join(SCORES)}, one of them followed by a label ('DSC liver'), {PEAK} (GPU memory in GB), "
            f"{SECONDS} or {SECONDS_SD} (inference per image)"
        )
    numbers = pd.to_numeric(table["value"], errors="coerce")
    wrong = table.index[numbers.isna()]
    if len(wrong):
        raise UserError(f"{path}: line {wrong[0] + 2}: value '{table['value'][wrong[0]]}' is not a number")
    twice = table.index[table.duplicated(KEYS)]
    if len(twice):
        what = ", ".join(table.loc[twice[0], KEYS])
        raise UserError(f"{path}: line {twice[0] + 2}: there is a line for {what} already; keep one of them")
    return table.assign(value=numbers)


def published_table(
    published: pd.DataFrame,
    *,
    summary: pd.DataFrame,
    labels: pd.DataFrame,
    points: Mapping[Key, float],
    models: Mapping[tuple[str, str], Sequence[str]],
    peaks: Mapping[str, Peak],
    seconds: Mapping[tuple[str, str], float],
    split: str,
    metrics: Sequence[Metric],
) -> pd.DataFrame:
    """Published values beside the measured means, with the peak memory of each row; empty where nothing is published.

    A line's `row` is the name of a model, or of a point where its `table` is that of a sweep. Its `metric` is a
    metric's name (mean over labels and cases), one followed by a label (`DSC liver`; of a point with repeats the mean
    of their means), `peak_gib`, `seconds` or `seconds_sd`. Measured stays empty where the study has no such row or
    label.

    Args:
        published: as `read_published` gives it.
        summary: as `megavoxel.reporting.statistics.summary` gives it.
        labels: as `megavoxel.reporting.statistics.labels` gives it.
        points: measured means of the points of sweeps, as `megavoxel.reporting.sweeps.measured_points` gives them.
        models: of each table and row, as `megavoxel.reporting.sweeps.models_of_rows` gives them.
        peaks: by model, as `megavoxel.reporting.memory.cascade_peaks` gives them.
        seconds: by model and metric, as `megavoxel.reporting.timing.seconds_of_models` gives them.
        split: the split to compare with.
        metrics: of the study.
    """
    means = {**_means(summary[summary["split"] == split], labels[labels["split"] == split], metrics), **seconds}
    keys = list(published[KEYS].itertuples(index=False, name=None))
    measured = [points.get(key, _measured(key[2], models[key[:2]], means, peaks)) for key in keys]
    table = published.rename(columns={"value": "published"})
    table["measured"] = pd.Series(measured, index=table.index, dtype=float)
    table["difference"] = table["measured"] - table["published"]
    table["split"] = split
    table = table[["table", "row", "metric", "published", "measured", "difference", "split", "source"]]
    return with_peaks(table, [models[key[:2]] for key in keys], peaks)


def _measured(
    metric: str, models: Sequence[str], means: Mapping[tuple[str, str], float], peaks: Mapping[str, Peak]
) -> float:
    """Of the models that are repeats of one another; NaN where there is none, or one lacks the metric."""
    if metric == PEAK:
        return largest(peaks[model] for model in models).measured
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
