"""Where to cut a row of blocks into stages, by what a stage costs."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence

CostOfStage = Callable[[int, int], float]
"""By a stage's first block and the first one behind it."""


def filled_cut(peak: CostOfStage, blocks: int, stages: int, limit: float) -> tuple[int, ...] | None:
    """First block of each of `stages` stages, each filled from the front as long as its peak stays below `limit`.

    No stage is left empty. None where some stage reaches the limit.

    Args:
        peak: of a stage, by its first block and the first behind it; grows with the stage.
        blocks: of the program.
        stages: how many.
        limit: no stage may reach it.
    """
    begins, begin = [], 0
    for left in range(stages, 0, -1):
        ends = range(begin + 1, blocks - left + 2)
        fitting = bisect_left(ends, True, key=lambda end, begin=begin: peak(begin, end) >= limit)
        if fitting == 0:
            return None
        begins.append(begin)
        begin = ends[fitting - 1]
    return tuple(begins) if begin == blocks else None


def cheapest_cut(
    peak: CostOfStage, cost: CostOfStage, blocks: int, known: Sequence[int], limit: float
) -> tuple[int, ...]:
    """First block of each stage, so that the stages together cost least while every peak stays below `limit`.

    Exact, by dynamic programming over where each stage may begin: not behind where it does when all stages are filled
    from the front, nor before where it does when they are filled from the back.

    Args:
        peak: of a stage. Where it does not grow with the stage, the cut is `known` or one that costs less.
        cost: of a stage; adds up.
        blocks: of the program.
        known: a cut whose peaks all stay below the limit.
        limit: no peak may reach it.
    """
    places = _places(peak, blocks, known, limit)
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0, ())}
    for ends in (*places[1:], [blocks]):
        options: dict[int, tuple[float, tuple[int, ...]]] = {}
        for (begin, (before, begins)), end in itertools.product(best.items(), ends):
            if begin < end and peak(begin, end) < limit:
                option = (before + cost(begin, end), (*begins, begin))
                options[end] = min(options.get(end, option), option)
        best = options
    return best[blocks][1]


def _places(peak: CostOfStage, blocks: int, known: Sequence[int], limit: float) -> list[Sequence[int]]:
    """Where each stage may begin."""

    def mirrored(begin: int, end: int) -> float:
        return peak(blocks - end, blocks - begin)

    stages = len(known)
    from_front = filled_cut(peak, blocks, stages, limit) or known
    from_back = filled_cut(mirrored, blocks, stages, limit)
    latest = map(max, known, from_front)
    earliest = known if from_back is None else map(min, known, (0, *(blocks - begin for begin in from_back[:0:-1])))
    return [range(first, last + 1) for first, last in zip(earliest, latest, strict=True)]


def balanced_cuts(costs: Sequence[float], stages: int) -> list[int]:
    """First block of each stage, so that the largest sum of `costs` over a stage is as small as can be.

    Exact, by dynamic programming over contiguous parts; no stage is empty.
    """
    sums = [0.0, *itertools.accumulate(costs)]
    best = {(0, 0): (0.0, [])}
    for stage, end in itertools.product(range(1, stages + 1), range(1, len(costs) + 1)):
        options = [
            (max(best[stage - 1, begin][0], sums[end] - sums[begin]), [*best[stage - 1, begin][1], begin])
            for begin in range(end)
            if (stage - 1, begin) in best
        ]
        if options:
            best[stage, end] = min(options)
    return best[stages, len(costs)][1]
