"""Memory and FLOPs of the stages of a pipeline: the block program cut into contiguous parts, each run on its own.

What runs is the code of training (`training/pipeline.py`), on fake tensors and over a wire without a far end. A first
cut is the one whose most expensive stage is cheapest by what the blocks keep for the backward pass. `least_peak_cut`
goes on from there, by the peak memory of stages that are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.study import Parallel, Training
from megavoxel.distributed.line import Line
from megavoxel.distributed.wire import Wire, Work
from megavoxel.forecast.cuts import balanced_cuts, cheapest_cut, filled_cut
from megavoxel.forecast.step import (
    CPU,
    HashedPlan,
    StepCost,
    anonymous,
    autocast,
    cost_of_step,
    float32_bytes,
    new_run,
)
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.program import Block, Program
from megavoxel.network.stages import ACTIVATION, Form, Stage, Transfer, cut_into_stages, form_of, stages_with_heads
from megavoxel.network.unet import cumulative_strides, entering_state, program_inputs, unet_blocks
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.topology import padded_patch
from megavoxel.training.optimizer import build_optimizer

COPIES_OF_WEIGHTS = 3
"""Weights, gradients and one momentum, for the choice of the cut."""
MOST_SIMULATED = 3
"""Micro-batches that are run; each further one adds what the last of these did."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a stage depends on."""

    hashed: HashedPlan
    """With the batch of one pipeline, and no `parallel` keys but `micro_batches` and `checkpointing`."""
    precision: str


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

    def form(self, transfer: Transfer, stages: Sequence[Stage]) -> Form:
        """What a transfer between some stages looks like."""
        if transfer.name == ACTIVATION:
            return self.activations[stages[transfer.target].blocks.start]
        return self.stashes[transfer.name]


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
    return [_part_cost(job, begin, end) for begin, end in zip(cut, ends, strict=True)]


def least_peak_cut(
    plan: Plan, *, stages: int, samples: int, micro_batches: int, checkpointing: bool, precision: str
) -> tuple[int, ...]:
    """First block of each stage, so that the largest peak of a stage is as small as can be.

    From the first cut on, stages are filled from the front up to less than the largest peak so far, until that needs
    more stages than there are. Of the cuts with that peak it is the one that sends the fewest bytes. Exact as long as a
    stage with a block more never needs less. Arguments as for `stage_costs`.
    """
    job = _job(plan, samples, micro_batches, checkpointing, precision)
    count = len(unet_blocks(plan.network))

    @cache
    def peak(begin: int, end: int) -> int:
        return _part_cost(job, begin, end).peak_bytes

    found = _first_cut(job, stages)
    while found is not None:
        best = found
        limit = max(peak(begin, end) for begin, end in zip(best, (*best[1:], count), strict=True))
        found = filled_cut(peak, count, stages, limit)
    return cheapest_cut(peak, partial(_sent_bytes, _one_micro_batch(job)), count, best, limit + 1)


def _job(plan: Plan, samples: int, micro_batches: int, checkpointing: bool, precision: str) -> _Job:
    parallel = Parallel(micro_batches=micro_batches, checkpointing=checkpointing)
    own = replace(anonymous(plan), batch=samples * micro_batches, parallel=parallel)
    return _Job(hashed=HashedPlan(own), precision=precision)


def begins_of(
    plan: Plan, *, stages: int, samples: int, micro_batches: int, checkpointing: bool, precision: str
) -> tuple[int, ...]:
    """First block of each stage: the plan's, where it has as many, else the first cut. Arguments: see `stage_costs`."""
    if len(plan.stages) == stages:
        return plan.stages
    return _first_cut(_job(plan, samples, micro_batches, checkpointing, precision), stages)


@cache
def _first_cut(job: _Job, stages: int) -> tuple[int, ...]:
    """By what each block keeps for the backward pass."""
    profile = _profile(_one_micro_batch(job))
    blocks = zip(profile.kept, profile.weights, strict=True)
    micro_batches = job.hashed.plan.parallel.micro_batches
    return tuple(balanced_cuts([kept * micro_batches + COPIES_OF_WEIGHTS * own for kept, own in blocks], stages))


