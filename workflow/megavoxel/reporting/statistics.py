"""The numbers behind the tables, as data frames with plain numbers: means, intervals, differences and their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from megavoxel.config.study import Sweep
from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.published import published_lines
from megavoxel.reporting.stored import Stored

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 12345
FEWEST_DIFFERENCES = 6
"""With five pairs the smallest two-sided p is 1/16: no outcome could be called significant at 0.05."""
DECIMALS = 12
"""Differences are rounded to so many, so that equal ones are equal in spite of floating-point arithmetic."""
BATCH = 1000
"""Resamples held in memory at once."""
COMPARISON_COLUMNS = [
    "model", "baseline", "split", "metric", "cases", "difference", "low", "high", "better", "equal", "worse", "p",
    "p_holm",
]  # fmt: skip
SWEEP_COLUMNS = [
    "sweep", "title", "split", "metric", "point", "models", "repeats", "cases", "mean", "low", "high", "repeat_sd",
    "difference", "difference_low", "difference_high", "p", "p_holm", "published", "published_difference",
]  # fmt: skip
EQUAL_DECIMALS = 12
"""Cases count as equal where their scores agree to so many decimals."""
DEVICES_UNSAID = 1
"""Devices of a run whose manifest does not state them."""


def mean_interval(values: Sequence[float] | np.ndarray, groups: Sequence[object] | None = None) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    For paired differences, give the difference of each case: cases are drawn, and both of its values with it.

    Args:
        values: (cases,); NaN values are left out.
        groups: (cases,) whose each of the values is: then groups are drawn, with all their cases; None: each case is
            drawn by itself.

    Returns:
        Lower and upper end, the same for the same values; NaN where there are fewer than two values or groups.
    """
    numbers = np.asarray(values, dtype=float)
    known = numbers[~np.isnan(numbers)]
    whose = np.arange(len(known)) if groups is None else np.asarray(groups)[~np.isnan(numbers)]
    places = np.unique(whose, return_inverse=True)[1]
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


def paired_p(differences: Sequence[float] | np.ndarray, groups: Sequence[object] | None = None) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences lie symmetrically around zero.

    SciPy decides between the exact distribution and the normal approximation. Pairs without a difference are dropped,
    as in Wilcoxon's own test.

    Args:
        differences: (cases,); NaN values are left out.
        groups: (cases,) whose each of the differences is: then the mean of a group is one pair; None: each case is.

    Returns:
        p, or NaN where fewer than six pairs differ.
    """
    pairs = pd.Series(np.asarray(differences, dtype=float))
    pairs = pairs if groups is None else pairs.groupby(np.asarray(groups)).mean()
    known = pairs.dropna().round(DECIMALS)
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


def groups_of(stored: Stored, cases: pd.Series) -> pd.Series | None:
    """The group of each case, by the same index; None where the dataset has no groups."""
    return cases.map(stored.groups) if stored.groups else None


def case_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over labels of each case: columns setting, split, fold, case, and each metric; NaN values are left out."""
    index = ["setting", "split", "fold", "case"]
    means = scores.groupby([*index, "metric"], sort=True)["value"].mean().unstack("metric")
    return means.rename_axis(columns=None).reset_index()


def summary(stored: Stored) -> pd.DataFrame:
    """Per model and split: cases, values where both maps are empty, labels without an annotation in a case, mean and SD
    over cases, comparison to the baseline.

    The mean over labels is taken first, within each case. SD is that of a sample (n - 1); `low` and `high` bound the
    95 % bootstrap interval of the mean. The difference is the mean over the cases that the model and the baseline share
    of one minus the other; p is that of Wilcoxon's signed-rank test over the same cases, and `p_holm` is corrected
    for all models and metrics of the split (`megavoxel.reporting.statistics`).
    """
    means = case_means(stored.scores)
    rows = []
    for split in stored.splits:
        rows += with_holm(
            [_summary_row(stored, means, model, split) for model in stored.definition.models], stored.metrics
        )
    columns = ["model", "split", "cases", "both_empty", "unannotated"]
    columns += [f"{metric.key}_{kind}" for metric in stored.metrics for kind in ("mean", "sd", "low", "high")]
    columns += [f"{metric.key}_{kind}" for metric in stored.metrics for kind in ("difference", "p", "p_holm")]
    return pd.DataFrame(rows, columns=columns)


