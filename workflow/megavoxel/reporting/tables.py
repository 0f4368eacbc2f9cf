"""The tables as a reader sees them, and their files: CSV with full numbers, Markdown and LaTeX with rounded ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from megavoxel.files import atomic_path, write_text
from megavoxel.reporting import statistics
from megavoxel.reporting.memory import cascade_peaks, own_peaks, with_peaks
from megavoxel.reporting.published import published_table
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.sweeps import measured_points, models_of_rows, sweep_table
from megavoxel.reporting.timing import seconds_of_models, time_table

NONE = "–"
NO_PUBLISHED = "There are no published numbers for this study."
NO_BASELINE = "This study names no baseline to hold the others against."
NO_SWEEPS = "This study has no sweeps."
NO_TIMINGS = "No inference of this study was timed."
MODELS = {"summary": "model", "labels": "model", "sweeps": "models", "cost": "setting", "inference_time": "setting"}
"""The column of a table that names the models of a row, with spaces between them; such tables state peak memory."""
PEAK_HEADS = {"peak_gib": "Peak, measured (GiB)", "forecast_gib": "Peak, forecast (GiB)"}
MIB_PER_GIB = 1024
SMALLEST_P = 0.001


def write_tables(
    stored: Stored, published: pd.DataFrame, timings: pd.DataFrame, folder: Path
) -> dict[str, pd.DataFrame]:
    """Writes `NAME.csv`, `NAME.md` and `NAME.tex` of every table to `folder`; returns what Markdown and LaTeX show.

    Args:
        published: as `megavoxel.reporting.published.read_published` gives it.
        timings: as `megavoxel.reporting.timing.read_timings` gives them.
    """
    numbers = _numbers(stored, published, timings)
    shown = {name: show_peaks(SHOWN[name](table), table) for name, table in numbers.items()}
    for name, table in numbers.items():
        with atomic_path(folder / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
        write_text(folder / f"{name}.md", markdown(shown[name]))
        write_text(folder / f"{name}.tex", latex(shown[name]))
    return shown


def show_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The summary with rounded numbers; columns that say nothing are left out."""
    shown = pd.DataFrame(
        {
            "Model": table["model"],
            "Split": table["split"],
            "Cases": table["cases"].astype(str),
            "DSC": _with_sd(table["dsc_mean"], table["dsc_sd"]),
            "DSC 95 %": _intervals(table["dsc_low"], table["dsc_high"]),
            "NSD": _with_sd(table["nsd_mean"], table["nsd_sd"]),
            "NSD 95 %": _intervals(table["nsd_low"], table["nsd_high"]),
            "DSC − baseline": table["dsc_difference"].map(_signed),
            "DSC p (Holm)": table["dsc_p_holm"].map(_p),
            "NSD − baseline": table["nsd_difference"].map(_signed),
            "NSD p (Holm)": table["nsd_p_holm"].map(_p),
            "Both empty": table["both_empty"].astype(str),
            **_unannotated(table),
        }
    )
    without_baseline = table["dsc_difference"].isna().all()
    return shown.drop(columns=[name for name in shown if without_baseline and name.endswith(("baseline", "(Holm)"))])


def show_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison with rounded numbers, or the sentence that there is no baseline."""
    if table.empty:
        return pd.DataFrame({"Comparison": [NO_BASELINE]})
    return pd.DataFrame(
        {
            "Model": table["model"],
            "Split": table["split"],
            "Metric": table["metric"],
            "Cases": table["cases"].astype(str),
            "− baseline [95 %]": _with_interval(table["difference"], table["low"], table["high"], _signed),
            "Better": table["better"].astype(str),
            "Equal": table["equal"].astype(str),
            "Worse": table["worse"].astype(str),
            "p": table["p"].map(_p),
            "p (Holm)": table["p_holm"].map(_p),
        }
    )


def show_sweeps(table: pd.DataFrame) -> pd.DataFrame:
    """The sweeps with rounded numbers, or the sentence that there are none; columns that say nothing are left out."""
    if table.empty:
        return pd.DataFrame({"Sweep": [NO_SWEEPS]})
    shown = pd.DataFrame(
        {
            "Sweep": table["title"],
            "Split": table["split"],
            "Metric": table["metric"],
            "Point": table["point"],
            "Repeats": table["repeats"].astype(str),
            "Cases": table["cases"].astype(str),
            "Mean [95 %]": _with_interval(table["mean"], table["low"], table["high"], _rounded),
            "SD of repeats": table["repeat_sd"].map(_rounded),
            "− first [95 %]": _with_interval(
                table["difference"], table["difference_low"], table["difference_high"], _signed
            ),
            "p": table["p"].map(_p),
            "p (Holm)": table["p_holm"].map(_p),
            "Published": table["published"].map(lambda value: _number(value, ".4g")),
            "− published": table["published_difference"].map(_signed),
        }
    )
    silent = {"repeat_sd": ["SD of repeats"], "published": ["Published", "− published"]}
    return shown.drop(columns=[name for key, names in silent.items() if table[key].isna().all() for name in names])


def show_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table per label with rounded numbers."""
    return pd.DataFrame(
        {
            "Split": table["split"],
            "Label": table["label"],
            "Model": table["model"],
            "DSC": _with_sd(table["dsc_mean"], table["dsc_sd"]),
            "NSD": _with_sd(table["nsd_mean"], table["nsd_sd"]),
            "Tolerance (mm)": table["tolerance_mm"].map(lambda value: _number(value, "g")),
            "Values": table["values"].astype(str),
            "Both empty": table["both_empty"].astype(str),
            **_unannotated(table),
        }
    )


