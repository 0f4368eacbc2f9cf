"""Memory and FLOPs of the stages of a pipeline: the block program cut into contiguous parts, each run on its own.

A stage runs all micro-batches forward and then all backward (GPipe, Huang et al., arXiv:1811.06965). The cut is the one
whose most expensive stage is cheapest by what the blocks keep for the backward pass; each stage of it is then run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.study import Training
from megavoxel.forecast.step import StepCost, autocast, float32_bytes, optimizer_bytes
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.program import Block, Program, RunState
from megavoxel.network.unet import cumulative_strides, entering_state, unet_blocks
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


def stage_costs(
    plan: Plan, *, stages: int, samples: int, micro_batches: int, checkpointing: bool, precision: str
) -> list[StepCost]:
    """Memory and FLOPs of each stage for a whole step, in order; `stages` at most the number of blocks."""
    job = _Job(
        network=plan.network,
        patch=padded_patch(plan.patch, cumulative_strides(plan.network)[-1]),
        samples=samples,
        micro_batches=micro_batches,
        checkpointing=checkpointing,
        precision=precision,
        training=_loss_keys(plan.training),
    )
    return [_with_optimizer(plan, cost) for cost in _stage_costs(job, stages)]


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


@cache
def _stage_costs(job: _Job, stages: int) -> list[StepCost]:
    with FakeTensorMode():
        blocks = unet_blocks(job.network)
        image = torch.zeros(job.samples, job.network.input_channels, *job.patch)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        kept, borders = _forward(blocks, image, job)
        begins = balanced_cuts(kept, stages)
        ends = [*begins[1:], len(blocks)]
        return [_stage(blocks[begin:end], borders[begin], job) for begin, end in zip(begins, ends, strict=True)]


def _stage(blocks: Sequence[Block], entering: RunState, job: _Job) -> StepCost:
    """The cost of a stage, from the first few micro-batches where there are many."""
    if job.micro_batches <= MOST_SIMULATED:
        return _run_stage(blocks, entering, job)
    fewer, most = (
        _run_stage(blocks, entering, replace(job, micro_batches=count))
        for count in (MOST_SIMULATED - 1, MOST_SIMULATED)
    )
    more = job.micro_batches - MOST_SIMULATED
    return replace(
        most,
        peak_bytes=most.peak_bytes + more * (most.peak_bytes - fewer.peak_bytes),
        flops=most.flops + more * (most.flops - fewer.flops),
    )


def _forward(blocks: Sequence[Block], image: Tensor, job: _Job) -> tuple[list[float], list[RunState]]:
    """Bytes that each block keeps for the backward pass, and what enters it."""
    state, kept, borders = entering_state(job.network, image), [], []
    with MemoryTracker() as memory, autocast(job.precision):
        for block in blocks:
            borders.append(RunState(activation=state.activation, stashed=dict(state.stashed)))
            before = memory.live
            state = _part([block], borders[-1]).run(state)
            state.logits.clear()
            activations = (memory.live - before) * job.micro_batches
            kept.append(float(activations + COPIES_OF_WEIGHTS * float32_bytes(block)))
    return kept, borders


def _part(blocks: Sequence[Block], entering: RunState) -> Program:
    """A program of some of the blocks, given what is stashed before them."""
    names = set(entering.stashed)
    for block in blocks:
        names -= set(block.pops)
        names |= {block.stash} - {None}
    return Program(blocks, inputs=entering.stashed, outputs=names)


def _run_stage(blocks: Sequence[Block], entering: RunState, job: _Job) -> StepCost:
    program = _part(blocks, entering)
    with MemoryTracker() as memory:
        held = [output for _ in range(job.micro_batches) for output in [_forward_outputs(program, entering, job)]]
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


def _forward_outputs(program: Program, entering: RunState, job: _Job) -> list[Tensor]:
    """What a micro-batch leaves behind: the activation and stash for the next stage, and the losses of heads."""
    state = RunState(
        activation=_received(entering.activation),
        stashed={name: _received(tensor) for name, tensor in entering.stashed.items()},
    )
    arrived = {id(tensor) for tensor in (state.activation, *state.stashed.values())}
    with autocast(job.precision):
        state = program.run(state, checkpointing=job.checkpointing)
    losses = list(_losses(state.logits, job))
    leaving = [state.activation, *state.stashed.values()]
    return [tensor for tensor in leaving if id(tensor) not in arrived and tensor.requires_grad] + losses


def _loss_keys(training: Training) -> Training:
    """The same for settings that differ in other keys, so that they share what is simulated."""
    keys = ("loss", "batch_dice", "focal_gamma", "topk_percent")
    return Training(**{key: getattr(training, key) for key in keys})


def _received(tensor: Tensor) -> Tensor:
    """A tensor as it arrives from another device: memory of its own, and a gradient to send back, but for the image."""
    return torch.empty_like(tensor).requires_grad_(tensor.requires_grad)


def _losses(logits: dict[str, Tensor], job: _Job) -> Iterator[Tensor]:
    loss = build_loss(job.training)
    for level in logits.values():
        target = torch.zeros(level.shape[0], *level.shape[2:], dtype=torch.int64)
        yield loss(level.float(), target)
