"""Memory and FLOPs of one training step and of one window of inference: the real code, on fake tensors.

Fake CPU tensors stand for those of any device. Autocast on the CPU and on a GPU differ in few operations, none of which
a network of ours has: convolutions run in the low precision, norms and joins follow their inputs, the loss is computed
in float32.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.setting import Parallel
from megavoxel.distributed.exchange import SilentExchange
from megavoxel.distributed.group import Group
from megavoxel.distributed.space import SpaceMember
from megavoxel.distributed.spatial import in_tiles
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import BYTES_OF_FLOAT32, MemoryTracker
from megavoxel.network.program import with_channels_last
from megavoxel.network.segmentation import SegmentationNetwork, parameter_count
from megavoxel.network.work import Work
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.tiling import Tiling, even_tiling
from megavoxel.planning.topology import shape_of
from megavoxel.training.annotation import annotation_table, target_dtype
from megavoxel.training.on_device import DeviceAugmenter, largest_raw_batch
from megavoxel.training.optimizer import build_optimizer, trained_weights
from megavoxel.training.outputs import outputs_of
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

CPU = torch.device("cpu")
GIB = 2**30
ONE_NETWORK = 1
MOST_SAMPLES = 16
"""Samples of a step that is run; what more of them cost follows."""
KEYS_OF_A_STEP = (
    "optimizer", "momentum", "weight_decay", "loss", "batch_dice", "focal_gamma", "topk_percent", "freeze_encoder",
    "dice_background", "dice_class_weights", "compile",
    "optimizer_kernels",
)  # fmt: skip
"""Keys of `training` on which memory and FLOPs of a step depend; settings that differ in others share a forecast."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one device does for its share of a step, or for one window."""

    peak_bytes: int
    """Most memory at any time, as PyTorch's allocator counts it: weights, gradients, optimiser, activations."""
    resident_bytes: int
    """The part of it that stays between steps: weights and optimiser."""
    workspace_bytes: int
    """Input and output of the largest convolution in float32: the scale of a convolution's own workspace."""
    work: Work
    """What is computed, read and written."""
    parameter_bytes: int
    """Weights in float32."""
    exchanged_bytes: int = 0
    """What the device sends to those that hold the other tiles of its patches; with tiles in turn, what goes between it
    and host memory."""
    host_bytes: int = 0
    """What lies in host memory meanwhile, windows and logits included; 0 where they lie on the device."""

    @property
    def flops(self) -> int:
        """Floating-point operations of convolutions."""
        return round(sum(self.work.flops.values()))

    @property
    def touched_bytes(self) -> int:
        """What operations other than convolutions read and write."""
        return round(sum(self.work.touched.values()))


def training_step(plan: Plan, *, samples: int, parallel: Parallel, precision: str) -> StepCost:
    """One optimiser step on one device.

    Args:
        plan: the setting; its own batch and parallel keys do not count.
        samples: that go through the network together.
        parallel: only `data`, `space`, `accumulate` and `checkpointing` count.
        precision: `float32`, `bfloat16` or `float16`.
    """
    keys = Parallel(checkpointing=parallel.checkpointing, space=parallel.space)
    cost = _training_step(StepKey(replace(anonymous(plan), parallel=keys, batch=samples), precision))
    cost = repeated(cost, parallel)
    if plan.training.batch_dice and parallel.accumulate > 1:
        # Its sums over all parts take a forward pass of their own (`training/step.py`).
        forward = window(plan, networks=ONE_NETWORK, precision=precision)
        passes = samples * parallel.accumulate * largest_share(plan, parallel)
        cost = replace(cost, work=cost.work + round(forward.work * passes))
    return cost


def repeated(cost: StepCost, parallel: Parallel) -> StepCost:
    """A step that takes `parallel.accumulate` passes of what `cost` describes.

    From the second pass on, all gradients are there at the peak. Where processes share the batch they are there from
    the first: the buffer that they are sent from is made before the step, and they lie in it (`replicated` in
    `training/step.py`). Tiles have no such buffer.
    """
    has_buffer = parallel.data > 1 and parallel.tiles == 1
    return replace(
        cost,
        peak_bytes=cost.peak_bytes + (cost.parameter_bytes if parallel.accumulate > 1 or has_buffer else 0),
        work=cost.work * parallel.accumulate,
        exchanged_bytes=cost.exchanged_bytes * parallel.accumulate,
    )


