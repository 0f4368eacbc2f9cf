"""The tables of a classification study as a reader sees them, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from megavoxel.files import atomic_path, write_text
from megavoxel.reporting.classification import statistics
from megavoxel.reporting.classification.stored import StoredClassification
from megavoxel.reporting.tables import NO_PUBLISHED, NONE, SMALLEST_P, latex, markdown
from megavoxel.tasks.classification.metrics import METRICS

TITLES = {
    "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro F1", "auroc": "AUROC",
    "ece": "ECE",
}  # fmt: skip
NO_DISTRIBUTED = "No distributed setting of this study has a serial one of the same network, resolution and images."


def write_tables(stored: StoredClassification, published: pd.DataFrame, folder: Path) -> dict[str, pd.DataFrame]:
    """Writes `NAME.csv` with full numbers, `NAME.md` and `NAME.tex` with rounded ones; returns those with full numbers.

    Args:
        stored: the study.
        published: as `read_published_accuracy` gives them.
        folder: report/tables.
    """
    numbers = statistics.summary(stored)
    tables = {
        "summary": numbers,
        "distributed": statistics.distributed(stored, published),
        "cost": statistics.cost(stored),
        "confusion": statistics.confusions(stored),
        "published": statistics.published_table(stored, published, numbers),
    }
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
        write_text(folder / f"{name}.md", markdown(shown(name, table)))
        write_text(folder / f"{name}.tex", latex(shown(name, table)))
    return tables


def shown(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table with rounded numbers; columns that say nothing are left out."""
    return {
        "summary": _summary, "distributed": _distributed, "cost": _cost, "confusion": _confusion,
        "published": _published,
    }[name](table)  # fmt: skip


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    found = pd.DataFrame({"Setting": table["row"], "Split": table["split"]})
    found["Repeats"], found["Images"] = table["repeats"].astype(str), table["images"].astype(str)
    for metric in METRICS:
        found[f"{TITLES[metric]} [95 %]"] = _with_interval(table, metric, f"{metric}_low", f"{metric}_high")
    found["SD of repeats (accuracy)"] = table["accuracy_repeat_sd"].map(_number)
    found["Accuracy − baseline"] = table["accuracy_difference"].map(_signed)
    found["p (Holm)"] = table["accuracy_p_holm"].map(_p)
    silent = {
        "accuracy_repeat_sd": ["SD of repeats (accuracy)"],
        "accuracy_difference": ["Accuracy − baseline", "p (Holm)"],
    }
    return found.drop(columns=[name for key, names in silent.items() if table[key].isna().all() for name in names])


def _distributed(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return pd.DataFrame({"Serial and distributed": [NO_DISTRIBUTED]})
    found = pd.DataFrame(
        {
            "Network": table["network"],
            "Resolution": table["resolution"].astype(str),
            "Images per class": table["images_per_class"].map(_or_all),
            "Workers": table["workers"].astype(str),
            "Data": table["partition"],
            "Learning rate": table["learning_rate"].map(lambda value: f"{value:.2g}"),
            "Serial": table["serial"].map(_number),
            "Distributed": table["distributed"].map(_number),
            "Difference [95 %]": _with_interval(table, "difference", "low", "high", _signed),
            "p (Holm)": table["p_holm"].map(_p),
            "Published serial": table["published_serial"].map(_number),
            "Published distributed": table["published_distributed"].map(_number),
        }
    )
    known = table[["published_serial", "published_distributed"]].notna().any(axis=None)
    return found if known else found.drop(columns=["Published serial", "Published distributed"])


def _cost(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Setting": table["cell"],
            "Resolution": table["resolution"].astype(str),
            "Images per class": table["images_per_class"].map(_or_all),
            "Workers": table["workers"].astype(str),
            "Batch per worker": table["batch"].astype(str),
            "Epochs": table["epochs"].astype(str),
            "Parameters": table["parameters"].map(lambda value: f"{value:,d}"),
            "Published weights": table["published_weights"],
            "Runs": table["runs"].astype(str),
            "Training (s)": table["seconds"].map(lambda value: f"{value:.3g}"),
            "ms per image": table["ms_per_image"].map(_three_digits),
            "The same, forecast": table["forecast_ms_per_image"].map(_three_digits),
            "Peak of a worker, tensors (GiB)": table["peak_gib"].map(_number),
            "The same, forecast (GiB)": table["forecast_gib"].map(_number),
            "Peak of a process or GPU (GiB)": table["process_gib"].map(_number),
        }
    )


def _confusion(table: pd.DataFrame) -> pd.DataFrame:
    """A line per row, split and class; a column per predicted class."""
    wide = table.pivot_table(index=["row", "split", "class"], columns="predicted", values="images", sort=False)
    wide = (
        wide.astype(int)
        .astype(str)
        .reset_index()
        .rename(columns={"row": "Setting", "split": "Split", "class": "Class"})
    )
    return wide.rename_axis(columns=None)


def _published(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return pd.DataFrame({"Published": [NO_PUBLISHED]})
    return pd.DataFrame(
        {
            "Table": table["table"],
            "Setting": table["row"],
            "Metric": table["metric"],
            "Published": table["published"].map(_number),
            "Measured": table["measured"].map(_number),
            "Difference": table["difference"].map(_signed),
            "Source": table["source"],
        }
    )


def _with_interval(table: pd.DataFrame, mean: str, low: str, high: str, show: object = None) -> list[str]:
    show = show or _number
    return [
        f"{show(own)} [{show(least)}, {show(most)}]" if not np.isnan(least) else show(own)
        for own, least, most in zip(table[mean], table[low], table[high], strict=True)
    ]


def _number(value: float) -> str:
    return NONE if pd.isna(value) else f"{value:.3f}"


def _three_digits(value: float) -> str:
    return NONE if pd.isna(value) else f"{value:.3g}"


def _signed(value: float) -> str:
    return NONE if pd.isna(value) else f"{value:+.3f}"


def _or_all(value: object) -> str:
    return "all" if pd.isna(value) else f"{value:.0f}"


def _p(value: float) -> str:
    if pd.isna(value):
        return NONE
    return f"< {SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"
