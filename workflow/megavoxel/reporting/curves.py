"""Training curves of finished runs, for programs that show them: from history.csv, with one name for each column."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megavoxel.errors import UserError

GROUPS = {
    "training_loss": "loss/training",
    "validation_loss": "loss/validation",
    "pseudo_dice": "pseudo-Dice/all",
    "training_accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "optimiser/learning rate",
    "seconds": "cost/seconds",
    "peak_memory_mib": "cost/peak memory in MiB",
}
"""Names of curves by column; pseudo-Dice of single labels is named after the label."""
LABEL = "pseudo_dice_"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of a curve at the end of an epoch."""

    name: str
    epoch: int
    time: float
    """Seconds since 1970."""
    value: float


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Adds the runs that a stage takes: folders for `find_histories`."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs (results/STUDY/SETTING/fold-K), or folders above them",
    )


def find_histories(runs: Sequence[Path]) -> list[Path]:
    """The history.csv in or below each folder.

    Raises:
        UserError: there is none in one of the folders.
    """
    found = []
    for folder in runs:
        own = folder / "history.csv"
        below = [own] if own.is_file() else sorted(folder.glob("**/history.csv"))
        if not below:
            raise UserError(f"{folder}: there is no history.csv in or below it; training writes it at its end")
        found += below
    return found


def points_of(history: Path) -> Iterator[Point]:
    """One point per epoch and curve, as far apart in time as the epochs; the last one when the file was written.

    Raises:
        UserError: as `read_history`.
    """
    from megavoxel.reporting.run_files import read_history

    table = read_history(history, ("epoch", "seconds"))
    end = history.stat().st_mtime
    left = table["seconds"][::-1].cumsum()[::-1] - table["seconds"]
    for row, before_end in zip(table.to_dict("records"), left, strict=True):
        for column, value in row.items():
            name = f"pseudo-Dice/{column.removeprefix(LABEL)}" if column.startswith(LABEL) else GROUPS.get(column)
            if name is not None and not math.isnan(value):
                yield Point(name=name, epoch=int(row["epoch"]), time=end - before_end, value=float(value))