def largest_tiling(plan: Plan, parallel: Parallel) -> Tiling:
    """A patch of the plan in tiles, seen from the process that holds the largest of them."""
    tiling = even_tiling(plan.patch, shape_of(plan.network).divisor, parallel.space)
    return replace(tiling, rank=tiling.largest)


def largest_share(plan: Plan, parallel: Parallel) -> float:
    """Share of a patch's voxels in the largest of its tiles."""
    return largest_tiling(plan, parallel).share


def anonymous(plan: Plan) -> Plan:
    """The plan without names, notes and stages, which say nothing about memory."""
    return replace(plan, study="", setting="", dataset="", seed=0, notes=(), stages=())


def window(plan: Plan, size: tuple[int, ...] | None = None, *, networks: int, precision: str) -> StepCost:
    """The forward pass of one window by `networks` networks in turn, no gradients; None: a window like the patch."""
    return with_networks(_window(plan.network, tuple(size or plan.patch), precision), networks)


def with_networks(one: StepCost, networks: int) -> StepCost:
    """The cost of a window for so many networks in turn, from that for one."""
    others = networks - ONE_NETWORK
    return replace(
        one,
        peak_bytes=one.peak_bytes + others * one.parameter_bytes,
        resident_bytes=networks * one.parameter_bytes,
        work=networks * one.work,
        exchanged_bytes=networks * one.exchanged_bytes,
    )


def optimizer_bytes(plan: Plan, parameter_bytes: int) -> int:
    """State of the optimiser: one number per weight (`sgd` with momentum, `rmsprop`) or two (`adamw`, `adam`)."""
    numbers = {"sgd": int(plan.training.momentum > 0), "rmsprop": 1, "adam": 2, "adamw": 2}
    return parameter_bytes * numbers[plan.training.optimizer]


def new_run(plan: Plan, precision: str, network: SegmentationNetwork | None = None) -> Run:
    """A run without data, of a network of its own where none is given; to be made inside `FakeTensorMode`."""
    if network is None:
        network = with_channels_last(SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing))
    compile_norms(network, compiled=plan.training.compile is True)  # where it is open: plain ones, which hold more
    space = None
    if plan.parallel.tiles > 1:
        exchange = SilentExchange(largest_tiling(plan, plan.parallel))
        in_tiles(network, exchange)
        space = SpaceMember(exchange=exchange, samples=exchange.group, sharers=Group())
    weighted = plan.training.class_weights != "none"
    return Run(
        plan=plan,
        device=CPU,
        precision=Precision(name=precision, reason="forecast"),
        network=network,
        optimizer=build_optimizer(trained_weights(network, plan.training), plan.training),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        space=space,
        class_weights=torch.ones(plan.network.classes) if weighted else None,
        annotated=annotation_table(plan),
        outputs=outputs_of(plan),
    )


def autocast(precision: str) -> AbstractContextManager:
    """The context in which a network runs forward on fake CPU tensors."""
    return Precision(name=precision, reason="forecast").autocast(CPU)


def float32_bytes(network: nn.Module) -> int:
    """Bytes of the weights."""
    return parameter_count(network) * BYTES_OF_FLOAT32


class Keyed:
    """A plan as the key of a cache, equal to another with the same `key`; plans themselves have no hash."""

    def __init__(self, plan: Any, key: Hashable) -> None:
        self.plan, self.key = plan, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class StepKey(Keyed):
    """A plan and a precision, equal where a step is the same."""

    def __init__(self, plan: Plan, precision: str) -> None:
        self.precision = precision
        expansion = (plan.expanded_patch, plan.expansion_order)
        training = (*(getattr(plan.training, key) for key in KEYS_OF_A_STEP), plan.training.class_weights != "none")
        rules = plan.preprocessing
        overlapping = None if rules.regions is None else rules.members
        masked = (bool(plan.unannotated), target_dtype(plan), rules.ignored_class, overlapping)
        augmented = plan.augmentation if plan.augmentation.on_device else None
        step = (plan.network, plan.patch, expansion, plan.batch, plan.parallel, training, masked, augmented)
        super().__init__(plan, (*step, precision))


