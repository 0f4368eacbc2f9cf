"""What a run of the workflow ends with on the terminal: where the report is, and the scores in short."""

from __future__ import annotations

import csv
from pathlib import Path

WIDTH = 100
"""Most columns of a terminal that the scores take."""


def closing_words(results: Path, *, since: float) -> str:
    """The place of a study's report, the first columns of its summary, and the best model by cross-validation.

    Args:
        results: folder of the study.
        since: seconds since the epoch at which the run began; what is older is none of its, and is left out.
    """
    best = results / "report/tables/best.csv"
    told = best_words(best) if best.is_file() and best.stat().st_mtime >= since else ""
    page, summary = results / "report/index.html", results / "report/tables/summary.md"
    if not page.is_file() or not summary.is_file() or page.stat().st_mtime < since:
        return f"\n{told}\n" if told else ""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in summary.read_text().splitlines()]
    table = "\n".join(_in_columns([row for row in rows if not row[0].startswith(":-")]))
    told = f"{told}\n" if told else ""
    return f"\n{table}\n\n{told}report: {page}\n"


def best_words(path: Path) -> str:
    """A line that says which model is best by cross-validation; empty where fewer than two are ranked.

    Args:
        path: `best.csv` of a report.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ranked = [row for row in rows if row.get("rank")]
    if len(ranked) < 2:
        return ""
    best, own = ranked[0], {}
    for row in rows[1:]:
        own.setdefault(row["verdict"], []).append(row["model"])
    told = [f"{verdict}: {', '.join(models)}" for verdict, models in own.items()]
    place = f"{best['metric']} {float(best['mean']):.3f} of {best['cases']} cases"
    return "; ".join([f"best by cross-validation: {best['model']} ({place})", *told])


def _in_columns(rows: list[list[str]]) -> list[str]:
    """Lines with as many whole columns as fit."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fitting = next(
        count for count in range(len(widths), 0, -1) if count == 1 or sum(widths[:count]) + 2 * count <= WIDTH
    )
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:fitting], widths, strict=False)).rstrip()
        for row in rows
    ]
