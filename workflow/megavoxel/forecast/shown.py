"""Figures as a reader is shown them."""

from __future__ import annotations


def gib(value: float) -> str:
    """Memory, exact enough that what is above a limit is seen to be: `0.428 GiB`, `5.86 GiB`, `16 GiB`."""
    return f"{round(value, 3 if value < 10 else 2):g} GiB"
