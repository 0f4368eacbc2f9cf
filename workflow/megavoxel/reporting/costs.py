"""The cost of models: peak memory of their training, measured and forecast, and seconds per image in inference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import read_text
from megavoxel.planning.plan import Plan
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.stored import Stored

Key = tuple[str, str, str]
"""A line's table, row and metric."""
PEAK = "peak_gib"
"""The metric of published memory: of a GPU in training, in GB as the paper prints it."""
SECONDS, SECONDS_SD = "seconds", "seconds_sd"
"""The metrics of published inference time per image: the mean, and the standard deviation that is printed with it."""
PEAK_COLUMNS = ["peak_gib", "forecast_gib"]
"""Measured and forecast peak memory."""
COLUMNS = ["setting", "split", "fold", "case", "repeat", "seconds", "window"]
KEYS = [name for name in COLUMNS if name != "seconds"]
GROUP = ["split", "setting", "window"]
SPLITS = ("validation", "test")
TABLE_COLUMNS = [
    "setting", "split", "window", "cases", "repeats", "mean", "sd", "ratio", "published", "published_sd",
    "published_ratio",
]  # fmt: skip


def own_peaks(stored: Stored) -> pd.DataFrame:
    """The most that PyTorch allocates on one device in training, in GiB: `PEAK_COLUMNS` by model.

    A setting has the largest of its folds, an ensemble the largest of its members. The figures are those of
    `peak_memory` in the manifests. Folds without one are passed over; an ensemble with a member that has none has none.
    """
    return _with_ensembles({setting: _of_folds(own.values()) for setting, own in stored.manifests.items()}, stored)


def cascade_peaks(stored: Stored) -> pd.DataFrame:
    """Peaks by model, as `own_peaks`, but a setting with a first stage has the largest of all stages: what training
    the whole cascade takes, as table 3 of Wang et al. 2022 states it."""
    own = own_peaks(stored)
    stages = {setting: stages_of(setting, stored.plans) for setting in stored.plans}
    return _with_ensembles({setting: largest(own, names) for setting, names in stages.items()}, stored)


def stages_of(setting: str, plans: Mapping[str, Plan]) -> list[str]:
    """A setting and all settings whose predictions it, or one of them, is given."""
    stages = [setting]
    for stage in stages:
        stages += [name for name in plans[stage].stage1 if name not in stages] if stage in plans else []
    return stages


def largest(peaks: pd.DataFrame, models: Iterable[str]) -> pd.Series:
    """The largest of the peaks of some models, measured and forecast each for itself; NaN where one has none."""
    return peaks.reindex(list(models)).max(skipna=False)


def with_peaks(table: pd.DataFrame, models: Iterable[Sequence[str]], peaks: pd.DataFrame) -> pd.DataFrame:
    """The table with `PEAK_COLUMNS`, the largest of the models that each row is about.

    Args:
        models: of each row; a row without models, or with one that has no peak, has none.
    """
    rows = [tuple(row) for row in models]
    found = {row: largest(peaks, row) for row in set(rows)}
    values = pd.DataFrame([found[row] for row in rows], columns=PEAK_COLUMNS, dtype=float).set_index(table.index)
    return table.assign(**values)


def how_measured(stored: Stored) -> str:
    """How the runs measured their peak, in the words of their manifests; with the settings where they differ."""
    settings: dict[str, list[str]] = {}
    for setting, manifests in stored.manifests.items():
        for how in sorted({run["how"] for run in map(_recorded, manifests.values()) if "how" in run}):
            settings.setdefault(how, []).append(setting)
    if len(settings) == 1:
        return next(iter(settings))
    return "; ".join(f"{how} ({', '.join(names)})" for how, names in settings.items())


def _with_ensembles(settings: Mapping[str, Sequence[float]], stored: Stored) -> pd.DataFrame:
    """Peaks of settings, and of ensembles of them."""
    peaks = pd.DataFrame.from_dict(settings, orient="index", columns=PEAK_COLUMNS, dtype=float)
    for name, members in stored.definition.ensembles.items():
        peaks.loc[name] = largest(peaks, members)
    return peaks


def _of_folds(manifests: Iterable[Mapping[str, Any]]) -> list[float]:
    recorded = [_recorded(manifest) for manifest in manifests]
    return [max((run[key] for run in recorded if key in run), default=math.nan) for key in ("gib", "forecast_gib")]


