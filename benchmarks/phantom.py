"""Seconds of a processor for a synthetic case of the default size, against the project's own bound."""

from __future__ import annotations

import statistics
import time

from benchmarks.measure import Row, smaller_is_better
from megavoxel.config.source import Phantom
from megavoxel.datasets.phantom import make_case

BOUND_SECONDS = 0.7
TURNS = 5


def run() -> list[Row]:
    """The median of a few cases; the first one, which warms up, is not counted."""
    phantom, seconds = Phantom(training_cases=TURNS + 1), []
    for number in range(phantom.training_cases):
        begin = time.process_time()
        make_case(phantom, number)
        seconds.append(time.process_time() - begin)
    shape = " x ".join(map(str, phantom.shape))
    title = f"a phantom of {shape} voxels, seconds of a processor"
    return [smaller_is_better(title, "own bound", statistics.median(seconds[1:]), BOUND_SECONDS, "s")]