def comparison(stored: Stored, summarised: pd.DataFrame) -> pd.DataFrame:
    """Per split, metric and model but the baseline: its difference to the baseline, over the cases that both have.

    `low` and `high` bound the 95 % paired bootstrap interval of the mean difference; `better`, `equal` and `worse`
    count cases, by the direction of the metric: of an error with a sign, by the mean over labels of its absolute value.
    A metric without a direction has no lines. Difference and p are those of the summary.

    Args:
        stored: the study; without a baseline there are no lines.
        summarised: as `summary` gives it.
    """
    baseline, means = stored.definition.baseline, case_means(stored.scores)
    rows = []
    compared = [metric for metric in stored.metrics if metric.direction != "none"]
    for metric in compared if baseline is not None else ():
        for line in summarised[summarised["model"] != baseline].to_dict("records"):
            own, other = (_part(means, model, line["split"]) for model in (line["model"], baseline))
            both = differences(own, other, stored.metrics).dropna(subset=metric.name)
            changes = both[metric.name].round(EQUAL_DECIMALS)
            low, high = mean_interval(changes, groups_of(stored, both["case"]))
            row = {"model": line["model"], "baseline": baseline, "split": line["split"], "metric": metric.name}
            row |= {"cases": len(changes), "low": low, "high": high}
            gains = _gains(stored, line["model"], line["split"], metric).reindex(both["case"])
            row |= {"better": (gains > 0).sum(), "equal": (gains == 0).sum(), "worse": (gains < 0).sum()}
            row |= {key: line[f"{metric.key}_{key}"] for key in ("difference", "p", "p_holm")}
            rows.append(row)
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    order = {split: number for number, split in enumerate(stored.splits)}
    return table.sort_values("split", key=lambda splits: splits.map(order), kind="stable", ignore_index=True)


def labels(stored: Stored) -> pd.DataFrame:
    """Per model, split and label: values, values where both maps are empty, scored cases without an annotation of the
    label, mean and SD over cases, tolerance in mm."""
    cases = stored.scores.groupby(["setting", "split"])["case"].nunique()
    groups = stored.scores.groupby(["setting", "split", "label", "metric"])["value"]
    table = groups.agg(["count", "size", "mean", "std"]).unstack("metric")
    firsts = stored.counted.drop_duplicates("label").set_index("label")["metric"]
    rows = []
    for split in stored.splits:
        for label in stored.labels:
            for model in stored.definition.models:
                if (model, split, label) not in table.index:
                    continue
                found = table.loc[(model, split, label)]
                first = firsts[label]
                count, size = (int(found[kind, first]) for kind in ("count", "size"))
                row = {"split": split, "label": label, "model": model, "values": count, "both_empty": size - count}
                row["unannotated"] = int(cases.loc[(model, split)]) - size
                for metric in stored.metrics:
                    row[f"{metric.key}_mean"] = found["mean", metric.name]
                    row[f"{metric.key}_sd"] = found["std", metric.name]
                rows.append({**row, "tolerance_mm": stored.tolerances.get(label)})
    columns = ["split", "label", "model", "values", "both_empty", "unannotated"]
    columns += [f"{metric.key}_{kind}" for metric in stored.metrics for kind in ("mean", "sd")]
    return pd.DataFrame(rows, columns=[*columns, "tolerance_mm"])


