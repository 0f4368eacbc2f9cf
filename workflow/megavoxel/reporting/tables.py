"""The tables as a reader sees them, and their files: CSV with full numbers, Markdown and LaTeX with rounded ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from megavoxel.csv_files import write_csv
from megavoxel.evaluation.metrics import METRICS, Metric
from megavoxel.files import write_text
from megavoxel.reporting import statistics
from megavoxel.reporting.best import best_table
from megavoxel.reporting.cells import (
    NONE,
    evenly,
    four_digits,
    interval,
    number,
    p_value,
    rounded,
    show,
    signed,
    signed_with_interval,
    with_interval,
    with_sd,
)
from megavoxel.reporting.confidence import Judged, confidence_table, reliability_table
from megavoxel.reporting.costs import PEAK, own_peaks, time_table, with_peaks
from megavoxel.reporting.lesions import SIZES_ML, counts_components, lesion_table
from megavoxel.reporting.published import published_table
from megavoxel.reporting.ranking import ranking_table
from megavoxel.reporting.statistics import sweep_table
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.subgroups import subgroup_table

NO_PUBLISHED = "There are no published numbers for this study."
NO_BASELINE = "This study names no baseline to hold the others against."
NO_VALIDATION = "This study validates no cases."
NO_RANKING = "Fewer than two models are scored on the same cases."
NO_SUBGROUPS = "The dataset file names no table of subgroups."
NO_CONFIDENCE = "Nothing is predicted yet."
NO_LESIONS = "There is no component in any map."
NO_SWEEPS = "This study has no sweeps."
NO_TIMINGS = "No inference of this study was timed."
MODELS = {"summary": "model", "labels": "model", "sweeps": "models", "cost": "setting", "inference_time": "setting"}
"""The column of a table that names the models of a row, with spaces between them; such tables state peak memory."""
PEAK_HEADS = {"peak_gib": "Peak, measured (GiB)", "forecast_gib": "Peak, forecast (GiB)"}
MIB_PER_GIB = 1024
LEAST_SHARE = 0.005
"""Smallest share of samples that is shown of a rank."""


def write_tables(
    numbers: Mapping[str, pd.DataFrame], showing: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]], folder: Path
) -> dict[str, pd.DataFrame]:
    """Writes `NAME.csv`, `NAME.md` and `NAME.tex` of every table to `folder`; returns what Markdown and LaTeX show.

    Args:
        numbers: tables with full numbers by name.
        showing: what makes texts of each, by the same names.
    """
    shown = {name: showing[name](table) for name, table in numbers.items()}
    for name, table in numbers.items():
        write_csv(folder / f"{name}.csv", table)
        write_text(folder / f"{name}.md", markdown(shown[name]))
        write_text(folder / f"{name}.tex", latex(shown[name]))
    return shown


def show_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The summary with rounded numbers; columns that say nothing are left out."""
    metrics = _metrics_of(table)
    columns: dict[str, str | tuple] = {"Model": "model", "Split": "split", "Cases": "cases"}
    for metric in metrics:
        columns[metric.head] = (f"{metric.key}_mean {metric.key}_sd", with_sd)
        columns[f"{metric.shown} 95 %"] = (f"{metric.key}_low {metric.key}_high", interval)
    for metric in metrics if table[f"{metrics[0].key}_difference"].notna().any() else ():
        difference, p = compared_heads(metric)
        columns[difference] = (f"{metric.key}_difference", signed)
        columns[p] = (f"{metric.key}_p_holm", p_value)
    return show(table, {**columns, "Both empty": "both_empty", **_unannotated(table)})


def compared_heads(metric: Metric) -> tuple[str, str]:
    """Heads of the summary's columns that compare models with the baseline."""
    return f"{metric.shown} − baseline", f"{metric.shown} p (Holm)"


