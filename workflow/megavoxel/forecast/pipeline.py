"""Memory and FLOPs of the stages of a pipeline: the block program cut into contiguous parts, each run on its own.

What runs is the code of training (`training/pipeline.py`), on fake tensors and over a wire without a far end. A first
cut is the one whose most expensive stage is cheapest by what the blocks keep for the backward pass. `least_peak_cut`
goes by the peak memory of stages that are run; what the blocks keep tells which it can do without.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

from megavoxel.config.study import Parallel
from megavoxel.forecast.cuts import balanced_cuts, least_cut
from megavoxel.forecast.profile import Job, Profile, fake_network, profile_of, with_micro_batches
from megavoxel.forecast.stage_step import run_passes, sent_bytes, update_peak
from megavoxel.forecast.step import HashedPlan, StepCost, anonymous, optimizer_bytes
from megavoxel.planning.plan import Plan

COPIES_OF_WEIGHTS = 3
"""Weights, gradients and one momentum, for the choice of the first cut."""
MOST_SIMULATED = 2
"""Micro-batches that are run; each further one adds what a stage keeps of it until its backward pass."""
MOST_COPIES_IN_AN_UPDATE = 2
"""Of the weights, that an optimiser may make beside gradients and state; where there is room for them it is not run."""


def stage_costs(
    plan: Plan,
    *,
    stages: int,
    samples: int,
    micro_batches: int,
    checkpointing: bool,
    precision: str,
    begins: Sequence[int] = (),
) -> list[StepCost]:
    """Memory and FLOPs of each stage for a whole step, in order.

    Args:
        plan: the setting.
        stages: at most the number of blocks.
        samples: of a micro-batch.
        micro_batches: of a step.
        checkpointing: whether blocks are run again in the backward pass.
        precision: `float32`, `bfloat16` or `float16`.
        begins: number of the first block of each stage; empty: the first cut.
    """
    job = _job(plan, samples, micro_batches, checkpointing, precision)
    cut = tuple(begins) or _first_cut(job, stages)
    ends = (*cut[1:], len(fake_network(plan.network).blocks))
    return [_part_cost(job, begin, end) for begin, end in zip(cut, ends, strict=True)]


def least_peak_cut(
    plan: Plan, *, stages: int, samples: int, micro_batches: int, checkpointing: bool, precision: str
) -> tuple[int, ...]:
    """First block of each stage, so that the largest peak of a stage is as small as can be.

    Of the cuts with that peak it is the one that sends the fewest bytes. Exact as long as a stage with a block more
    never needs less. Arguments as for `stage_costs`.
    """
    job = _job(plan, samples, micro_batches, checkpointing, precision)

    def peak(begin: int, end: int) -> int:
        return _part_cost(job, begin, end).peak_bytes

    bound, sent = partial(_least_bytes, job, profile_of(job)), cache(partial(sent_bytes, job))
    return least_cut(peak, bound, sent, len(fake_network(plan.network).blocks), stages)


def _least_bytes(job: Job, profile: Profile, begin: int, end: int) -> int:
    """What the peak of a stage is not below: what it keeps of all micro-batches but the last, while that goes forward.

    Weights and optimiser are there all the time. In the stage itself there is more: what it was sent, and its loss.
    """
    weights = sum(profile.weights[begin:end])
    kept = [0, *itertools.accumulate(profile.kept[begin:end])]
    risen = max(before + own for before, own in zip(kept, profile.risen[begin:end], strict=False))
    earlier = (job.hashed.plan.parallel.micro_batches - 1) * (kept[-1] - sum(profile.shared[begin:end]))
    return weights + optimizer_bytes(job.hashed.plan, weights) + earlier + max(kept[-1], risen)


def _job(plan: Plan, samples: int, micro_batches: int, checkpointing: bool, precision: str) -> Job:
    parallel = Parallel(micro_batches=micro_batches, checkpointing=checkpointing)
    own = replace(anonymous(plan), batch=samples * micro_batches, parallel=parallel)
    return Job(hashed=HashedPlan(own), precision=precision)


def begins_of(
    plan: Plan, *, stages: int, samples: int, micro_batches: int, checkpointing: bool, precision: str
) -> tuple[int, ...]:
    """First block of each stage: the plan's, where it has as many, else the first cut. Arguments: see `stage_costs`."""
    if len(plan.stages) == stages:
        return plan.stages
    return _first_cut(_job(plan, samples, micro_batches, checkpointing, precision), stages)


@cache
def _first_cut(job: Job, stages: int) -> tuple[int, ...]:
    """By what each block keeps for the backward pass."""
    profile = profile_of(job)
    blocks = zip(profile.kept, profile.shared, profile.weights, strict=True)
    count = job.hashed.plan.parallel.micro_batches
    costs = [(kept - shared) * count + shared + COPIES_OF_WEIGHTS * own for kept, shared, own in blocks]
    return balanced_cuts(costs, stages)


@cache
def _part_cost(job: Job, begin: int, end: int) -> StepCost:
    """The cost of some consecutive blocks."""
    micro_batches = job.hashed.plan.parallel.micro_batches
    simulated = min(micro_batches, MOST_SIMULATED)
    passes = run_passes(with_micro_batches(job, simulated), begin, end)
    more = micro_batches - simulated
    peak = max(half.peak_bytes + more * half.kept_bytes for half in (passes.forward, passes.backward))
    if peak < passes.parameter_bytes * (1 + MOST_COPIES_IN_AN_UPDATE) + passes.resident_bytes:
        peak = max(peak, update_peak(with_micro_batches(job, 1), begin, end))
    return StepCost(
        peak_bytes=peak,
        resident_bytes=passes.resident_bytes,
        workspace_bytes=passes.workspace_bytes,
        flops=passes.flops // simulated * micro_batches,
        parameter_bytes=passes.parameter_bytes,
    )
