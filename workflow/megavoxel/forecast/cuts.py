"""Where to cut a row of blocks into stages, by what a stage costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

CostOfStage = Callable[[int, int], float]
"""By a stage's first block and the first one behind it."""
Blocks = tuple[int, int]
"""The same two numbers."""


def least_cut(peak: CostOfStage, bound: CostOfStage, cost: CostOfStage, blocks: int, stages: int) -> tuple[int, ...]:
    """First block of each stage, so that the largest peak is as small as can be, and of such cuts the cheapest.

    The best cut by what is known of peaks so far has the least certain of its stages looked at, until it has none: as
    no peak is less than what was known of it, no other cut can be better. So few peaks are asked for.

    Args:
        peak: of a stage; dear to ask for. Exact as long as a stage with a block more never needs less.
        bound: what a stage's peak is not below.
        cost: of a stage; adds up.
        blocks: of the program.
        stages: no more than there are blocks; none is left empty.
    """
    known = {ends: bound(*ends) for ends in itertools.combinations(range(blocks + 1), 2)}
    seen: dict[Blocks, float] = {}
    while True:
        begins = _cheapest_of_least(known, cost, blocks, stages)
        unseen = [ends for ends in zip(begins, (*begins[1:], blocks), strict=True) if ends not in seen]
        if not unseen:
            return begins
        asked = max(unseen, key=known.get)
        seen[asked] = peak(*asked)
        for wider in itertools.product(range(asked[0] + 1), range(asked[1], blocks + 1)):
            known[wider] = max(known[wider], seen[asked]) if wider not in seen else seen[wider]


def _cheapest_of_least(peaks: dict[Blocks, float], cost: CostOfStage, blocks: int, stages: int) -> tuple[int, ...]:
    """The same for peaks that are all known; dynamic programming over where a stage begins."""
    limit, _ = _best_cut(lambda *ends: peaks[ends], max, blocks, stages)
    return _best_cut(lambda *ends: cost(*ends) if peaks[ends] <= limit else math.inf, sum, blocks, stages)[1]


def _best_cut(
    value: CostOfStage, together: Callable[[tuple[float, float]], float], blocks: int, stages: int
) -> tuple[float, tuple[int, ...]]:
    """The least value of a cut and the first block of each of its stages, values of stages being put `together`."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0, ())}
    for left in range(stages - 1, -1, -1):
        ends = range(1, blocks - left + 1) if left else [blocks]
        best = {
            end: min(
                (together((before, value(begin, end))), (*begins, begin))
                for begin, (before, begins) in best.items()
                if begin < end
            )
            for end in ends
            if end > min(best)
        }
    return best[blocks]


def balanced_cuts(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """First block of each stage, so that the largest sum of `costs` over a stage is as small as can be."""
    sums = [0.0, *itertools.accumulate(costs)]
    return _best_cut(lambda begin, end: sums[end] - sums[begin], max, len(costs), stages)[1]
