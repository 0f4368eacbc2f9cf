"""Runs the benchmarks, all or those named, and writes their rows to `benchmarks/results/DATE.csv`.

python -m benchmarks [NAME …]

A ratio above 1 means that ours is better. A row that is measured again on the same day and machine replaces the older.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import pandas

from benchmarks.measure import COLUMNS, RESULTS, commit, describe, machine, replace_rows, today

PROGRAMS = {name: (name, "run") for name in (
    "accuracy", "planning", "partitions", "plans", "phantom", "preprocessing", "augmentation", "training",
    "data_parallel", "pipeline", "prediction", "run_times", "large_volumes", "expanded_patch", "whole_image",
    "image_loading", "metrics", "forecast", "epochs", "compiled", "optimizers", "recompute", "loss_memory", "space",
    "overhead", "report", "trainings",
)} | {
    "partitions": ("planning", "partitions"),
    "recompute": ("memory_of_a_step", "recompute"),
    "loss_memory": ("memory_of_a_step", "loss_memory"),
    "space": ("tiles", "run"),
}  # fmt: skip
"""Module of this package and function in it that returns the rows, by the name of the program."""


def main() -> int:
    """Prints the environment and the table, and writes the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], default=[], help="default: all")
    names = parser.parse_args().names or PROGRAMS
    print(describe(), flush=True)
    origin = {"date": today(), "machine": machine(), "commit": commit(), "note": ""}
    rows = []
    for module, function in map(PROGRAMS.get, names):
        program = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        rows += [row.plain() | origin for row in program()]
        replace_rows(RESULTS / f"{today()}.csv", rows, ("benchmark", "peer", "machine"))
    print(pandas.DataFrame(rows, columns=COLUMNS[:6]).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
