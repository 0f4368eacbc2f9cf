"""Numbers and names as the sentences of the page write them: the filters of its templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from megavoxel.reporting.tables import NONE, number, rounded, signed

NAMES_SHOWN = 12
"""Names of a list that stand in a sentence; the others are counted."""
NUMBER = re.compile(r"(< ?)?[+−-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?( (±|\[|to ).*)?")
"""A number, alone or with what says how sure it is."""
MINUTE, HOUR, LONG_HOURS = 60, 3600, 100
MIB_PER_GIB, LEAST_GIB = 1024, 0.1


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of many only the first ones, and the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def joined(names: Sequence[str], word: str = "and") -> str:
    """Names in a sentence, with `and` before the last one."""
    if len(names) > NAMES_SHOWN:
        return listed(names)
    return f" {word} ".join(", ".join(names).rsplit(", ", 1))


def duration(hours: float) -> str:
    """Hours in the units that people say: `45 s`, `12 min`, `3 h 05 min`, `240 h`."""
    seconds = round(hours * HOUR)
    if seconds < MINUTE:
        return f"{seconds} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    whole, minutes = divmod(round(seconds / MINUTE), 60)
    return f"{whole} h {minutes:02d} min" if whole < LONG_HOURS else f"{hours:.0f} h"


def gibibytes(gib: float) -> str:
    """Memory in GiB with three significant digits, or in whole MiB where it is small."""
    return f"{number(gib, '.3g')} GiB" if gib >= LEAST_GIB else f"{gib * MIB_PER_GIB:.0f} MiB"


def score(value: float) -> str:
    """A value of a metric."""
    return rounded(value)


def signed_score(value: float) -> str:
    """A difference of a metric."""
    return signed(value)


def numeric(frame: pd.DataFrame) -> list[bool]:
    """Whether a column of texts holds numbers, so that it stands to the right; never so for the first one."""
    found = []
    for place in range(frame.shape[1]):
        texts = [text for text in frame.iloc[:, place].astype(str) if text != NONE]
        found.append(place > 0 and bool(texts) and all(map(NUMBER.fullmatch, texts)))
    return found
