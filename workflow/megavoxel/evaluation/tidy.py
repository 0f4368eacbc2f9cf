"""`scores.csv`: one line per case, label and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from megavoxel.csv_files import as_written, write_csv
from megavoxel.errors import UserError
from megavoxel.files import table_text

COLUMNS = ["setting", "split", "fold", "case", "label", "metric", "value"]
KEYS = COLUMNS[:-1]
Row = tuple[str, str, str, float]
"""Case, label, name of the metric and value; NaN where there is none."""


def write_scores(path: Path, rows: Iterable[Row], *, setting: str, split: str, fold: str) -> None:
    """Writes the rows of a part of a study, sorted by all keys; NaN becomes an empty field; whole or not at all."""
    _write(path, pd.DataFrame([(setting, split, fold, *row) for row in rows], columns=COLUMNS))


def read_text(
    path: Path, columns: Sequence[str], *, missing: str, unreadable: str, is_ours: bool = True
) -> pd.DataFrame:
    """Reads a CSV file whose columns are fixed; all of them are text.

    Args:
        columns: that it must have, in this order.
        missing: what is said of a file that is not there.
        unreadable: what is said of one that cannot be read, with `{fault}` for why.
        is_ours: whether a stage wrote it, which ends every line.

    Raises:
        UserError: the file is missing, cannot be read, or has other columns.
    """
    try:
        table = pd.read_csv(table_text(path) if is_ours else path, dtype=str, keep_default_na=False)
    except FileNotFoundError as fault:
        raise UserError(f"{path}: {missing.format(fault=fault)}") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise UserError(f"{path}: {unreadable.format(fault=fault)}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for names of lines
        raise UserError(f"{path}: has lines with more values than the {len(table.columns)} of its first line")
    if list(table.columns) != list(columns):
        raise UserError(f"{path}: the columns are {','.join(table.columns)}; expected {','.join(columns)}")
    return as_written(table) if is_ours else table


def read_scores(path: Path) -> pd.DataFrame:
    """Reads a score file; all columns are text but `value`, which is float64 with NaN for an empty field.

    Raises:
        UserError: the file is missing, has other columns, or a value that is not a number.
    """
    table = read_text(
        path,
        COLUMNS,
        missing="no such score file; run 'megavoxel evaluate'",
        unreadable="cannot be read as CSV ({fault}); run 'megavoxel evaluate' again",
    )
    numbers = pd.to_numeric(table["value"].replace("", "nan"), errors="coerce")
    wrong = table.index[numbers.isna() & (table["value"] != "")]
    if len(wrong):
        raise UserError(f"{path}: line {wrong[0] + 2}: '{table['value'][wrong[0]]}' is not a number")
    table["value"] = numbers.astype(float)
    return table


def collect_scores(parts: Sequence[Path], output: Path) -> int:
    """Joins score files into one, sorted; returns the number of lines.

    Raises:
        UserError: a file is wrong, or two lines score the same thing.
    """
    table = pd.concat([read_scores(path).assign(source=str(path)) for path in parts], ignore_index=True)
    twice = table[table.duplicated(KEYS, keep=False)].sort_values([*KEYS, "source"])
    if len(twice):
        first = twice.iloc[0]
        files = " and ".join(twice[(twice[KEYS] == first[KEYS]).all(axis=1)]["source"].unique())
        raise UserError(
            f"{files}: {', '.join(f'{key} {first[key]}' for key in KEYS)} is scored twice; keep one of them"
        )
    _write(output, table[COLUMNS])
    return len(table)


def _write(path: Path, table: pd.DataFrame) -> None:
    write_csv(path, table.sort_values(KEYS, kind="stable"))