def _recorded(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """`peak_memory` of a run; empty where it was made before runs recorded it."""
    return manifest.get("peak_memory") or {}


def no_timings() -> pd.DataFrame:
    """Timings of a study where nothing was timed."""
    return pd.DataFrame(columns=COLUMNS, dtype=str).astype({"seconds": float})


def read_timings(paths: Sequence[Path]) -> pd.DataFrame:
    """Lines of all files, `seconds` as float64 and all else as text: one per setting, split, fold, case and repeat.

    Raises:
        UserError: a file is missing, has other columns or an unknown split, a time that is no positive number, or
            something is timed twice.
    """
    if not paths:
        return no_timings()
    table = pd.concat([_read(path).assign(source=str(path)) for path in paths], ignore_index=True)
    twice = table[table.duplicated(KEYS, keep=False)].sort_values(KEYS, kind="stable")
    if len(twice):
        first = twice.iloc[0]
        files = " and ".join(twice[(twice[KEYS] == first[KEYS]).all(axis=1)]["source"].unique())
        raise UserError(f"{files}: {', '.join(f'{key} {first[key]}' for key in KEYS)} is timed twice; keep one of them")
    return table[COLUMNS]


def time_table(timings: pd.DataFrame, published: pd.DataFrame, definition: Definition) -> pd.DataFrame:
    """One line per split, setting and window; columns as in `TABLE_COLUMNS`, in the order of the study's models.

    The unit is the case: the mean over its repeats (and over folds that predict the same case) is taken first. `sd` is
    that of a sample of cases (n - 1), `repeats` the smallest number of any case. `ratio` is the mean over that of the
    baseline, both over the cases that they share; of a baseline with several windows, over that of the same window if
    there is one, else of its first. Settings that the study does not have are left out.

    Args:
        published: as `megavoxel.reporting.published.read_published` gives it; its lines `seconds` and `seconds_sd`
            stand beside the setting that is their `row`, and their ratio is that to the baseline's row of the same
            table.
        definition: what the study compares.
    """
    cases = case_seconds(timings)
    rows = []
    for split in SPLITS:
        for model in definition.models:
            own = cases[(cases["split"] == split) & (cases["setting"] == model)]
            for window in own["window"].unique():
                rows.append(_row(own[own["window"] == window], cases, published, definition.baseline))
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


def case_seconds(timings: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds and number of repeats of each case: columns split, setting, window, case, seconds, repeats."""
    groups = timings.groupby([*GROUP, "case"], sort=False)["seconds"]
    return groups.agg(seconds="mean", repeats="size").reset_index()


def seconds_of_models(table: pd.DataFrame, split: str) -> dict[tuple[str, str], float]:
    """Mean and standard deviation by model and published metric, of the first window of each.

    Args:
        table: as `time_table` gives it.
    """
    first = table[table["split"] == split].drop_duplicates("setting")
    means = {(row["setting"], SECONDS): row["mean"] for row in first.to_dict("records")}
    return means | {(row["setting"], SECONDS_SD): row["sd"] for row in first.to_dict("records")}


def published_seconds(published: pd.DataFrame, row: str, table: str | None = None) -> tuple[Key | None, float]:
    """The first published line of a row with seconds (its key and value); None and NaN where there is none."""
    lines = published[(published["row"] == row) & (published["metric"] == SECONDS)]
    lines = lines if table is None else lines[lines["table"] == table]
    if lines.empty:
        return None, math.nan
    first = lines.iloc[0]
    return (first["table"], row, SECONDS), float(first["value"])


def _row(own: pd.DataFrame, cases: pd.DataFrame, published: pd.DataFrame, baseline: str | None) -> dict[str, Any]:
    split, setting, window = own[GROUP].iloc[0]
    row = {"setting": setting, "split": split, "window": window, "cases": len(own), "repeats": own["repeats"].min()}
    row |= {"mean": own["seconds"].mean(), "sd": own["seconds"].std(), "ratio": math.nan}
    if baseline is not None:
        row["ratio"] = _ratio(own, cases[(cases["split"] == split) & (cases["setting"] == baseline)], window)
    key, row["published"] = published_seconds(published, setting)
    if key is not None:
        spread = published[(published["table"] == key[0]) & (published["row"] == setting)].set_index("metric")["value"]
        row["published_sd"] = spread.get(SECONDS_SD, math.nan)
        row["published_ratio"] = row["published"] / published_seconds(published, baseline, key[0])[1]
    return row


def _ratio(own: pd.DataFrame, baseline: pd.DataFrame, window: str) -> float:
    """Mean seconds over those of the baseline, over shared cases; NaN where there are none."""
    if baseline.empty:
        return math.nan
    chosen = window if (baseline["window"] == window).any() else baseline["window"].iloc[0]
    both = own.merge(baseline[baseline["window"] == chosen], on="case", suffixes=("", "_baseline"))
    return both["seconds"].mean() / both["seconds_baseline"].mean() if len(both) else math.nan


def _read(path: Path) -> pd.DataFrame:
    table = read_text(path, COLUMNS, missing="no such file of timings", unreadable="timings cannot be read ({fault})")
    unknown = table.index[~table["split"].isin(SPLITS)]
    if len(unknown):
        raise UserError(
            f"{path}: line {unknown[0] + 2}: split '{table['split'][unknown[0]]}'; allowed: {', '.join(SPLITS)}"
        )
    seconds = pd.to_numeric(table["seconds"], errors="coerce")
    wrong = table.index[~(np.isfinite(seconds) & (seconds > 0))]
    if len(wrong):
        raise UserError(f"{path}: line {wrong[0] + 2}: '{table['seconds'][wrong[0]]}' is no positive number of seconds")
    return table.assign(seconds=seconds.astype(float))
