"""The tables of a classification study: full numbers by name, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.reporting import tables
from megavoxel.reporting.cells import (
    evenly,
    number,
    p_value,
    rounded,
    show,
    signed,
    signed_with_interval,
    with_interval,
)  # fmt: skip
from megavoxel.reporting.statistics import holm, mean_interval, paired_p
from megavoxel.reporting.stored import Predictions, StoredClassification
from megavoxel.tasks.classification.metrics import METRICS, confusion, intervals, values

ACCURACY = "accuracy"
KEYS = ("network", "resolution", "images_per_class", "workers", "data_partition")
FORECAST_KEYS = ("network", "resolution", "images_per_class", "workers", "batch")
"""What a line of plan.tsv and a plan agree in, if the one was made for the other."""
MIB_PER_GIB = 1024
COLUMNS = [
    "network", "resolution", "images_per_class", "workers", "partition", "learning_rate", "repeats", "images", "serial",
    "distributed", "difference", "low", "high", "p", "p_holm", "published_serial", "published_distributed",
]  # fmt: skip


def summary(stored: StoredClassification) -> pd.DataFrame:
    """Per cell or ensemble and split: its keys, repeats, images, and of each metric the mean over repeats, the 95 %
    bootstrap interval over patients, and the standard deviation (n - 1) of the repeats.

    The difference in accuracy to the baseline is over the images that both have, of each image's mean over repeats; p
    is that of Wilcoxon's signed-rank test over its means by patient, corrected by Holm's method for the rows of a
    split.
    """
    rows = []
    for split in stored.splits:
        own = [_summary_row(stored, name, split) for name in stored.definition.rows]
        for row, p in zip(own, holm([row["accuracy_p"] for row in own]), strict=True):
            rows.append(row | {"accuracy_p_holm": p})
    return pd.DataFrame(rows)


def distributed(stored: StoredClassification, published: pd.DataFrame) -> pd.DataFrame:
    """Table 2 of Pandit et al. (2021): serial training beside each distributed one of the same network, resolution and
    number of images, in accuracy on the split that is reported last; p as in `summary`, corrected for all rows."""
    split, cells = stored.splits[-1], list(stored.definition.cells)
    known = published_by_cell(published)
    rows = []
    for name in cells:
        plan = stored.cell_plan(name)
        if plan.workers == 1:
            continue
        serial = next((other for other in cells if _is_serial_of(stored, other, name)), None)
        if serial is None:
            continue
        own, other = correct(stored, name, split), correct(stored, serial, split)
        changes = (own - other).dropna()
        patients = patients_of(stored, name, split)[changes.index]
        low, high = mean_interval(changes, patients)
        rows.append(
            {key: getattr(plan, key) for key in ("network", "resolution", "images_per_class", "workers")}
            | {
                "partition": plan.data_partition,
                "learning_rate": plan.learning_rate,
                "repeats": len(stored.definition.cells[name]),
                "images": len(changes),
                "serial": other.mean(),
                "distributed": own.mean(),
                "difference": changes.mean(),
                "low": low,
                "high": high,
                "p": paired_p(changes, patients),
                "published_serial": known.get((serial, ACCURACY), np.nan),
                "published_distributed": known.get((name, ACCURACY), np.nan),
            }
        )
    corrected = holm([row["p"] for row in rows])
    return pd.DataFrame([row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)], columns=COLUMNS)


def cost(stored: StoredClassification) -> pd.DataFrame:
    """Per cell: what a run is and what it cost, means over repeats and folds.

    `seconds` is a run's training, `ms_per_image` that by images that all workers were shown. `peak_gib` is the most
    that PyTorch allocated for tensors on one worker, the largest of all runs; `forecast_gib` the same, forecast.
    `forecast_ms_per_image` is that of plan.tsv, for the device that the study names; NaN without that file, or where it
    was made for another plan.
    """
    rows = []
    for name, settings in stored.definition.cells.items():
        plan = stored.cell_plan(name)
        manifests = [manifest for setting in settings for manifest in stored.manifests[setting].values()]
        seconds = [manifest["seconds"] for manifest in manifests]
        shown = [manifest["epochs"] * _images(manifest) for manifest in manifests]
        rows.append(
            {"cell": name}
            | {key: getattr(plan, key) for key in KEYS}
            | {
                "batch": plan.batch,
                "learning_rate": plan.learning_rate,
                "chosen_rates": _chosen(manifests),
                "epochs": plan.training.epochs,
                "parameters": manifests[0]["parameters"],
                "published_weights": "yes" if plan.pretrained else "no",
                "runs": len(manifests),
                "seconds": float(np.mean(seconds)),
                "ms_per_image": 1000 * float(np.mean(np.array(seconds) / np.array(shown))),
                "forecast_ms_per_image": _forecast_ms(stored, settings[0]),
                "peak_gib": max(manifest["peak_memory"].get("gib", np.nan) for manifest in manifests),
                "forecast_gib": max(manifest["peak_memory"]["forecast_gib"] for manifest in manifests),
                "process_gib": max(manifest["peak_memory_mib"] for manifest in manifests) / MIB_PER_GIB,
            }
        )
    return pd.DataFrame(rows)


def _chosen(manifests: Sequence[Mapping[str, Any]]) -> str | None:
    """The learning rates that searches have found, of each run; None: there was no search."""
    searches = [manifest.get("search") for manifest in manifests]
    return ", ".join(f"{found['learning_rate']:g}" for found in searches) if all(searches) else None


def confusions(stored: StoredClassification) -> pd.DataFrame:
    """Images by row of the summary, split, class and predicted class; those of several repeats added up."""
    rows = []
    for name in stored.definition.rows:
        for split in stored.splits:
            total = sum(_confusion(own) for own in stored.repeats(name, split))
            for true, line in zip(stored.classes, total, strict=True):
                rows += [
                    {"row": name, "split": split, "class": true, "predicted": found, "images": round(count)}
                    for found, count in zip(stored.classes, line, strict=True)
                ]
    return pd.DataFrame(rows)


def published_table(stored: StoredClassification, published: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """Published values beside the measured ones of the split that is reported last.

    Args:
        numbers: as `summary` gives them.
    """
    own = numbers[numbers["split"] == stored.splits[-1]].set_index("row")
    table = published.rename(columns={"value": "published"})
    table["measured"] = [
        own[row.metric].get(row.row, np.nan) if row.metric in own else np.nan for row in table.itertuples()
    ]
    table["difference"] = table["measured"] - table["published"]
    return table[["table", "row", "metric", "published", "measured", "difference", "source"]]


def correct(stored: StoredClassification, row: str, split: str) -> pd.Series:
    """Share of a row's repeats that classify an image rightly, by image."""
    found = [_correct(own) for own in stored.repeats(row, split)]
    return pd.concat(found, axis=1).mean(axis=1)


