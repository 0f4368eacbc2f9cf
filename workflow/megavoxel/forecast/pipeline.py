"""Memory and FLOPs of the stages of a pipeline: the block program cut into contiguous parts, each run on its own.

A stage runs all micro-batches forward and then all backward (GPipe, Huang et al., arXiv:1811.06965). A first cut is the
one whose most expensive stage is cheapest by what the blocks keep for the backward pass. `least_peak_cut` goes on from
there, by the peak memory of stages that are run.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.study import Training
from megavoxel.forecast.step import StepCost, autocast, float32_bytes, optimizer_bytes
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.program import Program, RunState
from megavoxel.network.stages import Form, Stage, cut_into_stages, form_of
from megavoxel.network.unet import cumulative_strides, entering_state, program_inputs, unet_blocks
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.topology import padded_patch
from megavoxel.training.loss import build_loss

COPIES_OF_WEIGHTS = 3
"""Weights, gradients and one momentum, for the choice of the cut."""
MOST_SIMULATED = 3
"""Micro-batches that are run; each further one adds what the last of these did."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a stage depends on."""

    network: NetworkPlan
    patch: tuple[int, ...]
    samples: int
    """Of a micro-batch."""
    micro_batches: int
    checkpointing: bool
    precision: str
    training: Training
    """Of which only the loss counts."""


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """One run of the whole program."""

    kept: tuple[int, ...]
    """Bytes that each block keeps for the backward pass of a micro-batch."""
    weights: tuple[int, ...]
    """Bytes of each block's weights."""
    activations: tuple[Form, ...]
    """What each block is given."""
    stashes: dict[str, Form]


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
    ends = (*cut[1:], len(unet_blocks(plan.network)))
    return [_with_optimizer(plan, _part_cost(job, begin, end)) for begin, end in zip(cut, ends, strict=True)]


def least_peak_cut(
    plan: Plan, *, stages: int, samples: int, micro_batches: int, checkpointing: bool, precision: str
) -> tuple[int, ...]:
    """First block of each stage, so that the largest peak of a stage is as small as can be.

    From the first cut on, stages are filled from the front up to less than the largest peak so far, until that needs
    more stages than there are. Exact as long as a stage with a block more never needs less. Arguments as for
    `stage_costs`.
    """
    job = _job(plan, samples, micro_batches, checkpointing, precision)
    count = len(unet_blocks(plan.network))

    @cache
    def peak(begin: int, end: int) -> int:
        return _with_optimizer(plan, _part_cost(job, begin, end)).peak_bytes

    best = _first_cut(job, stages)
    while True:
        limit = max(peak(begin, end) for begin, end in zip(best, (*best[1:], count), strict=True))
        found = filled_cut(peak, count, stages, limit)
        if found is None:
            return best
        best = found


def filled_cut(peak: Callable[[int, int], float], blocks: int, stages: int, limit: float) -> tuple[int, ...] | None:
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


def _with_optimizer(plan: Plan, cost: StepCost) -> StepCost:
    state = optimizer_bytes(plan, cost.parameter_bytes)
    return replace(cost, peak_bytes=cost.peak_bytes + state, resident_bytes=cost.resident_bytes + state)


def _job(plan: Plan, samples: int, micro_batches: int, checkpointing: bool, precision: str) -> _Job:
    return _Job(
        network=plan.network,
        patch=padded_patch(plan.patch, cumulative_strides(plan.network)[-1]),
        samples=samples,
        micro_batches=micro_batches,
        checkpointing=checkpointing,
        precision=precision,
        training=_loss_keys(plan.training),
    )


@cache
def _first_cut(job: _Job, stages: int) -> tuple[int, ...]:
    """By what each block keeps for the backward pass."""
    profile = _profile(_one_micro_batch(job))
    blocks = zip(profile.kept, profile.weights, strict=True)
    return tuple(balanced_cuts([kept * job.micro_batches + COPIES_OF_WEIGHTS * own for kept, own in blocks], stages))


