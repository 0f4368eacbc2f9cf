"""One run of a whole network's blocks on fake tensors: what each is given, keeps and weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.study import Training
from megavoxel.forecast.step import HashedPlan, autocast, float32_bytes
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.program import Block, Program
from megavoxel.network.stages import ACTIVATION, Form, Stage, Transfer, form_of
from megavoxel.network.unet import SegmentationNetwork, cumulative_strides, entering_state
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.topology import padded_patch


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage depends on."""

    hashed: HashedPlan
    """With the batch of one pipeline, and no `parallel` keys but `micro_batches` and `checkpointing`."""
    precision: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One run of the whole program."""

    kept: tuple[int, ...]
    """Bytes that each block keeps for the backward pass of a micro-batch."""
    shared: tuple[int, ...]
    """What of it all micro-batches share: weights in the precision of the convolutions."""
    risen: tuple[int, ...]
    """Most bytes that are there while it runs forward, beside what was there before."""
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


@dataclass(frozen=True, kw_only=True)
class FakeNetwork:
    """A network whose weights are fake tensors, to be run in their mode."""

    mode: FakeTensorMode
    network: SegmentationNetwork
    blocks: tuple[Block, ...]
    """All of them, whichever the network has at the time."""


@cache
def fake_network(plan: NetworkPlan) -> FakeNetwork:
    mode = FakeTensorMode()
    with mode:
        network = SegmentationNetwork(plan)
    return FakeNetwork(mode=mode, network=network, blocks=tuple(network.program))


def profile_of(job: Job) -> Profile:
    """The job's profile, which depends on little of it, so that one serves many ways of running a step."""
    job = with_micro_batches(job, 1)
    return _profile(replace(job, hashed=HashedPlan(replace(job.hashed.plan, training=Training()))))


def with_micro_batches(job: Job, count: int) -> Job:
    """The same with another number of micro-batches of the same size."""
    plan = job.hashed.plan
    samples = plan.batch // plan.parallel.micro_batches
    plan = replace(plan, batch=samples * count, parallel=replace(plan.parallel, micro_batches=count))
    return replace(job, hashed=HashedPlan(plan))


@cache
def _profile(job: Job) -> Profile:
    plan, fake = job.hashed.plan, fake_network(job.hashed.plan.network)
    with fake.mode, MemoryTracker() as memory:
        state = entering_state(plan.network, _image(plan))
        forms = {name: form_of(tensor) for name, tensor in state.stashed.items()}
        activations, kept, shared, risen, weights = [], [], [], [], []
        for block in fake.blocks:
            activations.append(form_of(state.activation))
            before, waiting = memory.live, dict(state.stashed)
            memory.reset_peak()
            inputs, outputs = set(waiting), set(waiting) - set(block.pops) | ({block.stash} - {None})
            with autocast(job.precision):
                state = Program([block], inputs=inputs, outputs=outputs).run(
                    state, checkpointing=plan.parallel.checkpointing
                )
            state.logits.clear()
            forms |= {name: form_of(state.stashed[name]) for name in outputs - inputs}
            kept.append(memory.live - before)
            shared.append(bytes_of_casts(block, job))
            risen.append(memory.peak - before)
            weights.append(float32_bytes(block))
    return Profile(
        kept=tuple(kept), shared=tuple(shared), risen=tuple(risen), weights=tuple(weights),
        activations=tuple(activations), stashes=forms,
    )  # fmt: skip


def bytes_of_casts(module: nn.Module, job: Job) -> int:
    """Bytes of the weights that are kept for the backward pass in a lower precision than their own, once for all."""
    if job.precision == "float32" or job.hashed.plan.parallel.checkpointing:
        return 0
    size = Precision(name=job.precision, reason="forecast").dtype.itemsize
    # Those of convolutions and linear layers. Norms stay in float32, and no backward pass needs a bias.
    return sum(weights.numel() * size for weights in module.parameters() if weights.dim() > 1)


def _image(plan: Plan) -> Tensor:
    """A micro-batch as the network is given it."""
    patch = padded_patch(plan.patch, cumulative_strides(plan.network)[-1])
    return torch.empty(
        plan.batch // plan.parallel.micro_batches, plan.network.input_channels, *patch,
        memory_format=torch.channels_last_3d,
    )  # fmt: skip
