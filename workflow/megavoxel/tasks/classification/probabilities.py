"""Class probabilities in files: CSV with a line per image and a column per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from megavoxel.errors import UserError
from megavoxel.files import atomic_path

CASE = "case"
SUM_TOLERANCE = 1e-3


def write_probabilities(path: Path, names: Sequence[str], classes: Sequence[str], probabilities: np.ndarray) -> None:
    """Writes a line per image, in order of their names."""
    table = pandas.DataFrame(probabilities, columns=list(classes))
    table.insert(0, CASE, list(names))
    with atomic_path(path) as partial:
        table.sort_values(CASE).to_csv(partial, index=False, lineterminator="\n")


def read_probabilities(path: Path, classes: Sequence[str] | None = None) -> pandas.DataFrame:
    """float64 by case (index) and class (columns).

    Args:
        path: the file.
        classes: that it must have, in order; None: any.

    Raises:
        UserError: the file is missing, has other columns, a case twice, or numbers that are no probabilities.
    """
    try:
        table = pandas.read_csv(path, dtype={CASE: str}, keep_default_na=False).set_index(CASE).astype(float)
    except FileNotFoundError:
        raise UserError(f"{path}: no such probabilities; run 'megavoxel predict'") from None
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path}: cannot be read as probabilities by case and class ({fault})") from None
    if classes is not None and list(table.columns) != list(classes):
        raise UserError(f"{path}: its classes are {', '.join(table.columns)}; expected {', '.join(classes)}")
    if table.index.has_duplicates:
        raise UserError(f"{path}: case {table.index[table.index.duplicated()][0]} has two lines")
    wrong = ~((table >= 0).all(axis=1) & ((table.sum(axis=1) - 1).abs() < SUM_TOLERANCE))
    if wrong.any():
        raise UserError(f"{path}: case {table.index[wrong][0]}: its numbers are no probabilities that sum to 1")
    return table


def average_probabilities(members: Sequence[Path], output: Path) -> int:
    """Writes the mean of several files' probabilities; returns the number of images.

    Raises:
        UserError: as `mean_probabilities`.
    """
    mean = mean_probabilities(members)
    write_probabilities(output, list(mean.index), list(mean.columns), mean.to_numpy())
    return len(mean)


def mean_probabilities(members: Sequence[Path]) -> pandas.DataFrame:
    """The mean of several files' probabilities.

    Raises:
        UserError: they are of different cases or classes.
    """
    tables = [read_probabilities(path) for path in members]
    for path, table in zip(members, tables, strict=True):
        if list(table.columns) != list(tables[0].columns) or set(table.index) != set(tables[0].index):
            raise UserError(f"{members[0]} and {path} are of different cases or classes and cannot be averaged")
    return sum(table.loc[tables[0].index] for table in tables) / len(tables)