def show_cost(table: pd.DataFrame) -> pd.DataFrame:
    """The cost of each setting beside its accuracy, with rounded numbers; without forecasts no column for them."""
    split = table["split"].iloc[0]
    shown = pd.DataFrame(
        {
            "Setting": table["setting"],
            "Patch": table["patch"].str.replace("x", " × "),
            "Batch": table["batch"].astype(str),
            "Parameters": table["parameters"].map(lambda value: _number(value, ",d")),
            "Epochs": table["epochs"].astype(str),
            "Folds": table["folds"].astype(str),
            "Devices": table["devices"].astype(str),
            "Training (h)": table["hours"].map(lambda value: _number(value, ".3g")),
            "Device-hours": table["device_hours"].map(lambda value: _number(value, ".3g")),
            "Peak of the job (GiB)": table["peak_memory_mib"].map(lambda value: _number(value / MIB_PER_GIB, ".2f")),
            "Forecast of the job (GiB)": table["device_forecast_gib"].map(lambda value: _number(value, ".2f")),
            f"DSC ({split})": table["dsc"].map(_rounded),
        }
    )
    return shown.drop(columns="Forecast of the job (GiB)") if table["device_forecast_gib"].isna().all() else shown


def show_time(table: pd.DataFrame) -> pd.DataFrame:
    """Inference time with rounded numbers, or the sentence that there is none; silent columns are left out."""
    if table.empty:
        return pd.DataFrame({"Inference time": [NO_TIMINGS]})
    shown = pd.DataFrame(
        {
            "Setting": table["setting"],
            "Split": table["split"],
            "Window": table["window"],
            "Cases": table["cases"].astype(str),
            "Repeats": table["repeats"].astype(str),
            "Seconds per image": _with_sd(table["mean"], table["sd"]),
            "÷ baseline": table["ratio"].map(_rounded),
            "Published (s)": _with_sd(table["published"], table["published_sd"]),
            "Published ÷ baseline": table["published_ratio"].map(_rounded),
        }
    )
    silent = {"ratio": "÷ baseline", "published": "Published (s)", "published_ratio": "Published ÷ baseline"}
    return shown.drop(columns=[name for key, name in silent.items() if table[key].isna().all()])


def show_published(table: pd.DataFrame) -> pd.DataFrame:
    """Published beside measured numbers, or the sentence that there are none."""
    if table.empty:
        return pd.DataFrame({"Published": [NO_PUBLISHED]})
    return pd.DataFrame(
        {
            "Table": table["table"],
            "Row": table["row"],
            "Metric": table["metric"],
            "Published": table["published"].map(lambda value: _number(value, ".4g")),
            "Measured": table["measured"].map(lambda value: _number(value, ".4g")),
            "Difference": table["difference"].map(_signed),
            "Split": table["split"],
            "Source": table["source"],
        }
    )


def show_peaks(shown: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """What is shown of a table, with peak memory, measured and forecast, where one of its rows has it."""
    stated = {head: table[name] for name, head in PEAK_HEADS.items() if name in table and table[name].notna().any()}
    return shown.assign(**{head: peaks.map(lambda value: _number(value, ".3g")) for head, peaks in stated.items()})


SHOWN = {
    "summary": show_summary,
    "comparison": show_comparison,
    "labels": show_labels,
    "sweeps": show_sweeps,
    "cost": show_cost,
    "inference_time": show_time,
    "published": show_published,
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


def _numbers(stored: Stored, published: pd.DataFrame, timings: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All tables by name, with full numbers; those of `MODELS` end with the peak memory of a row's models."""
    split, peaks, summary = stored.splits[-1], own_peaks(stored), statistics.summary(stored)
    tables = {
        "summary": summary,
        "comparison": statistics.comparison(stored, summary),
        "labels": statistics.labels(stored),
        "sweeps": sweep_table(stored, published),
        "cost": statistics.cost(stored),
        "inference_time": time_table(timings, published, stored.definition),
    }
    beside = published_table(
        published,
        summary=tables["summary"],
        labels=tables["labels"],
        points=measured_points(tables["sweeps"], published, stored.definition.sweeps, split),
        models=models_of_rows(published, stored.definition),
        peaks=cascade_peaks(stored),
        seconds=seconds_of_models(tables["inference_time"], split),
        split=split,
    )
    peaked = {
        name: with_peaks(tables[name], tables[name][column].str.split(), peaks) for name, column in MODELS.items()
    }
    return {**tables, **peaked, "published": beside}


def _unannotated(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The column that counts labels without an annotation, where there are any."""
    return {"Unannotated": table["unannotated"].astype(str)} if table["unannotated"].any() else {}


def _with_sd(mean: pd.Series, deviation: pd.Series) -> list[str]:
    pairs = zip(mean, deviation, strict=True)
    return [_number(value, ".3f") if pd.isna(spread) else f"{value:.3f} ± {spread:.3f}" for value, spread in pairs]


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    pairs = zip(low, high, strict=True)
    return [NONE if pd.isna(start) else f"{start:.3f} to {end:.3f}" for start, end in pairs]


def _with_interval(mean: pd.Series, low: pd.Series, high: pd.Series, write: Callable[[float], str]) -> list[str]:
    rows = zip(mean, low, high, strict=True)
    return [
        write(value) if pd.isna(start) else f"{write(value)} [{write(start)}, {write(end)}]"
        for value, start, end in rows
    ]


def _rounded(value: float) -> str:
    return _number(value, ".3f")


def _p(value: float) -> str:
    return "< 0.001" if value < SMALLEST_P else _number(value, ".3f")


def _signed(value: float) -> str:
    text = _number(value, "+.3f").replace("-", "−")
    return "0.000" if text in ("+0.000", "−0.000") else text


def _number(value: float | None, form: str) -> str:
    return NONE if pd.isna(value) else format(value, form)
