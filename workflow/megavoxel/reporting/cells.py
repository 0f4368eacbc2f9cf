"""Numbers as readers see them in tables: rounded, with signs, deviations and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import pandas as pd

NONE = "–"
SMALLEST_P = 0.001


def number(value: float | None, form: str) -> str:
    """A number in a format of Python, with a true minus sign; a dash where there is none."""
    text = NONE if pd.isna(value) else format(value, form)
    return f"−{text[1:]}" if text.startswith("-") else text


def rounded(value: float) -> str:
    """Three decimals."""
    return number(value, ".3f")


def evenly(values: Iterable[float]) -> Callable[[float], str]:
    """Writes the numbers of a column with one number of decimals: three significant digits of the largest, and at least
    one of the smallest that is not 0."""
    sizes = [math.floor(math.log10(abs(value))) for value in values if not pd.isna(value) and value]
    decimals = max(2 - max(sizes), -min(sizes), 0) if sizes else 0
    return partial(number, form=f".{decimals}f")


def four_digits(value: float) -> str:
    """Four significant digits, as papers print them."""
    return number(value, ".4g")


def signed(value: float) -> str:
    """Three decimals with a sign; zero has none."""
    text = number(value, "+.3f")
    return "0.000" if text in ("+0.000", "−0.000") else text


def p_value(value: float) -> str:
    """Three decimals; smaller than the smallest of them is said so."""
    return f"< {SMALLEST_P:g}" if value < SMALLEST_P else rounded(value)


def with_sd(mean: float, deviation: float) -> str:
    """Mean and standard deviation, where there is one."""
    return rounded(mean) if pd.isna(deviation) else f"{rounded(mean)} ± {rounded(deviation)}"


def interval(low: float, high: float) -> str:
    """An interval by itself."""
    return NONE if pd.isna(low) else f"{rounded(low)} to {rounded(high)}"


def with_interval(value: float, low: float, high: float, write: Callable[[float], str] = rounded) -> str:
    """A number and its interval, where there is one."""
    return write(value) if pd.isna(low) else f"{write(value)} [{write(low)}, {write(high)}]"


signed_with_interval = partial(with_interval, write=signed)


Shown = Mapping[str, str | tuple[str, Callable[..., str]]]
"""Columns of a shown table by their heads: either the name of a column that is shown as it is, or the names of columns,
with spaces between them, and the function that makes a text of their values in a row."""


def show(table: pd.DataFrame, columns: Shown, *, optional: Sequence[str] = ()) -> pd.DataFrame:
    """A table of texts from one of full numbers.

    Args:
        columns: what is shown, by head.
        optional: heads of columns that are left out where no row has a value of their first number.
    """
    shown = {}
    for head, column in columns.items():
        keys, write = (column, str) if isinstance(column, str) else column
        own = table[keys.split()]
        if head not in optional or own.iloc[:, 0].notna().any():
            shown[head] = [write(*row) for row in own.itertuples(index=False, name=None)]
    return pd.DataFrame(shown)
