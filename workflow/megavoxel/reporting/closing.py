"""What a run of the workflow ends with on the terminal: where the report is, and the scores in short."""

from __future__ import annotations

from pathlib import Path

WIDTH = 100
"""Most columns of a terminal that the scores take."""


def closing_words(results: Path, *, since: float) -> str:
    """The place of a study's report and the first columns of its summary; empty if no report was written.

    Args:
        results: folder of the study.
        since: seconds since the epoch at which the run began; an older report is none of its.
    """
    page, summary = results / "report/index.html", results / "report/tables/summary.md"
    if not page.is_file() or not summary.is_file() or page.stat().st_mtime < since:
        return ""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in summary.read_text().splitlines()]
    table = "\n".join(_in_columns([row for row in rows if not row[0].startswith(":-")]))
    return f"\n{table}\n\nreport: {page}\n"


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
