"""What the stages of a pipeline need, from their own code on fake tensors: for a training step, and for a window of
prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.training import Training
from megavoxel.distributed.pipeline import Peers, PipelineMember
from megavoxel.distributed.pipeline import Work as Transmission
from megavoxel.forecast.step import (
    CPU,
    StepCost,
    StepKey,
    autocast,
    float32_bytes,
    inputs_of_step,
    make_optimizer_state,
    new_run,
    optimizer_bytes,
)
from megavoxel.network.architectures import whole_program
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.partition import (
    ACTIVATION,
    PipelineStage,
    TensorSpec,
    Transfer,
    cut_into_stages,
    spec_of,
    transfer_specs,
)
from megavoxel.network.program import Program, RunState, with_channels_last
from megavoxel.network.segmentation import SegmentationNetwork, computed_again, entering_state
from megavoxel.network.work import Work
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.topology import shape_of
from megavoxel.training.pipeline import forward_and_backward
from megavoxel.training.run import Run
from megavoxel.training.step import update_weights


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One run of the whole program."""

    kept: tuple[int, ...]
    """Bytes that each block keeps for the backward pass of a micro-batch."""
    shared: tuple[int, ...]
    """The part of it that all micro-batches share: weights in the precision of the convolutions."""
    risen: tuple[int, ...]
    """Most bytes that are there while it runs forward, beside what was there before."""
    weights: tuple[int, ...]
    """Bytes of each block's weights."""
    activations: tuple[TensorSpec, ...]
    """What each block is given."""
    stashes: dict[str, TensorSpec]

    def spec(self, transfer: Transfer, stages: Sequence[PipelineStage]) -> TensorSpec:
        """What a transfer between some stages looks like."""
        if transfer.name == ACTIVATION:
            return self.activations[stages[transfer.target].blocks.start]
        return self.stashes[transfer.name]


@dataclass(frozen=True, kw_only=True)
class FakeNetwork:
    """A network whose weights are fake tensors, to be run in their mode."""

    mode: FakeTensorMode
    network: SegmentationNetwork
    program: Program
    """The whole of it, whichever blocks the network has at the time."""


@cache
def fake_network(plan: NetworkPlan) -> FakeNetwork:
    """The network of a plan, made once for all who ask."""
    mode = FakeTensorMode()
    with mode:
        network = with_channels_last(SegmentationNetwork(plan))
    return FakeNetwork(mode=mode, network=network, program=network.program)


def profile_of(key: StepKey) -> Profile:
    """The profile for a step; it depends on little of the key, so that many ways of running a step share one."""
    key = with_micro_batches(key, 1)
    return _profile(StepKey(replace(key.plan, training=Training()), key.precision))


def with_micro_batches(key: StepKey, count: int) -> StepKey:
    """The key of a step with another number of micro-batches of the same size."""
    plan = key.plan
    samples = plan.batch // plan.parallel.micro_batches
    plan = replace(plan, batch=samples * count, parallel=replace(plan.parallel, micro_batches=count))
    return StepKey(plan, key.precision)


@cache
def _profile(key: StepKey) -> Profile:
    plan, fake = key.plan, fake_network(key.plan.network)
    compile_norms(fake.program, compiled=plan.training.compile is True)
    with fake.mode, MemoryTracker() as memory:
        state = fake.network.enter(_image(plan))
        specs = {name: spec_of(tensor) for name, tensor in state.stashed.items()}
        again = computed_again(fake.program, plan.parallel.checkpointing)
        activations, kept, shared, risen, weights = [], [], [], [], []
        for block in fake.program:
            activations.append(spec_of(state.activation))
            before, waiting = memory.live, dict(state.stashed)
            memory.reset_peak()
            inputs, outputs = set(waiting), set(waiting) - set(block.pops) | set(block.stashes)
            with autocast(key.precision):
                state = Program([block], inputs=inputs, outputs=outputs).run(state, again=again)
            state.logits.clear()
            specs |= {name: spec_of(state.stashed[name]) for name in outputs - inputs}
            kept.append(memory.live - before)
            shared.append(bytes_of_casts(block, key))
            risen.append(memory.peak - before)
            weights.append(float32_bytes(block))
    return Profile(
        kept=tuple(kept), shared=tuple(shared), risen=tuple(risen), weights=tuple(weights),
        activations=tuple(activations), stashes=specs,
    )  # fmt: skip


def bytes_of_casts(module: nn.Module, key: StepKey) -> int:
    """Bytes of the copies of weights in a lower precision that all micro-batches share for their backward passes."""
    if key.precision == "float32":
        return 0
    size = Precision(name=key.precision, reason="forecast").dtype.itemsize
    # Those of convolutions and linear layers. Norms stay in float32, and no backward pass needs a bias.
    return sum(weights.numel() * size for weights in module.parameters() if weights.dim() > 1)