def show_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison with rounded numbers, or the sentence that there is no baseline."""
    if table.empty:
        return pd.DataFrame({"Comparison": [NO_BASELINE]})
    columns = {
        "Model": "model", "Split": "split", "Metric": "metric", "Cases": "cases",
        "− baseline [95 %]": ("difference low high", signed_with_interval), "Better": "better", "Equal": "equal",
        "Worse": "worse", "p": ("p", p_value), "p (Holm)": ("p_holm", p_value),
    }  # fmt: skip
    return show(table, columns)


def show_best(table: pd.DataFrame) -> pd.DataFrame:
    """The ranking by cross-validation with rounded numbers, or the sentence that there is none."""
    if table.empty:
        return pd.DataFrame({"Best by cross-validation": [NO_VALIDATION]})
    columns = {
        "Rank": ("rank", partial(number, form="d")), "Model": "model",
        "Members": ("members", lambda names: names or NONE), "Cases": "cases",
        "Mean [95 %]": ("mean low high", with_interval),
        "− best [95 %]": ("difference difference_low difference_high", signed_with_interval), "Verdict": "verdict",
    }  # fmt: skip
    return show(table, columns)


def show_ranking(table: pd.DataFrame) -> pd.DataFrame:
    """The ranking with rounded numbers and the shares of samples in each rank, or the sentence that there is none."""
    if table.empty:
        return pd.DataFrame({"Ranking": [NO_RANKING]})
    columns = {
        "Split": "split", "Metric": "metric", "Rank": ("rank", partial(number, form="d")), "Model": "model",
        "Cases": "cases", "Mean": ("mean", rounded), "Mean rank": ("mean_rank", partial(number, form=".2f")),
        "Rank 95 %": ("rank_low rank_high", _ranks), "Verdict": "verdict",
        "Tau [95 %]": ("tau tau_low tau_high", with_interval),
    }  # fmt: skip
    shares = [column for column in table if re.fullmatch(r"rank_\d+", column)]
    columns["Shares of ranks (%)"] = (" ".join(shares), _shares)
    return show(table, columns)


def _ranks(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _shares(*shares: float) -> str:
    return ", ".join(f"{rank}: {100 * share:.0f}" for rank, share in enumerate(shares, start=1) if share >= LEAST_SHARE)


def show_subgroups(table: pd.DataFrame) -> pd.DataFrame:
    """Scores by subgroup with rounded numbers, or the sentence that there are none."""
    if table.empty:
        return pd.DataFrame({"Subgroups": [NO_SUBGROUPS]})
    columns: dict[str, str | tuple] = {
        "Column": "column", "Value": "value", "Split": "split", "Model": "model", "Cases": "cases",
    }  # fmt: skip
    for metric in _metrics_of(table):
        columns[metric.head] = (f"{metric.key}_mean {metric.key}_sd", with_sd)
        columns[f"{metric.shown} 95 %"] = (f"{metric.key}_low {metric.key}_high", interval)
    return show(table, columns)


def show_lesions(table: pd.DataFrame) -> pd.DataFrame:
    """Components by size, or the sentence that there are none."""
    if table.empty:
        return pd.DataFrame({"Lesions": [NO_LESIONS]})
    columns = {
        "Split": "split", "Label": "label", "Size (ml)": ("low", _size), "Model": "model",
        "In the reference": "referred", "Found": "found", "Found (%)": ("found referred", _percent),
        "Predicted": "predicted", "False": "false",
    }  # fmt: skip
    return show(table, columns)


def _size(low: float) -> str:
    place = SIZES_ML.index(low)
    if place == len(SIZES_ML) - 1:
        return f"{low:g} and more"
    return f"{low:g} to {SIZES_ML[place + 1]:g}" if place else f"below {SIZES_ML[1]:g}"


def _percent(part: int, whole: int) -> str:
    return number(100 * part / whole if whole else None, ".0f")


def show_confidence(table: pd.DataFrame) -> pd.DataFrame:
    """Temperatures with rounded numbers, or the sentence that there are none; columns that say nothing are left out."""
    if table.empty:
        return pd.DataFrame({"Confidence": [NO_CONFIDENCE]})
    optional = {
        "Temperature": ("temperature_low temperature_high", _span),
        "NLL with temperature": ("nll_tempered", evenly(table["nll_tempered"])),
        "Disagreement": ("disagreement", evenly(table["disagreement"])), "ρ": ("rho", partial(number, form=".2f")),
    }  # fmt: skip
    columns = {
        "Setting": "setting", "Split": "split", "Cases": "cases", "NLL": ("nll", evenly(table["nll"])), **optional
    }  # fmt: skip
    return show(table, columns, optional=list(optional))


def _span(low: float, high: float) -> str:
    texts = [number(value, ".2f") for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def show_reliability(table: pd.DataFrame) -> pd.DataFrame:
    """Calibration errors with rounded numbers, or the sentence that there are none."""
    if table.empty:
        return pd.DataFrame({"Confidence": [NO_CONFIDENCE]})
    columns = {
        "Split": "split", "Label": "label", "Setting": "setting", "Voxels": ("voxels", partial(number, form=",d")),
        "ECE": ("ece", rounded), "ECE with temperature": ("ece_tempered", rounded),
    }  # fmt: skip
    return show(table, columns, optional=["ECE with temperature"])


def show_sweeps(table: pd.DataFrame) -> pd.DataFrame:
    """The sweeps with rounded numbers, or the sentence that there are none; columns that say nothing are left out."""
    if table.empty:
        return pd.DataFrame({"Sweep": [NO_SWEEPS]})
    columns = {
        "Sweep": "title", "Split": "split", "Metric": "metric", "Point": "point", "Repeats": "repeats",
        "Cases": "cases", "Mean [95 %]": ("mean low high", with_interval), "SD of repeats": ("repeat_sd", rounded),
        "− first [95 %]": ("difference difference_low difference_high", signed_with_interval), "p": ("p", p_value),
        "p (Holm)": ("p_holm", p_value), "Published": ("published", four_digits),
        "− published": ("published_difference", signed),
    }  # fmt: skip
    if table["published"].isna().all():
        columns = {head: columns[head] for head in columns if "ublished" not in head}
    return show(table, columns, optional=["SD of repeats"])


def show_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table per label with rounded numbers."""
    scores = {metric.head: (f"{metric.key}_mean {metric.key}_sd", with_sd) for metric in _metrics_of(table)}
    columns = {"Split": "split", "Label": "label", "Model": "model", **scores}
    columns |= {"Tolerance (mm)": ("tolerance_mm", partial(number, form="g")), "Values": "values"}
    return show(table, {**columns, "Both empty": "both_empty", **_unannotated(table)})


