"""The tables of a classification study: full numbers by name, and how they are shown."""

from __future__ import annotations

from functools import partial

import pandas as pd

from megavoxel.reporting import tables
from megavoxel.reporting.classification import statistics
from megavoxel.reporting.stored import StoredClassification
from megavoxel.reporting.tables import (
    number,
    p_value,
    rounded,
    show,
    signed,
    signed_with_interval,
    three_digits,
    with_interval,
)  # fmt: skip
from megavoxel.tasks.classification.metrics import METRICS

NO_DISTRIBUTED = "No distributed setting of this study has a serial one of the same network, resolution and images."


def numbers(stored: StoredClassification, published: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All tables by name, with full numbers.

    Args:
        stored: the study.
        published: as `megavoxel.reporting.published.read_published` gives them.
    """
    summary = statistics.summary(stored)
    return {
        "summary": summary,
        "distributed": statistics.distributed(stored, published),
        "cost": statistics.cost(stored),
        "confusion": statistics.confusions(stored),
        "published": statistics.published_table(stored, published, summary),
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
        "Workers": "workers", "Batch per worker": "batch", "Epochs": "epochs",
        "Parameters": ("parameters", partial(number, form=",d")), "Published weights": "published_weights",
        "Runs": "runs", "Training (s)": ("seconds", three_digits), "ms per image": ("ms_per_image", three_digits),
        "The same, forecast": ("forecast_ms_per_image", three_digits),
        "Peak of a worker, tensors (GiB)": ("peak_gib", rounded), "The same, forecast (GiB)": ("forecast_gib", rounded),
        "Peak of a process or GPU (GiB)": ("process_gib", rounded),
    }  # fmt: skip
    return show(table, columns)


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