def _image(plan: Plan) -> Tensor:
    """A micro-batch as the network is given it."""
    patch = shape_of(plan.network).padded(plan.patch)
    return torch.empty(
        plan.batch // plan.parallel.micro_batches, plan.network.input_channels, *patch,
        memory_format=torch.channels_last_3d,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Half:
    """All micro-batches forward, or all backward."""

    peak_bytes: int
    kept_bytes: int
    """Kept per micro-batch when all have gone forward; a sent tensor counts until it is known to have arrived."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """A step of a stage up to the update of its weights."""

    forward: Half
    backward: Half
    resident_bytes: int
    workspace_bytes: int
    work: Work
    parameter_bytes: int


@cache
def run_passes(key: StepKey, begin: int, end: int) -> Passes:
    """Forward and backward through the stage that holds these blocks, the other stages being silent."""
    plan, fake, profile = key.plan, fake_network(key.plan.network), profile_of(key)
    with fake.mode, MemoryTracker() as memory:
        peers = SilentPeers(memory)
        run = run_of_stage(key, profile, begin, end, peers)
        memory.include(run.network.state_dict().values())
        weights = float32_bytes(run.network)
        state = optimizer_bytes(plan, weights)
        resident = memory.live + state
        memory.reset_peak()
        image, target = inputs_of_step(run)
        before, worked = memory.peak, memory.work  # of inputs, more than is left of them where the device augments
        memory.reset_peak()
        forward_and_backward(run, image, target)
        shared = bytes_of_casts(run.network, key)

        def half(peak: int, live: int) -> Half:
            kept = (live + state - resident - shared) // plan.parallel.micro_batches
            return Half(peak_bytes=peak + state, kept_bytes=kept)

        passes = Passes(
            forward=half(max(before, peers.peak_forward), peers.live_forward),
            backward=half(memory.peak, peers.live_backward),
            resident_bytes=resident,
            workspace_bytes=memory.largest_convolution,
            work=memory.work - worked,
            parameter_bytes=weights,
        )
        run.network.zero_grad(set_to_none=True)  # the weights serve other stages as well
    return passes


@cache
def update_peak(key: StepKey, begin: int, end: int) -> int:
    """Most memory while the optimiser takes its step."""
    fake, profile = fake_network(key.plan.network), profile_of(key)
    with fake.mode, MemoryTracker() as memory:
        run = run_of_stage(key, profile, begin, end, SilentPeers(memory))
        memory.include(run.network.state_dict().values())
        make_optimizer_state(run)
        memory.reset_peak()
        for parameter in run.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        update_weights(run)
        run.network.zero_grad(set_to_none=True)
    return memory.peak


def run_of_stage(key: StepKey, profile: Profile, begin: int, end: int, peers: Peers) -> Run:
    """A run without data of the stage that holds these blocks."""
    plan, fake = key.plan, fake_network(key.plan.network)
    stages = _cut_around(plan.network, begin, end)
    stage = next(stage for stage in stages if stage.blocks.start == begin)
    fake.network.program = stage.part_of(fake.program)
    fake.network.again = computed_again(fake.program, plan.parallel.checkpointing)
    run = new_run(plan, key.precision, fake.network)
    run.pipeline = PipelineMember(
        stage=stage,
        stages=tuple(stages),
        specs={transfer: profile.spec(transfer, stages) for transfer in (*stage.receives, *stage.sends)},
        replicas=run.group,
        peers=peers,
        parameter_names=(),
    )
    return run


def sent_bytes(key: StepKey, begin: int, end: int) -> int:
    """Bytes of a micro-batch that leave a stage of these blocks; as many come back as gradients."""
    profile, stages = profile_of(key), _cut_around(key.plan.network, begin, end)
    stage = next(stage for stage in stages if stage.blocks.start == begin)
    return sum(profile.spec(transfer, stages).nbytes for transfer in stage.sends)


def _cut_around(network: NetworkPlan, begin: int, end: int) -> list[PipelineStage]:
    """A stage of the blocks from `begin` to before `end`, and one each of those before and behind it."""
    program = fake_network(network).program
    return cut_into_stages(program, sorted({0, begin, end} - {len(program)}))


class SilentPeers(Peers):
    """Peers that never answer: a sent tensor takes memory until it has arrived, a received one before it arrives."""

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

    def _begin_to_send(self, *_: object) -> Transmission:
        return SilentWork()

    def _begin_to_receive(self, *_: object) -> Transmission:
        return SilentWork()


class SilentWork:
    """A tensor that is never on its way."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def is_completed(self) -> bool:
        """Never known before `wait`, as with gloo."""
        return False


def staged_window(
    plan: NetworkPlan, begins: Sequence[int], size: Sequence[int], *, networks: int, precision: str
) -> list[StepCost]:
    """What each stage needs while a window goes through.

    Args:
        begins: first block of each stage.
        size: voxels per axis of the window.
        networks: that are held, and go one after the other.
        precision: of the forward pass.
    """
    image = (1, plan.input_channels, *size)
    specs = transfer_specs(plan, begins, image, Precision(name=precision, reason="forecast"), CPU)
    costs = []
    with FakeTensorMode(), torch.no_grad():
        whole = whole_program(plan)
        for stage in cut_into_stages(whole, begins):
            program = stage.part_of(whole)
            with MemoryTracker() as memory, autocast(precision):
                program.run(_entering(plan, stage, specs, image))
            weights = float32_bytes(program)
            costs.append(
                StepCost(
                    peak_bytes=memory.peak + networks * weights,
                    resident_bytes=networks * weights,
                    workspace_bytes=memory.largest_convolution,
                    work=networks * memory.work,
                    parameter_bytes=weights,
                )
            )
    return costs


def _entering(
    plan: NetworkPlan, stage: PipelineStage, specs: dict[Transfer, TensorSpec], image: Sequence[int]
) -> RunState:
    """The state that a stage begins with, in memory of its own."""
    if stage.number == 0:
        return entering_state(plan, torch.empty(image))
    arrived = {way.name: torch.empty(specs[way].shape, dtype=specs[way].dtype) for way in stage.receives}
    return RunState(activation=arrived.pop(ACTIVATION), stashed=arrived)
