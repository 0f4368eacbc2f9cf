"""CSV files that a spreadsheet shows as they are: no label or case becomes a formula, and it is read back unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from megavoxel.files import atomic_path

FORMULA = r"'*[=+\-@\t\r]"
"""How texts begin that a spreadsheet may run (owasp.org/www-community/attacks/CSV_Injection), or that have been given
an apostrophe before."""
GIVEN = r"'+[=+\-@\t\r]"


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table without its index, whole or not at all.

    Texts that begin like a formula, and heads of columns, get an apostrophe in front; numbers are as they are.
    """
    with atomic_path(path) as partial:
        table = _changed(table, FORMULA, lambda text: "'" + text)
        table.to_csv(partial, index=False, lineterminator="\n")


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """The table that `write_csv` was given, of one that was read from its file."""
    return _changed(table, GIVEN, lambda text: text[1:])


def _changed(table: pd.DataFrame, pattern: str, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with other heads and texts where they begin as the pattern says."""

    def of(values: pd.Series) -> pd.Series:
        if pd.api.types.is_numeric_dtype(values):
            return values
        touched = values.map(lambda value: isinstance(value, str)) & values.astype(str).str.match(pattern)
        return values.astype(object).where(~touched, values.astype(str).map(change)) if touched.any() else values

    changed = table.apply(of) if len(table) else table.copy()
    changed.columns = list(of(pd.Series(list(table.columns), dtype=object)))
    return changed
