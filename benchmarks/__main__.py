"""Runs the benchmarks, all or those named, and writes `benchmarks/latest.csv`; a ratio above 1: ours is better.

python -m benchmarks [NAME …]
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
from pathlib import Path

import pandas

from benchmarks.environment import describe
from benchmarks.measure import COLUMNS

PROGRAMS = (
    "accuracy",
    "planning",
    "partitions",
    "plans",
    "preprocessing",
    "augmentation",
    "training",
    "data_parallel",
    "pipeline",
    "prediction",
    "large_volumes",
    "expanded_patch",
    "whole_image",
    "image_loading",
    "metrics",
    "forecast",
    "overhead",
    "report",
)
"""One module of this package each; `run()` gives its rows."""


def main() -> int:
    """Prints the environment and the table, and writes it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], default=[], help="default: all")
    names = parser.parse_args().names or PROGRAMS
    print(describe(), flush=True)
    rows = []
    for name in names:
        rows += [row.plain() for row in importlib.import_module(f"benchmarks.{name}").run()]
        write(Path(__file__).with_name("latest.csv"), rows)
    print(pandas.DataFrame(rows, columns=COLUMNS).to_string(index=False))
    return 0


def write(path: Path, rows: list[dict]) -> None:
    """Writes the rows so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
