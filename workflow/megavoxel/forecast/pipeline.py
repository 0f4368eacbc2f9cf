"""Memory and FLOPs of the stages of a pipeline: the block program cut into contiguous parts, each run on its own.

What runs is the code of training (`training/pipeline.py`), on fake tensors and with peers that never answer. A first
cut is the one whose most expensive stage is cheapest by what the blocks keep for the backward pass. `least_peak_cut`
goes by the peak memory of stages that are run; what the blocks keep tells which it can do without.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from megavoxel.config.setting import Parallel
from megavoxel.forecast.pipeline_step import (
    Profile,
    fake_network,
    profile_of,
    run_passes,
    sent_bytes,
    update_peak,
    with_micro_batches,
)
from megavoxel.forecast.step import StepCost, StepKey, anonymous, optimizer_bytes
from megavoxel.network.segmentation import computed_again
from megavoxel.planning.plan import Plan

CostOfStage = Callable[[int, int], float]
"""Gives the cost of a stage from its first block and the first block behind it."""
Blocks = tuple[int, int]
"""A stage: its first block and the first block behind it."""


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
    """The best cut for peaks that are all known, by dynamic programming over where a stage begins."""
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


COPIES_OF_WEIGHTS = 3
"""Weights, gradients and one momentum, for the choice of the first cut."""
MOST_SIMULATED = 2
"""Micro-batches that are run; each further one adds what a stage keeps of it until its backward pass."""
MOST_COPIES_IN_AN_UPDATE = 2
"""Copies of the weights that an optimiser may make beside gradients and state. Where there is room for them, the update
is not simulated."""


def stage_costs(plan: Plan, parallel: Parallel, precision: str, begins: Sequence[int] = ()) -> list[StepCost]:
    """Memory and FLOPs of each stage for one pass of a batch through a pipeline, in order.

    Args:
        plan: the setting; its own `parallel` does not count.
        parallel: `pipeline` stages, at most the number of blocks; the micro-batches of a pass, each with
            `plan.batch / parallel.parts` samples; `checkpointing`.
        precision: `float32`, `bfloat16` or `float16`.
        begins: number of the first block of each stage; empty: the first cut.
    """
    key = _step_key(plan, parallel, precision)
    cut = tuple(begins) or _first_cut(key, parallel.pipeline)
    ends = (*cut[1:], len(fake_network(plan.network).program))
    return [_part_cost(key, begin, end) for begin, end in zip(cut, ends, strict=True)]


def least_peak_cut(plan: Plan, parallel: Parallel, precision: str) -> tuple[int, ...]:
    """First block of each stage, so that the largest peak of a stage is as small as can be.

    Of the cuts with that peak it is the one that sends the fewest bytes. Exact as long as a stage with a block more
    never needs less. Arguments as for `stage_costs`.
    """
    key = _step_key(plan, parallel, precision)

    def peak(begin: int, end: int) -> int:
        return _part_cost(key, begin, end).peak_bytes

    bound, sent = partial(_least_bytes, key, profile_of(key)), cache(partial(sent_bytes, key))
    return least_cut(peak, bound, sent, len(fake_network(plan.network).program), parallel.pipeline)


def blocks_by_saving(plan: Plan, parallel: Parallel, precision: str) -> list[str]:
    """Names of the blocks that `checkpointing: blocks` computes again, those that save the most bytes first.

    Arguments as for `stage_costs`. In a curriculum the phase with the most voxels in a step counts.
    """
    kept = [
        profile_of(_step_key(largest_phase(plan), replace(parallel, checkpointing=checkpointing), precision)).kept
        for checkpointing in ("norms", "blocks")
    ]
    program = fake_network(plan.network).program
    saved = {block.name: norms - blocks for block, norms, blocks in zip(program, *kept, strict=True)}
    return sorted(computed_again(program, "blocks"), key=lambda name: (-saved[name], name))


def largest_phase(plan: Plan) -> Plan:
    """The phase of a curriculum with the most voxels in a step; else the plan."""
    return max(plan.by_phase(), key=lambda phase: phase.batch * math.prod(phase.patch))


def begins_of(plan: Plan, parallel: Parallel, precision: str) -> tuple[int, ...]:
    """First block of each stage: the plan's, where it has as many, else the first cut. Arguments: see `stage_costs`."""
    if len(plan.stages) == parallel.pipeline:
        return plan.stages
    return _first_cut(_step_key(plan, parallel, precision), parallel.pipeline)


def _least_bytes(key: StepKey, profile: Profile, begin: int, end: int) -> int:
    """A lower bound of a stage's peak: what it keeps of all micro-batches but the last, while that one goes forward.

    Weights and optimiser are there all the time. The bound leaves out received tensors and the loss.
    """
    weights = sum(profile.weights[begin:end])
    kept = [0, *itertools.accumulate(profile.kept[begin:end])]
    risen = max(before + own for before, own in zip(kept, profile.risen[begin:end], strict=False))
    earlier = (key.plan.parallel.micro_batches - 1) * (kept[-1] - sum(profile.shared[begin:end]))
    return weights + optimizer_bytes(key.plan, weights) + earlier + max(kept[-1], risen)


def _step_key(plan: Plan, parallel: Parallel, precision: str) -> StepKey:
    micro_batches = parallel.micro_batches
    keys = Parallel(micro_batches=micro_batches, checkpointing=parallel.checkpointing)
    own = replace(anonymous(plan), batch=plan.batch // parallel.parts * micro_batches, parallel=keys)
    return StepKey(own, precision)


@cache
def _first_cut(key: StepKey, stages: int) -> tuple[int, ...]:
    """The cut that balances what the blocks keep for the backward pass."""
    profile = profile_of(key)
    blocks = zip(profile.kept, profile.shared, profile.weights, strict=True)
    count = key.plan.parallel.micro_batches
    costs = [(kept - shared) * count + shared + COPIES_OF_WEIGHTS * own for kept, shared, own in blocks]
    return balanced_cuts(costs, stages)


@cache
def _part_cost(key: StepKey, begin: int, end: int) -> StepCost:
    """The cost of some consecutive blocks."""
    micro_batches = key.plan.parallel.micro_batches
    simulated = min(micro_batches, MOST_SIMULATED)
    passes = run_passes(with_micro_batches(key, simulated), begin, end)
    more = micro_batches - simulated
    peak = max(half.peak_bytes + more * half.kept_bytes for half in (passes.forward, passes.backward))
    if peak < passes.parameter_bytes * (1 + MOST_COPIES_IN_AN_UPDATE) + passes.resident_bytes:
        peak = max(peak, update_peak(with_micro_batches(key, 1), begin, end))
    return StepCost(
        peak_bytes=peak,
        resident_bytes=passes.resident_bytes,
        workspace_bytes=passes.workspace_bytes,
        work=round(passes.work * (micro_batches / simulated)),
        parameter_bytes=passes.parameter_bytes,
    )
