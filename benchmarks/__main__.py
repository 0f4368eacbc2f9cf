"""Runs every benchmark and writes `benchmarks/latest.csv`; a ratio above 1 says that ours is better."""

from __future__ import annotations

import csv
import os
import platform
import sys
from pathlib import Path

from benchmarks import planning

PROGRAMS = (planning,)
COLUMNS = ("benchmark", "peer", "ours", "theirs", "ratio", "unit")


def main() -> int:
    """Prints the environment and the table, and writes it."""
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}", flush=True)
    rows = [row for program in PROGRAMS for row in program.run()]
    target = Path(__file__).with_name("latest.csv")
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(str(row[column]) for column in COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
