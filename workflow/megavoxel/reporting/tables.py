"""The tables as a reader sees them, and their files: CSV with full numbers, Markdown and LaTeX with rounded ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from megavoxel.files import atomic_path, write_text
from megavoxel.reporting import statistics
from megavoxel.reporting.stored import Stored

NONE = "–"
NO_PUBLISHED = "There are no published numbers for this study."


def write_tables(stored: Stored, published: Path | None, folder: Path) -> dict[str, pd.DataFrame]:
    """Writes `NAME.csv`, `NAME.md` and `NAME.tex` of every table to `folder`; returns what Markdown and LaTeX show.

    Raises:
        UserError: the file of published numbers is wrong.
    """
    numbers = {
        "summary": statistics.summary(stored),
        "labels": statistics.labels(stored),
        "cost": statistics.cost(stored),
        "published": statistics.published(stored, published),
    }
    shown = {name: SHOWN[name](table) for name, table in numbers.items()}
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
            "NSD": _with_sd(table["nsd_mean"], table["nsd_sd"]),
            "DSC − baseline": table["dsc_difference"].map(_signed),
            "NSD − baseline": table["nsd_difference"].map(_signed),
            "Both empty": table["both_empty"].astype(str),
        }
    )
    if table["dsc_difference"].isna().all():
        shown = shown.drop(columns=["DSC − baseline", "NSD − baseline"])
    return shown


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
        }
    )


def show_cost(table: pd.DataFrame) -> pd.DataFrame:
    """The cost of each setting with rounded numbers."""
    return pd.DataFrame(
        {
            "Setting": table["setting"],
            "Patch": table["patch"].str.replace("x", " × "),
            "Batch": table["batch"].astype(str),
            "Parameters": table["parameters"].map(lambda value: _number(value, ",d")),
            "Epochs": table["epochs"].astype(str),
            "Folds": table["folds"].astype(str),
            "Training (h)": table["hours"].map(lambda value: _number(value, ".3g")),
            "Peak memory (MiB)": table["peak_memory_mib"].map(lambda value: _number(value, ",.0f")),
        }
    )


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


SHOWN = {"summary": show_summary, "labels": show_labels, "cost": show_cost, "published": show_published}


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    cells = table.astype(str).map(lambda cell: cell.replace("|", "\\|"))
    return cells.to_markdown(index=False, disable_numparse=True) + "\n"


def latex(table: pd.DataFrame) -> str:
    """A LaTeX tabular for the package booktabs."""
    style = table.style.format(escape="latex").format_index(escape="latex", axis="columns").hide(axis="index")
    text = style.to_latex(hrules=True, column_format="l" * len(table.columns))
    for symbol, command in {"±": "$\\pm$", "−": "$-$", "×": "$\\times$", "–": "--"}.items():
        text = text.replace(symbol, command)
    return text


def _with_sd(mean: pd.Series, deviation: pd.Series) -> list[str]:
    pairs = zip(mean, deviation, strict=True)
    return [_number(value, ".3f") if pd.isna(spread) else f"{value:.3f} ± {spread:.3f}" for value, spread in pairs]


def _signed(value: float) -> str:
    text = _number(value, "+.3f").replace("-", "−")
    return "0.000" if text in ("+0.000", "−0.000") else text


def _number(value: float | None, form: str) -> str:
    return NONE if pd.isna(value) else format(value, form)