@cache
def _part_cost(job: _Job, begin: int, end: int) -> StepCost:
    """The cost of some consecutive blocks, from the first few micro-batches where there are many."""
    micro_batches = job.hashed.plan.parallel.micro_batches
    if micro_batches <= MOST_SIMULATED:
        return _run_part(job, begin, end)
    fewer, most = (
        _run_part(_with_micro_batches(job, count), begin, end) for count in (MOST_SIMULATED - 1, MOST_SIMULATED)
    )
    more = micro_batches - MOST_SIMULATED
    return replace(
        most,
        peak_bytes=most.peak_bytes + more * (most.peak_bytes - fewer.peak_bytes),
        flops=most.flops + more * (most.flops - fewer.flops),
    )


def _one_micro_batch(job: _Job) -> _Job:
    """What a profile depends on, so that one serves all ways of running a step."""
    job = _with_micro_batches(job, 1)
    plan = replace(job.hashed.plan, parallel=Parallel(), training=Training())
    return replace(job, hashed=HashedPlan(plan))


def _with_micro_batches(job: _Job, count: int) -> _Job:
    """The same with another number of micro-batches of the same size."""
    plan = job.hashed.plan
    samples = plan.batch // plan.parallel.micro_batches
    plan = replace(plan, batch=samples * count, parallel=replace(plan.parallel, micro_batches=count))
    return replace(job, hashed=HashedPlan(plan))


@cache
def _profile(job: _Job) -> _Profile:
    plan = job.hashed.plan
    with FakeTensorMode(), MemoryTracker() as memory, autocast(job.precision):
        state = entering_state(plan.network, _image(plan))
        forms = {name: form_of(tensor) for name, tensor in state.stashed.items()}
        activations, kept, weights = [], [], []
        for block in unet_blocks(plan.network):
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
    """A real step of the stage that holds these blocks, the other stages being silent."""
    profile = _profile(_one_micro_batch(job))
    with FakeTensorMode():
        run = new_run(job.hashed.plan, job.precision)
        blocks = list(run.network.program)
        stages = _cut_around(run.plan.network, blocks, begin, end)
        stage = next(stage for stage in stages if stage.blocks.start == begin)
        run.network.program = stage.program(blocks)
        run.optimizer = build_optimizer(run.network.parameters(), run.plan.training)
        run.pipeline = Line(
            stage=stage,
            stages=len(stages),
            head_stages=stages_with_heads(blocks, stages),
            forms={transfer: profile.form(transfer, stages) for transfer in (*stage.receives, *stage.sends)},
            replicas=run.group,
            wire=_SilentWire(0, CPU),
            parameter_names=(),
        )
        return cost_of_step(run)


def _sent_bytes(job: _Job, begin: int, end: int) -> int:
    """Bytes of a micro-batch that leave a stage of these blocks; as many come back as gradients."""
    profile, network = _profile(job), job.hashed.plan.network
    with FakeTensorMode():
        stages = _cut_around(network, unet_blocks(network), begin, end)
    stage = next(stage for stage in stages if stage.blocks.start == begin)
    return sum(profile.form(transfer, stages).nbytes for transfer in stage.sends)


def _cut_around(network: NetworkPlan, blocks: Sequence[Block], begin: int, end: int) -> list[Stage]:
    """A stage of the blocks from `begin` to before `end`, and one each of those before and behind it."""
    return cut_into_stages(blocks, program_inputs(network), sorted({0, begin, end} - {len(blocks)}))


class _SilentWire(Wire):
    """What is sent takes memory until the sender knows that it has arrived, and what is received before it comes."""

    def _begin_to_send(self, *_: object) -> Work:
        return _Silent()

    def _begin_to_receive(self, *_: object) -> Work:
        return _Silent()


class _Silent:
    def wait(self) -> None:
        """Nothing to wait for."""

    def is_completed(self) -> bool:
        """As with gloo."""
        return False


def _image(plan: Plan) -> Tensor:
    """A micro-batch as the network is given it."""
    patch = padded_patch(plan.patch, cumulative_strides(plan.network)[-1])
    return torch.empty(
        plan.batch // plan.parallel.micro_batches, plan.network.input_channels, *patch,
        memory_format=torch.channels_last_3d,
    )  # fmt: skip
