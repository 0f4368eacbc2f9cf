"""The numbers behind the tables, as data frames with plain numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from megavoxel.errors import UserError
from megavoxel.reporting.stored import Stored

PUBLISHED_COLUMNS = ["table", "row", "metric", "value", "source"]


def case_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over labels of each case: columns setting, split, fold, case, DSC, NSD; NaN values are left out."""
    index = ["setting", "split", "fold", "case"]
    means = scores.groupby([*index, "metric"], sort=True)["value"].mean().unstack("metric")
    return means.reindex(columns=["DSC", "NSD"]).reset_index()


def summary(stored: Stored) -> pd.DataFrame:
    """Per model and split: cases, values where both maps are empty, mean and SD over cases, difference to the baseline.

    The mean over labels is taken first, within each case. SD is that of a sample (n - 1). The difference is the mean
    over the cases that the model and the baseline share of one minus the other.
    """
    means = case_means(stored.scores)
    rows = []
    for split in stored.splits:
        for model in stored.definition.models:
            own = _part(means, model, split)
            lines = _part(stored.scores, model, split)
            row = {"model": model, "split": split, "cases": len(own)}
            row["both_empty"] = int(lines[lines["metric"] == "DSC"]["value"].isna().sum())
            for metric in ("DSC", "NSD"):
                row |= {f"{metric.lower()}_mean": own[metric].mean(), f"{metric.lower()}_sd": own[metric].std()}
            baseline = stored.definition.baseline
            if baseline is not None:
                row |= _differences(own, _part(means, baseline, split))
            rows.append(row)
    columns = ["model", "split", "cases", "both_empty", "dsc_mean", "dsc_sd", "nsd_mean", "nsd_sd"]
    return pd.DataFrame(rows, columns=[*columns, "dsc_difference", "nsd_difference"])


def labels(stored: Stored) -> pd.DataFrame:
    """Per model, split and label: values, values where both maps are empty, mean and SD over cases, tolerance in mm."""
    groups = stored.scores.groupby(["setting", "split", "label", "metric"])["value"]
    table = groups.agg(["count", "size", "mean", "std"]).unstack("metric")
    rows = []
    for split in stored.splits:
        for label in stored.labels:
            for model in stored.definition.models:
                if (model, split, label) not in table.index:
                    continue
                found = table.loc[(model, split, label)]
                count, size = int(found["count", "DSC"]), int(found["size", "DSC"])
                row = {"split": split, "label": label, "model": model, "values": count, "both_empty": size - count}
                for metric in ("DSC", "NSD"):
                    row[f"{metric.lower()}_mean"] = found["mean", metric]
                    row[f"{metric.lower()}_sd"] = found["std", metric]
                rows.append({**row, "tolerance_mm": stored.tolerances.get(label)})
    columns = ["split", "label", "model", "values", "both_empty", "dsc_mean", "dsc_sd", "nsd_mean", "nsd_sd"]
    return pd.DataFrame(rows, columns=[*columns, "tolerance_mm"])


def cost(stored: Stored) -> pd.DataFrame:
    """Per setting: patch, batch, parameters, epochs, folds, training hours of all folds, largest peak memory in MiB."""
    rows = []
    for setting, plan in stored.plans.items():
        histories = stored.histories[setting].values()
        manifests = stored.manifests[setting].values()
        parameters = {manifest["parameters"] for manifest in manifests if "parameters" in manifest}
        rows.append(
            {
                "setting": setting,
                "patch": "x".join(map(str, plan.patch)),
                "batch": plan.batch,
                "parameters": max(parameters, default=None),
                "epochs": plan.training.epochs,
                "folds": len(stored.histories[setting]),
                "hours": sum(history["seconds"].sum() for history in histories) / 3600,
                "peak_memory_mib": max(history["peak_memory_mib"].max() for history in histories),
            }
        )
    return pd.DataFrame(rows).astype({"parameters": "Int64"})


def published(stored: Stored, path: Path | None) -> pd.DataFrame:
    """Published values beside the measured means; empty where there is no file.

    A line's `row` is the name of a model, and its `metric` is `DSC` or `NSD` (mean over labels and cases), or one of
    them followed by a label (`DSC liver`). Measured is the test split where it is scored, else validation; it stays
    empty where the study has no such model or metric.

    Raises:
        UserError: the file has other columns, or a value that is no number.
    """
    columns = ["table", "row", "metric", "published", "measured", "difference", "split", "source"]
    if path is None:
        return pd.DataFrame(columns=columns)
    table = _read_published(path).rename(columns={"value": "published"})
    split = stored.splits[-1]
    measured = _measured(stored, split)
    keys = zip(table["row"], table["metric"], strict=True)
    table["measured"] = pd.Series([measured.get(key) for key in keys], index=table.index, dtype=float)
    table["difference"] = table["measured"] - table["published"]
    table["split"] = split
    return table[columns]


def _part(table: pd.DataFrame, model: str, split: str) -> pd.DataFrame:
    return table[(table["setting"] == model) & (table["split"] == split)]


def _differences(own: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float]:
    both = own.merge(baseline, on="case", suffixes=("", "_baseline"))
    return {
        f"{metric.lower()}_difference": (both[metric] - both[f"{metric}_baseline"]).mean() for metric in ("DSC", "NSD")
    }


def _measured(stored: Stored, split: str) -> dict[tuple[str, str], float]:
    over_labels, per_label = summary(stored), labels(stored)
    values = {}
    for metric in ("DSC", "NSD"):
        column = f"{metric.lower()}_mean"
        for row in over_labels[over_labels["split"] == split].to_dict("records"):
            values[row["model"], metric] = row[column]
        for row in per_label[per_label["split"] == split].to_dict("records"):
            values[row["model"], f"{metric} {row['label']}"] = row[column]
    return values


def _read_published(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise UserError(f"{path}: published numbers cannot be read ({fault})") from None
    if list(table.columns) != PUBLISHED_COLUMNS:
        raise UserError(f"{path}: the columns are {','.join(table.columns)}; expected {','.join(PUBLISHED_COLUMNS)}")
    numbers = pd.to_numeric(table["value"], errors="coerce")
    wrong = table.index[numbers.isna()]
    if len(wrong):
        raise UserError(f"{path}: line {wrong[0] + 2}: value '{table['value'][wrong[0]]}' is not a number")
    return table.assign(value=numbers)