@cache
def _part_cost(job: _Job, begin: int, end: int) -> StepCost:
    """The cost of some consecutive blocks, from the first few micro-batches where there are many."""
    if job.micro_batches <= MOST_SIMULATED:
        return _run_part(job, begin, end)
    fewer, most = (
        _run_part(replace(job, micro_batches=count), begin, end) for count in (MOST_SIMULATED - 1, MOST_SIMULATED)
    )
    more = job.micro_batches - MOST_SIMULATED
    return replace(
        most,
        peak_bytes=most.peak_bytes + more * (most.peak_bytes - fewer.peak_bytes),
        flops=most.flops + more * (most.flops - fewer.flops),
    )


def _one_micro_batch(job: _Job) -> _Job:
    """What a profile depends on, so that one serves all ways of running a step."""
    return replace(job, micro_batches=1, checkpointing=False)


@cache
def _profile(job: _Job) -> _Profile:
    with FakeTensorMode(), MemoryTracker() as memory, autocast(job.precision):
        state = entering_state(job.network, _made(_image_form(job)))
        forms = {name: form_of(tensor) for name, tensor in state.stashed.items()}
        activations, kept, weights = [], [], []
        for block in unet_blocks(job.network):
            activations.append(form_of(state.activation))
            before, waiting = memory.live, dict(state.stashed)
            inputs, outputs = set(waiting), set(waiting) - set(block.pops) | ({block.stash} - {None})
            state = Program([block], inputs=inputs, outputs=outputs).run(state)
            state.logits.clear()
            forms |= {name: form_of(state.stashed[name]) for name in outputs - inputs}
            kept.append(memory.live - before)
            weights.append(float32_bytes(block))
    return _Profile(kept=tuple(kept), weights=tuple(weights), activations=tuple(activations), stashes=forms)


def _run_part(job: _Job, begin: int, end: int) -> StepCost:
    with FakeTensorMode():
        blocks = unet_blocks(job.network)
        cut = sorted({0, begin, end} - {len(blocks)})
        stages = cut_into_stages(blocks, program_inputs(job.network), cut)
        stage = next(stage for stage in stages if stage.blocks.start == begin)
        program = stage.program(blocks)
        with MemoryTracker() as memory:
            held = [outputs for _ in range(job.micro_batches) for outputs in [_forward_outputs(program, stage, job)]]
            while held:
                outputs = held.pop()
                torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
                del outputs
            parameters = float32_bytes(program)
            return StepCost(
                peak_bytes=memory.peak + parameters,
                resident_bytes=parameters,
                workspace_bytes=memory.largest_convolution,
                flops=memory.flops,
                parameter_bytes=parameters,
            )


def _forward_outputs(program: Program, stage: Stage, job: _Job) -> list[Tensor]:
    """What a micro-batch leaves behind: what is sent to other stages, and the losses of heads."""
    state = _entering(stage, job)
    arrived = {id(tensor) for tensor in (state.activation, *state.stashed.values())}
    with autocast(job.precision):
        state = program.run(state, checkpointing=job.checkpointing)
    losses = list(_losses(state.logits, job))
    leaving = [state.activation, *state.stashed.values()]
    return [tensor for tensor in leaving if id(tensor) not in arrived and tensor.requires_grad] + losses


def _entering(stage: Stage, job: _Job) -> RunState:
    """What a stage is given, in memory of its own."""
    if stage.blocks.start == 0:
        return entering_state(job.network, _made(_image_form(job)))
    profile = _profile(_one_micro_batch(job))
    return RunState(
        activation=_made(profile.activations[stage.blocks.start]),
        stashed={name: _made(profile.stashes[name]) for name in stage.inputs},
    )


def _image_form(job: _Job) -> Form:
    shape = (job.samples, job.network.input_channels, *job.patch)
    return Form(shape=shape, dtype=torch.float32, needs_gradient=False)


def _made(form: Form) -> Tensor:
    tensor = torch.empty(form.shape, dtype=form.dtype).contiguous(memory_format=torch.channels_last_3d)
    return tensor.requires_grad_(form.needs_gradient)


def _loss_keys(training: Training) -> Training:
    """The same for settings that differ in other keys, so that they share what is simulated."""
    keys = ("loss", "batch_dice", "focal_gamma", "topk_percent")
    return Training(**{key: getattr(training, key) for key in keys})


def _losses(logits: dict[str, Tensor], job: _Job) -> Iterator[Tensor]:
    loss = build_loss(job.training)
    for level in logits.values():
        target = torch.zeros(level.shape[0], *level.shape[2:], dtype=torch.int64)
        yield loss(level.float(), target)