def cost(stored: Stored) -> pd.DataFrame:
    """Per setting: what a run is, what it cost, and what it bought in the first metric of the study.

    `hours` is training time summed over folds, `devices` the number that a run used, `device_hours` each fold's hours
    times its devices. `peak_memory_mib` is the largest of any fold on one device in all of training: what PyTorch
    allocated on a GPU, what the process held on the CPU. `device_forecast_gib` is what plan.json forecasts of a device,
    libraries and prediction included. The last column, such as `dsc`, is the mean of the summary on the split that is
    named beside it: test where it is scored.
    """
    split, metric = stored.splits[-1], stored.metrics[0]
    accuracy = _of_split(case_means(stored.scores), split).groupby("setting")[metric.name].mean()
    rows = []
    for setting, plan in stored.plans.items():
        histories, manifests = stored.histories[setting], stored.manifests[setting]
        parameters = {manifest["parameters"] for manifest in manifests.values() if "parameters" in manifest}
        devices = {fold: manifests.get(fold, {}).get("devices", DEVICES_UNSAID) for fold in histories}
        hours = {fold: history["seconds"].sum() / 3600 for fold, history in histories.items()}
        rows.append(
            {
                "setting": setting,
                "patch": "x".join(map(str, plan.patch)),
                "batch": plan.batch,
                "parameters": max(parameters, default=None),
                "epochs": plan.training.epochs,
                "folds": len(histories),
                "devices": max(devices.values()),
                "hours": sum(hours.values()),
                "device_hours": sum(hours[fold] * devices[fold] for fold in hours),
                "peak_memory_mib": max(history["peak_memory_mib"].max() for history in histories.values()),
                "device_forecast_gib": stored.device_forecast_gib.get(setting),
                "split": split,
                metric.key: accuracy.get(setting),
            }
        )
    return pd.DataFrame(rows).astype({"parameters": "Int64", "device_forecast_gib": float, metric.key: float})


def _gains(stored: Stored, model: str, split: str, metric: Metric) -> pd.Series:
    """By how much a model's cases are better than the baseline's, rounded; by case."""
    lines = stored.scores[(stored.scores["metric"] == metric.name) & (stored.scores["split"] == split)]
    means = case_means(lines.assign(value=metric.goodness(lines["value"])))
    own, other = (_part(means, name, split) for name in (model, stored.definition.baseline))
    return differences(own, other, [metric]).set_index("case")[metric.name].round(EQUAL_DECIMALS)


def differences(own: pd.DataFrame, baseline: pd.DataFrame, metrics: Sequence[Metric]) -> pd.DataFrame:
    """Values of one model minus those of the other, by case: columns case, and each metric.

    Args:
        own: with these columns.
        baseline: with these columns; cases that only one of both has are left out.
    """
    both = own.merge(baseline, on="case", suffixes=("", "_baseline"))
    names = [metric.name for metric in metrics]
    return both[["case"]].assign(**{name: both[name] - both[f"{name}_baseline"] for name in names})


