"""Tables that a spreadsheet shows as they are: no label or case becomes a formula, and it is read back unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from megavoxel.files import atomic_path

FORMULA = r"'*[=+\-@\t\r]"
"""How texts begin that a spreadsheet may run (owasp.org/www-community/attacks/CSV_Injection), or that have been given
an apostrophe before."""
GIVEN = r"'+[=+\-@\t\r]"


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table without its index, whole or not at all, with tabs between its columns where `path` ends in `.tsv`.

    Texts that begin like a formula, and heads of columns, get an apostrophe in front; numbers are as they are.
    """
    with atomic_path(path) as partial:
        separator = "\t" if path.suffix == ".tsv" else ","
        _changed(table, guarded).to_csv(partial, index=False, lineterminator="\n", sep=separator)


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """The table that `write_csv` was given, of one that was read from its file."""
    return _changed(table, unguarded)


def guarded(text: str) -> str:
    """A text of a table, with an apostrophe in front where it begins like a formula."""
    return f"'{text}" if re.match(FORMULA, text) else text


def unguarded(text: str) -> str:
    """The text that `guarded` was given."""
    return text[1:] if re.match(GIVEN, text) else text


def _changed(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with its heads and texts changed."""

    def of(values: pd.Series) -> pd.Series:
        if pd.api.types.is_numeric_dtype(values):
            return values
        texts = values.map(lambda value: change(value) if isinstance(value, str) else value).astype(object)
        return values if texts.equals(values.astype(object)) else texts

    changed = table.apply(of) if len(table) else table.copy()
    changed.columns = list(of(pd.Series(list(table.columns), dtype=object)))
    return changed
