"""The tables of a classification study: full numbers by name, and how they are shown."""

from __future__ import annotations

from functools import partial

import pandas as pd

from megavoxel.reporting.classification import statistics
from megavoxel.reporting.stored import StoredClassification
from megavoxel.reporting.tables import (
    NO_PUBLISHED,
    Column,
    number,
    p_value,
    rounded,
    show,
    signed,
    signed_with_interval,
    three_digits,
    with_interval,
)
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


def show_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics of each cell and ensemble; columns that say nothing are left out."""
    keys = {key: f"{key} {key}_low {key}_high" for key in METRICS}
    metrics = [Column(f"{metric.shown} [95 %]", keys[key], with_interval) for key, metric in METRICS.items()]
    compared = table["accuracy_difference"].notna().any()
    return show(
        table,
        [
            Column("Setting", "row"),
            Column("Split", "split"),
            Column("Repeats", "repeats"),
            Column("Images", "images"),
            *metrics,
            Column("SD of repeats (accuracy)", "accuracy_repeat_sd", rounded, optional=True),
            Column("Accuracy − baseline", "accuracy_difference", signed, optional=True),
            *([Column("p (Holm)", "accuracy_p_holm", p_value)] if compared else []),
        ],
    )


def show_distributed(table: pd.DataFrame) -> pd.DataFrame:
    """Serial beside distributed training, or the sentence that there is nothing to compare."""
    if table.empty:
        return pd.DataFrame({"Serial and distributed": [NO_DISTRIBUTED]})
    known = table[["published_serial", "published_distributed"]].notna().any(axis=None)
    published = [Column(f"Published {way}", f"published_{way}", rounded) for way in ("serial", "distributed")]
    return show(
        table,
        [
            Column("Network", "network"),
            Column("Resolution", "resolution"),
            Column("Images per class", "images_per_class", _or_all),
            Column("Workers", "workers"),
            Column("Data", "partition"),
            Column("Learning rate", "learning_rate", partial(number, form=".2g")),
            Column("Serial", "serial", rounded),
            Column("Distributed", "distributed", rounded),
            Column("Difference [95 %]", "difference low high", signed_with_interval),
            Column("p (Holm)", "p_holm", p_value),
            *(published if known else []),
        ],
    )


def show_cost(table: pd.DataFrame) -> pd.DataFrame:
    """What a run of each cell is and what it cost."""
    return show(
        table,
        [
            Column("Setting", "cell"),
            Column("Resolution", "resolution"),
            Column("Images per class", "images_per_class", _or_all),
            Column("Workers", "workers"),
            Column("Batch per worker", "batch"),
            Column("Epochs", "epochs"),
            Column("Parameters", "parameters", partial(number, form=",d")),
            Column("Published weights", "published_weights"),
            Column("Runs", "runs"),
            Column("Training (s)", "seconds", three_digits),
            Column("ms per image", "ms_per_image", three_digits),
            Column("The same, forecast", "forecast_ms_per_image", three_digits),
            Column("Peak of a worker, tensors (GiB)", "peak_gib", rounded),
            Column("The same, forecast (GiB)", "forecast_gib", rounded),
            Column("Peak of a process or GPU (GiB)", "process_gib", rounded),
        ],
    )


def show_confusion(table: pd.DataFrame) -> pd.DataFrame:
    """A line per row, split and class; a column per predicted class."""
    wide = table.pivot_table(index=["row", "split", "class"], columns="predicted", values="images", sort=False)
    heads = {"row": "Setting", "split": "Split", "class": "Class"}
    return wide.astype(int).astype(str).reset_index().rename(columns=heads).rename_axis(columns=None)


def show_published(table: pd.DataFrame) -> pd.DataFrame:
    """Published beside measured numbers, or the sentence that there are none."""
    if table.empty:
        return pd.DataFrame({"Published": [NO_PUBLISHED]})
    return show(
        table,
        [
            Column("Table", "table"),
            Column("Setting", "row"),
            Column("Metric", "metric"),
            Column("Published", "published", rounded),
            Column("Measured", "measured", rounded),
            Column("Difference", "difference", signed),
            Column("Source", "source"),
        ],
    )


SHOWN = {
    "summary": show_summary,
    "distributed": show_distributed,
    "cost": show_cost,
    "confusion": show_confusion,
    "published": show_published,
}


def _or_all(count: float | None) -> str:
    return "all" if pd.isna(count) else f"{count:.0f}"