def show_cost(table: pd.DataFrame) -> pd.DataFrame:
    """The cost of each setting beside its accuracy, with rounded numbers; without forecasts no column for them."""
    (metric,) = (metric for metric in METRICS.values() if metric.key in table)
    columns = {
        "Setting": "setting", "Patch": ("patch", lambda patch: patch.replace("x", " × ")), "Batch": "batch",
        "Parameters": ("parameters", partial(number, form=",d")), "Epochs": "epochs", "Folds": "folds",
        "Devices": "devices",
        "Training (h)": ("hours", evenly(table["hours"])),
        "Device-hours": ("device_hours", evenly(table["device_hours"])),
        "Peak of the job (GiB)": ("peak_memory_mib", lambda mib: number(mib / MIB_PER_GIB, ".2f")),
        "Forecast of the job (GiB)": ("device_forecast_gib", partial(number, form=".2f")),
        f"{metric.head} ({table['split'].iloc[0]})": (metric.key, rounded),
    }  # fmt: skip
    return show(table, columns, optional=["Forecast of the job (GiB)"])


def show_time(table: pd.DataFrame) -> pd.DataFrame:
    """Inference time with rounded numbers, or the sentence that there is none; silent columns are left out."""
    if table.empty:
        return pd.DataFrame({"Inference time": [NO_TIMINGS]})
    optional = {
        "÷ baseline": ("ratio", rounded), "Published (s)": ("published published_sd", with_sd),
        "Published ÷ baseline": ("published_ratio", rounded),
    }  # fmt: skip
    columns = {
        "Setting": "setting", "Split": "split", "Window": "window", "Cases": "cases", "Repeats": "repeats",
        "Seconds per image": ("mean sd", with_sd), **optional,
    }  # fmt: skip
    return show(table, columns, optional=list(optional))