@cache
def _training_step(key: StepKey) -> StepCost:
    if key.plan.batch > MOST_SAMPLES:
        fewer = [replace(key.plan, batch=samples) for samples in (MOST_SAMPLES // 2, MOST_SAMPLES)]
        return _extended(*(_training_step(StepKey(plan, key.precision)) for plan in fewer), key.plan.batch)
    with FakeTensorMode():
        return cost_of_step(new_run(key.plan, key.precision))


def _extended(half: StepCost, whole: StepCost, samples: int) -> StepCost:
    """The cost of a large batch, from that of `MOST_SAMPLES` and of half of them: each more sample costs the same.

    Norms are worked out sample by sample, which takes minutes of a hundred slices.
    """
    more = (samples - MOST_SAMPLES) / (MOST_SAMPLES // 2)
    own = {field.name: getattr(whole, field.name) for field in fields(StepCost)}
    return StepCost(**{key: value + round(more * (value - getattr(half, key))) for key, value in own.items()})


def cost_of_step(run: Run) -> StepCost:
    """One step of a run without data; to be called inside `FakeTensorMode`."""
    with MemoryTracker() as memory:
        memory.include(run.network.state_dict().values())
        make_optimizer_state(run)
        resident = memory.live
        memory.reset_peak()
        image, target = inputs_of_step(run)
        before = memory.work
        train_step(run, image, target)
        return StepCost(
            peak_bytes=memory.peak,
            resident_bytes=resident,
            workspace_bytes=memory.largest_convolution,
            work=memory.work - before,
            parameter_bytes=float32_bytes(run.network),
            exchanged_bytes=0 if run.space is None else run.space.exchange.sent_bytes,
        )


def inputs_of_step(run: Run) -> tuple[Tensor, Tensor]:
    """Image and target of a step; of a pipeline only the first stage reads them."""
    plan = run.plan
    if run.pipeline is not None and run.pipeline.stage.number > 0:
        return torch.empty(0), torch.empty(0)
    tiling = None if run.space is None else run.space.exchange.tiling
    if plan.augmentation.on_device:
        made = DeviceAugmenter(plan, run.device).batch(largest_raw_batch(plan, plan.batch if tiling is None else 1))
        if tiling is None:
            return made
        del made  # a whole patch, which is sent in tiles before the step
    shape = plan.sampled_patch if tiling is None else tiling.shape_of(tiling.rank)
    image = torch.zeros(plan.batch, plan.network.input_channels, *shape)
    return image, torch.zeros(plan.batch, *shape, dtype=target_dtype(plan))


def make_optimizer_state(run: Run) -> None:
    """Makes the optimiser's state, which the first step of a run leaves behind."""
    for parameter in run.network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


@cache
def _window(plan: NetworkPlan, size: tuple[int, ...], precision: str) -> StepCost:
    """The cost for one network, which many ways of running a setting share."""
    with FakeTensorMode(), MemoryTracker() as memory, torch.no_grad():
        network = SegmentationNetwork(plan).eval()
        image = torch.zeros(1, plan.input_channels, *size)
        memory.reset_peak()
        before = memory.work
        with autocast(precision):
            network(image)
        return StepCost(
            peak_bytes=memory.peak,
            resident_bytes=float32_bytes(network),
            workspace_bytes=memory.largest_convolution,
            work=memory.work - before,
            parameter_bytes=float32_bytes(network),
        )


def gib(value: float) -> str:
    """Memory in words, with digits enough to show that it is above a limit: `0.428 GiB`, `5.86 GiB`, `16 GiB`."""
    return f"{round(value, 3 if value < 10 else 2):g} GiB"