def patients_of(stored: StoredClassification, row: str, split: str) -> pd.Series:
    """The patient of each image of a row, by the image's name."""
    own = stored.repeats(row, split)[0]
    return pd.Series(own.patients, index=own.names)


def published_by_cell(published: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Published values by row and metric."""
    return published.set_index(["row", "metric"])["value"].to_dict()


def repeat_values(stored: StoredClassification, row: str, split: str) -> list[dict[str, float]]:
    """The metrics of each repeat of a row."""
    return [values(own.target, own.probabilities) for own in stored.repeats(row, split)]


def _summary_row(stored: StoredClassification, name: str, split: str) -> dict[str, object]:
    found = stored.repeats(name, split)
    repeats = pd.DataFrame(repeat_values(stored, name, split))
    ends = intervals(found[0].target, [own.probabilities for own in found], found[0].patients)
    row: dict[str, object] = {"row": name, "split": split}
    row |= _keys(stored, name) | {"repeats": len(found), "images": len(found[0].names)}
    for metric in METRICS:
        row |= {metric: repeats[metric].mean(), f"{metric}_low": ends[metric][0], f"{metric}_high": ends[metric][1]}
        row[f"{metric}_repeat_sd"] = repeats[metric].std()
    return row | _against_baseline(stored, name, split)


def _keys(stored: StoredClassification, name: str) -> dict[str, object]:
    if name not in stored.definition.cells:
        return dict.fromkeys(KEYS)
    plan = stored.cell_plan(name)
    return {key: getattr(plan, key) for key in KEYS}


def _against_baseline(stored: StoredClassification, name: str, split: str) -> dict[str, float]:
    baseline = stored.definition.baseline
    if baseline in (None, name):
        return {"accuracy_difference": np.nan, "accuracy_p": np.nan}
    changes = (correct(stored, name, split) - correct(stored, baseline, split)).dropna()
    patients = patients_of(stored, name, split)[changes.index]
    return {"accuracy_difference": changes.mean(), "accuracy_p": paired_p(changes, patients)}


def _is_serial_of(stored: StoredClassification, other: str, name: str) -> bool:
    """Whether a cell is the serial training that another one is to be compared with."""
    one, two = stored.cell_plan(other), stored.cell_plan(name)
    same = ("network", "resolution", "images_per_class", "pretrained")
    return one.workers == 1 and all(getattr(one, key) == getattr(two, key) for key in same)


def _forecast_ms(stored: StoredClassification, setting: str) -> float:
    """Forecast milliseconds by images that all workers are shown: those of plan.tsv are of each worker's own.

    NaN where plan.tsv has no line of the setting, or one that was made for another plan of it.
    """
    if setting not in stored.forecast.index:
        return np.nan
    row, plan = stored.forecast.loc[setting], stored.plans[setting]
    wanted = {key: getattr(plan, key) for key in FORECAST_KEYS}
    if any(row.get(key) != value and not (pd.isna(row.get(key)) and value is None) for key, value in wanted.items()):
        return np.nan
    return 1000 * float(row.get("seconds_per_image", np.nan)) / plan.workers


def _images(manifest: dict) -> int:
    shares: Sequence[Sequence[str]] = manifest["data"]["shares"]
    return sum(map(len, shares))


def _correct(own: Predictions) -> pd.Series:
    return pd.Series(own.probabilities.argmax(axis=1) == own.target, index=own.names, dtype=float)


def _confusion(own: Predictions) -> np.ndarray:
    return confusion(own.target, own.probabilities, np.ones(len(own.target)))


NO_DISTRIBUTED = "No distributed setting of this study has a serial one of the same network, resolution and images."


def numbers(stored: StoredClassification, published: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All tables by name, with full numbers."""
    summarised = summary(stored)
    return {
        "summary": summarised,
        "distributed": distributed(stored, published),
        "cost": cost(stored),
        "confusion": confusions(stored),
        "published": published_table(stored, published, summarised),
    }


def _or_all(count: float | None) -> str:
    return "all" if pd.isna(count) else f"{count:.0f}"


def show_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics of each cell and ensemble; columns that say nothing are left out."""
    metrics = {
        f"{metric.shown} [95 %]": (f"{key} {key}_low {key}_high", with_interval) for key, metric in METRICS.items()
    }
    difference = {"Accuracy − baseline": ("accuracy_difference", signed), "p (Holm)": ("accuracy_p_holm", p_value)}
    columns = {
        "Setting": "row", "Split": "split", "Repeats": "repeats", "Images": "images", **metrics,
        "SD of repeats (accuracy)": ("accuracy_repeat_sd", rounded),
        **(difference if table["accuracy_difference"].notna().any() else {}),
    }  # fmt: skip
    return show(table, columns, optional=["SD of repeats (accuracy)"])


def show_distributed(table: pd.DataFrame) -> pd.DataFrame:
    """Serial beside distributed training, or the sentence that there is nothing to compare."""
    if table.empty:
        return pd.DataFrame({"Serial and distributed": [NO_DISTRIBUTED]})
    known = table[["published_serial", "published_distributed"]].notna().any(axis=None)
    published = {f"Published {way}": (f"published_{way}", rounded) for way in ("serial", "distributed")}
    columns = {
        "Network": "network", "Resolution": "resolution", "Images per class": ("images_per_class", _or_all),
        "Workers": "workers", "Data": "partition", "Learning rate": ("learning_rate", partial(number, form=".2g")),
        "Serial": ("serial", rounded), "Distributed": ("distributed", rounded),
        "Difference [95 %]": ("difference low high", signed_with_interval), "p (Holm)": ("p_holm", p_value),
        **(published if known else {}),
    }  # fmt: skip
    return show(table, columns)


def show_cost(table: pd.DataFrame) -> pd.DataFrame:
    """The training of each cell and its cost."""
    columns = {
        "Setting": "cell", "Resolution": "resolution", "Images per class": ("images_per_class", _or_all),
        "Workers": "workers", "Batch per worker": "batch", "Rates found by search": "chosen_rates", "Epochs": "epochs",
        "Parameters": ("parameters", partial(number, form=",d")), "Published weights": "published_weights",
        "Runs": "runs", "Training (s)": ("seconds", evenly(table["seconds"])),
        "ms per image": ("ms_per_image", evenly(table["ms_per_image"])),
        "The same, forecast": ("forecast_ms_per_image", evenly(table["forecast_ms_per_image"])),
        "Peak of a worker, tensors (GiB)": ("peak_gib", rounded), "The same, forecast (GiB)": ("forecast_gib", rounded),
        "Peak of a process or GPU (GiB)": ("process_gib", rounded),
    }  # fmt: skip
    return show(table, columns, optional=["Rates found by search"])


def show_confusion(table: pd.DataFrame) -> pd.DataFrame:
    """A line per row, split and class; a column per predicted class."""
    wide = table.pivot_table(index=["row", "split", "class"], columns="predicted", values="images", sort=False)
    heads = {"row": "Setting", "split": "Split", "class": "Class"}
    return wide.astype(int).astype(str).reset_index().rename(columns=heads).rename_axis(columns=None)


def show_published(table: pd.DataFrame) -> pd.DataFrame:
    """Published beside measured numbers, or the sentence that there are none."""
    return tables.show_published(table, rounded).rename(columns={"Row": "Setting"})


SHOWN = {
    "summary": show_summary,
    "distributed": show_distributed,
    "cost": show_cost,
    "confusion": show_confusion,
    "published": show_published,
}