def show_published(table: pd.DataFrame, write: Callable[[float], str] = four_digits) -> pd.DataFrame:
    """Published beside measured numbers, or the sentence that there are none.

    Args:
        write: makes texts of the values.
    """
    if table.empty:
        return pd.DataFrame({"Published": [NO_PUBLISHED]})
    columns = {
        "Table": "table", "Row": "row", "Metric": ("metric", metric_with_units), "Published": ("published", write),
        "Measured": ("measured", write), "Difference": ("difference", signed), "Split": "split", "Source": "source",
    }  # fmt: skip
    return show(table, {head: column for head, column in columns.items() if head != "Split" or "split" in table})


def metric_with_units(name: str) -> str:
    """The metric of a published line; of memory with both of its units."""
    return f"{name} (published in GB, measured in GiB)" if name == PEAK else name


def show_peaks(shown: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """A shown table with peak memory, measured and forecast, where one of its rows has it."""
    stated = {head: table[name] for name, head in PEAK_HEADS.items() if name in table and table[name].notna().any()}
    return shown.assign(**{head: peaks.map(evenly(peaks)) for head, peaks in stated.items()})


def _with_peaks_shown(write: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: show_peaks(write(table), table)


SHOWN = {
    "summary": _with_peaks_shown(show_summary),
    "comparison": show_comparison,
    "best": show_best,
    "ranking": show_ranking,
    "subgroups": show_subgroups,
    "lesions": show_lesions,
    "confidence": show_confidence,
    "reliability": show_reliability,
    "labels": _with_peaks_shown(show_labels),
    "sweeps": _with_peaks_shown(show_sweeps),
    "cost": _with_peaks_shown(show_cost),
    "inference_time": _with_peaks_shown(show_time),
    "published": _with_peaks_shown(show_published),
}


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    cells = table.astype(str).map(lambda cell: cell.replace("|", "\\|"))
    return cells.to_markdown(index=False, disable_numparse=True) + "\n"


def latex(table: pd.DataFrame) -> str:
    """A LaTeX tabular for the package booktabs."""
    style = table.style.format(escape="latex").format_index(escape="latex", axis="columns").hide(axis="index")
    text = style.to_latex(hrules=True, column_format="l" * len(table.columns))
    for symbol, command in {"±": "$\\pm$", "−": "$-$", "×": "$\\times$", "÷": "$\\div$", "–": "--", "<": "$<$"}.items():
        text = text.replace(symbol, command)
    return text


def numbers(
    stored: Stored, published: pd.DataFrame, timings: pd.DataFrame, judged: Sequence[Judged] = ()
) -> dict[str, pd.DataFrame]:
    """All tables of a segmentation study by name, with full numbers; those of `MODELS` end with the peak memory of a
    row's models.
    """
    peaks, summary = own_peaks(stored), statistics.summary(stored)
    tables = {
        "summary": summary,
        "comparison": statistics.comparison(stored, summary),
        "best": best_table(stored),
        "ranking": ranking_table(stored),
        "subgroups": subgroup_table(stored),
        "labels": statistics.labels(stored),
        "sweeps": sweep_table(stored, published),
        "cost": statistics.cost(stored),
        "inference_time": time_table(timings, published, stored.definition),
    }
    if counts_components(stored):
        tables["lesions"] = lesion_table(stored)
    if stored.definition.confidence:
        tables |= {"confidence": confidence_table(stored, judged), "reliability": reliability_table(judged)}
    peaked = {
        name: with_peaks(tables[name], tables[name][column].str.split(), peaks) for name, column in MODELS.items()
    }
    return {**tables, **peaked, "published": published_table(published, stored, tables)}


def _metrics_of(table: pd.DataFrame) -> list[Metric]:
    """The metrics that a table has means of, in its order."""
    keys = [column.removesuffix("_mean") for column in table if column.endswith("_mean")]
    return [METRICS[key] for key in keys]


def _unannotated(table: pd.DataFrame) -> dict[str, str]:
    """The column that counts labels without an annotation, where there are any."""
    return {"Unannotated": "unannotated"} if table["unannotated"].any() else {}
