"""How long some work takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

REPEATS, LONGEST_SECONDS = 5, 1.0
"""Runs that are timed at most, and the time after which no other one begins."""


def shortest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work once everything is warm: the shortest of a few times, as other work only ever adds to it."""

    def seconds() -> float:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    seconds()
    found: list[float] = []
    while len(found) < REPEATS and sum(found) < LONGEST_SECONDS:
        found.append(seconds())
    return min(found)
