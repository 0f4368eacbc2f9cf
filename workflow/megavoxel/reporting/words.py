"""Numbers and names as the sentences of the page write them: the filters of its templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.cells import NONE, number, rounded, signed

NAMES_SHOWN = 12
"""Names of a list that stand in a sentence; the others are counted."""
FIRST_NAMES = 3
NUMBER = re.compile(r"(< ?)?[+−-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?( (±|\[|to ).*)?")
"""A number, alone or with what says how sure it is."""
MINUTE, HOUR, LONG_HOURS = 60, 3600, 100
MIB_PER_GIB = 1024
FEW_SECONDS = 10


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
    """Hours in the units that people say: `0.3 s`, `45 s`, `12 min`, `3 h 05 min`, `240 h`."""
    seconds = hours * HOUR
    if seconds < MINUTE:
        return f"{seconds:.1f} s" if seconds < FEW_SECONDS else f"{seconds:.0f} s"
    whole, minutes = divmod(round(seconds / MINUTE), 60)
    if not whole:
        return f"{minutes} min"
    return f"{whole} h {minutes:02d} min" if whole < LONG_HOURS else f"{hours:.0f} h"


def gibibytes(gib: float) -> str:
    """Memory in GiB with three significant digits, or in whole MiB where it is small."""
    return f"{number(gib, '.3g')} GiB" if gib >= 1 else f"{gib * MIB_PER_GIB:.0f} MiB"


def score(value: float) -> str:
    """A value of a metric."""
    return rounded(value)


def spoken(metric: Metric) -> str:
    """A metric's name within a sentence, with its unit."""
    return metric.title if metric.title.lower() == metric.shown.lower() else metric.head


def some(names: Sequence[str]) -> str:
    """The first names in a sentence, with the number of the others."""
    if len(names) <= FIRST_NAMES + 1:
        return joined(names)
    return f"{', '.join(names[:FIRST_NAMES])} and {len(names) - FIRST_NAMES} others"


def signed_score(value: float) -> str:
    """A difference of a metric."""
    return signed(value)


def numeric(frame: pd.DataFrame) -> list[bool]:
    """Whether a column of texts holds nothing but numbers and dashes, so that it stands to the right; never so for the
    first one."""
    columns = [frame.iloc[:, place].astype(str) for place in range(frame.shape[1])]
    return [
        place > 0 and all(text == NONE or NUMBER.fullmatch(text) for text in texts)
        for place, texts in enumerate(columns)
    ]
