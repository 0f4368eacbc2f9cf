"""A training step of one stage of a pipeline on fake tensors: its memory and FLOPs, and what it sends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from megavoxel.distributed.line import Line
from megavoxel.distributed.wire import Wire, Work
from megavoxel.forecast.profile import Job, Profile, bytes_of_casts, fake_network, profile_of
from megavoxel.forecast.step import CPU, float32_bytes, inputs_of_step, make_optimizer_state, new_run, optimizer_bytes
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.stages import Stage, cut_into_stages, stages_with_heads
from megavoxel.network.unet import program_inputs
from megavoxel.planning.plan import NetworkPlan
from megavoxel.training.pipeline import forward_and_backward
from megavoxel.training.run import Run
from megavoxel.training.update import update_weights


@dataclass(frozen=True, kw_only=True)
class Half:
    """All micro-batches forward, or all backward."""

    peak_bytes: int
    kept_bytes: int
    """Of a micro-batch, when all have gone forward; what was sent only counts before it is known to have arrived."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """A step of a stage up to the update of its weights."""

    forward: Half
    backward: Half
    resident_bytes: int
    workspace_bytes: int
    flops: int
    parameter_bytes: int


@cache
def run_passes(job: Job, begin: int, end: int) -> Passes:
    """Forward and backward through the stage that holds these blocks, the other stages being silent."""
    plan, fake, profile = job.hashed.plan, fake_network(job.hashed.plan.network), profile_of(job)
    with fake.mode, MemoryTracker() as memory:
        wire = SilentWire(memory)
        run = run_of_stage(job, profile, begin, end, wire)
        memory.include(run.network.state_dict().values())
        weights = float32_bytes(run.network)
        state = optimizer_bytes(plan, weights)
        resident = memory.live + state
        image, target = inputs_of_step(run)
        memory.reset_peak()
        forward_and_backward(run, image, target)
        shared = bytes_of_casts(run.network, job)

        def half(peak: int, live: int) -> Half:
            kept = (live + state - resident - shared) // plan.parallel.micro_batches
            return Half(peak_bytes=peak + state, kept_bytes=kept)

        passes = Passes(
            forward=half(wire.peak_forward, wire.live_forward),
            backward=half(memory.peak, wire.live_backward),
            resident_bytes=resident,
            workspace_bytes=memory.largest_convolution,
            flops=memory.flops,
            parameter_bytes=weights,
        )
        run.network.zero_grad(set_to_none=True)  # the weights serve other stages as well
    return passes


@cache
def update_peak(job: Job, begin: int, end: int) -> int:
    """Most memory while the optimiser takes its step."""
    fake, profile = fake_network(job.hashed.plan.network), profile_of(job)
    with fake.mode, MemoryTracker() as memory:
        run = run_of_stage(job, profile, begin, end, SilentWire(memory))
        memory.include(run.network.state_dict().values())
        make_optimizer_state(run)
        memory.reset_peak()
        for parameter in run.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        update_weights(run)
        run.network.zero_grad(set_to_none=True)
    return memory.peak


def run_of_stage(job: Job, profile: Profile, begin: int, end: int, wire: Wire) -> Run:
    """A run without data of the stage that holds these blocks."""
    plan, fake = job.hashed.plan, fake_network(job.hashed.plan.network)
    stages = _cut_around(plan.network, begin, end)
    stage = next(stage for stage in stages if stage.blocks.start == begin)
    fake.network.program = stage.program(fake.blocks)
    fake.network.checkpointing = plan.parallel.checkpointing
    run = new_run(plan, job.precision, fake.network)
    run.pipeline = Line(
        stage=stage,
        stages=len(stages),
        head_stages=stages_with_heads(fake.blocks, stages),
        forms={transfer: profile.form(transfer, stages) for transfer in (*stage.receives, *stage.sends)},
        replicas=run.group,
        wire=wire,
        parameter_names=(),
    )
    return run


def sent_bytes(job: Job, begin: int, end: int) -> int:
    """Bytes of a micro-batch that leave a stage of these blocks; as many come back as gradients."""
    profile, stages = profile_of(job), _cut_around(job.hashed.plan.network, begin, end)
    stage = next(stage for stage in stages if stage.blocks.start == begin)
    return sum(profile.form(transfer, stages).nbytes for transfer in stage.sends)


def _cut_around(network: NetworkPlan, begin: int, end: int) -> list[Stage]:
    """A stage of the blocks from `begin` to before `end`, and one each of those before and behind it."""
    blocks = fake_network(network).blocks
    return cut_into_stages(blocks, program_inputs(network), sorted({0, begin, end} - {len(blocks)}))


class SilentWire(Wire):
    """What is sent takes memory until the sender knows that it has arrived, and what is received before it comes."""

    def __init__(self, memory: MemoryTracker) -> None:
        super().__init__(0, CPU)
        self.memory = memory
        self.peak_forward: int | None = None
        """Most bytes up to the first backward pass, from where on the tracker begins anew."""
        self.live_forward = self.live_backward = 0
        """Bytes between the last forward and the first backward pass: before all that was sent is gone, and then."""

    def finish(self) -> None:
        """Called before the first backward pass, and behind the last one."""
        first, live = self.peak_forward is None, self.memory.live
        super().finish()
        if first:
            self.peak_forward, self.live_forward, self.live_backward = self.memory.peak, live, self.memory.live
            self.memory.reset_peak()

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