def with_holm(rows: Sequence[dict[str, Any]], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """The rows with `KEY_p_holm` of each metric: the `KEY_p` of all rows and metrics are one family of tests."""
    names = [metric.key for metric in metrics]
    corrected = holm([row.get(f"{name}_p", float("nan")) for row in rows for name in names])
    pairs = zip(rows, corrected.reshape(-1, len(names)), strict=True)
    return [row | {f"{name}_p_holm": p for name, p in zip(names, own, strict=True)} for row, own in pairs]


def sweep_table(stored: Stored, published: pd.DataFrame) -> pd.DataFrame:
    """One line per sweep, split, metric and point; columns as in `SWEEP_COLUMNS`.

    The unit is the case: within a case the mean over labels is taken first, then the mean over the repeats of a point.
    Cases that one of the repeats lacks are left out. `low` and `high` bound the 95 % bootstrap interval of the mean
    over cases. `repeat_sd` is the standard deviation (n - 1) of the repeats' own means. The difference is to the first
    point of the sweep, over the cases that both have, with its paired bootstrap interval; p is Wilcoxon's signed-rank
    test over the same cases, empty where fewer than six differ. `p_holm` is corrected for one family: all comparisons
    with the first point of this sweep, in all metrics, on this split. Published values stand on the split that is
    reported last (test where it is scored).
    """
    means = case_means(stored.scores)
    rows = []
    for sweep in stored.definition.sweeps:
        for split in stored.splits:
            lines = published_lines(published, sweep) if split == stored.splits[-1] else published[:0]
            rows += _sweep_rows(stored, sweep, means[means["split"] == split], split, lines)
    return pd.DataFrame(rows, columns=SWEEP_COLUMNS)


def point_scores(
    means: pd.DataFrame, models: Sequence[str], metrics: Sequence[Metric]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a point: of each case, and of each repeat.

    Args:
        models: the repeats.

    Returns:
        Mean over repeats with the columns case and one per metric, and mean over cases with setting in place of case;
        both over the cases that all repeats have.
    """
    part = means[means["setting"].isin(models)]
    shared = part[part.groupby("case")["setting"].transform("nunique") == len(models)]
    columns = [metric.name for metric in metrics]
    return shared.groupby("case")[columns].mean().reset_index(), shared.groupby("setting")[columns].mean().reset_index()


def _summary_row(stored: Stored, means: pd.DataFrame, model: str, split: str) -> dict[str, Any]:
    own, first = _part(means, model, split), _part(stored.counted, model, split)
    row = {"model": model, "split": split, "cases": len(own)}
    row |= {"both_empty": int(first["value"].isna().sum()), "unannotated": len(own) * len(stored.labels) - len(first)}
    baseline = stored.definition.baseline
    changes = None if baseline is None else differences(own, _part(means, baseline, split), stored.metrics)
    for metric in stored.metrics:
        name = metric.name
        low, high = mean_interval(own[name], groups_of(stored, own["case"]))
        found = {"mean": own[name].mean(), "sd": own[name].std(), "low": low, "high": high}
        if changes is not None:
            found |= {
                "difference": changes[name].mean(),
                "p": paired_p(changes[name], groups_of(stored, changes["case"])),
            }
        row |= {f"{metric.key}_{kind}": value for kind, value in found.items()}
    return row


def _of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[table["split"] == split]


def _part(table: pd.DataFrame, model: str, split: str) -> pd.DataFrame:
    return table[(table["setting"] == model) & (table["split"] == split)]


def _sweep_rows(
    stored: Stored, sweep: Sweep, means: pd.DataFrame, split: str, published: pd.DataFrame
) -> list[dict[str, Any]]:
    metrics = stored.metrics
    points = {point: point_scores(means, models, metrics) for point, models in sweep.points.items()}
    first, _ = next(iter(points.values()))
    values = published.set_index(["row", "metric"])["value"].to_dict()
    rows = []
    for metric in (metric.name for metric in metrics):
        for point, (cases, repeats) in points.items():
            row = {"sweep": sweep.name, "title": sweep.title, "split": split, "metric": metric, "point": point}
            row |= {"models": " ".join(sweep.points[point]), "repeats": len(sweep.points[point]), "cases": len(cases)}
            row |= _own(cases[metric], repeats[metric], groups_of(stored, cases["case"]))
            if point != next(iter(points)):
                changes = differences(cases, first, metrics)
                row |= _against_first(changes[metric], groups_of(stored, changes["case"]))
            row["published"] = values.get((point, metric), float("nan"))
            row["published_difference"] = row["mean"] - row["published"]
            rows.append(row)
    corrected = holm([row.get("p", float("nan")) for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def _own(cases: pd.Series, repeats: pd.Series, groups: pd.Series | None) -> dict[str, float]:
    low, high = mean_interval(cases, groups)
    return {"mean": cases.mean(), "low": low, "high": high, "repeat_sd": repeats.std()}


def _against_first(changes: pd.Series, groups: pd.Series | None) -> dict[str, float]:
    low, high = mean_interval(changes, groups)
    p = paired_p(changes, groups)
    return {"difference": changes.mean(), "difference_low": low, "difference_high": high, "p": p}
