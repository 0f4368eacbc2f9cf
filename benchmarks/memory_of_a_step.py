"""Memory of a training step: what recomputation saves and costs, and what a loss holds beyond its logits.

Peaks and what is held are counted on fake tensors, as the forecast does; seconds are those of a smaller step on real
ones, in turns. `theirs` is the step that keeps everything, and for losses the bound.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.made import made_plan
from benchmarks.measure import Row, paired_seconds, smaller_is_better
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Training
from megavoxel.forecast.step import autocast, new_run, training_step
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.loss import LOSSES, build_loss
from megavoxel.training.step import train_step
from megavoxel.training.supervision import supervised_loss

GIB = 2**30
PRECISION = "bfloat16"
SIZES = (((128, 128, 128), 4), ((64, 384, 384), 16))
"""Patches and classes of steps with nnU-Net's network of full width, batch 2."""
TIMED = ((64, 64, 64), 4, 5)
"""Patch, classes and levels of a step that is timed."""
REPEATS = 7


def recompute() -> list[Row]:
    """Held bytes, peak and seconds of a step with checkpointing of norms and of blocks."""
    rows = []
    for (patch, classes), way in ((size, way) for size in SIZES for way in ("norms", "blocks")):
        size = f"{' x '.join(map(str, patch))} x 2, {classes} classes, {PRECISION}, checkpointing of {way}"
        plain, again = (plan_of(patch, classes, checkpointing=kind) for kind in ("none", way))
        for title, measured in (("held after the forward pass", held), ("peak of a training step", peak)):
            rows.append(smaller_is_better(f"{title}: {size}", "keeping all", measured(again), measured(plain), "GiB"))
    patch, classes, levels = TIMED
    for way in ("norms", "blocks"):
        plain, again = (stepper(plan_of(patch, classes, levels, checkpointing=kind)) for kind in ("none", way))
        ours, theirs = paired_seconds(again, plain, repeats=REPEATS)
        title = f"seconds of a step: {patch[0]}³ x 2, {levels} levels, {PRECISION}, checkpointing of {way}"
        rows.append(smaller_is_better(title, "keeping all", ours, theirs, "s"))
    return rows


def loss_memory() -> list[Row]:
    """Bytes that each loss with its gradient takes beyond the logits, in units of these in float32."""
    rows = []
    for name in LOSSES:
        ours = beyond_logits(name)
        title = f"loss and gradient beyond the logits, 5 levels of 128³ x 2, 4 classes, float32: {name}"
        rows.append(smaller_is_better(title, "own bound", ours, 1.25, "logits"))
    return rows


def plan_of(patch: tuple[int, ...], classes: int, levels: int = 6, *, checkpointing: str) -> Plan:
    """A setting with nnU-Net's network of full width, batch 2."""
    labels = {f"label{number}": number for number in range(1, classes)}
    features = tuple(min(320, 32 * 2**level) for level in range(levels))
    plan = made_plan("step", patch=patch, labels=labels, features=features, batch=2)
    network = replace(plan.network, deep_supervision=True)
    return replace(plan, network=network, parallel=Parallel(checkpointing=checkpointing))


def peak(plan: Plan) -> float:
    """Tensors of a step at their peak, in GiB."""
    return training_step(plan, samples=2, parallel=plan.parallel, precision=PRECISION).peak_bytes / GIB


def held(plan: Plan) -> float:
    """Tensors behind the forward pass without weights, in GiB."""
    with FakeTensorMode(), MemoryTracker() as memory:
        network = SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing).train()
        before = memory.live
        with autocast(PRECISION):
            logits = network(torch.zeros(2, 1, *plan.patch))
        found = memory.live - before
        del logits
    return found / GIB


def stepper(plan: Plan):
    """A function that takes a step."""
    run = new_run(plan, PRECISION)
    run.network.to(memory_format=torch.channels_last_3d).train()
    image, target = torch.randn(2, 1, *plan.patch), torch.randint(0, plan.network.classes, (2, *plan.patch))
    return lambda: train_step(run, image, target)


def beyond_logits(name: str) -> float:
    """Most bytes that a loss takes beside logits and targets of five levels, over the bytes of the logits."""
    steps = (1, 2, 4, 8, 16)
    with FakeTensorMode(), MemoryTracker() as memory:
        leaves = [torch.zeros(2, 4, *(128 // step,) * 3, requires_grad=True) for step in steps]
        target = torch.zeros(2, 128, 128, 128, dtype=torch.long)
        before = memory.live
        memory.reset_peak()
        supervised_loss(build_loss(Training(loss=name)), leaves, target, [(step,) * 3 for step in steps]).backward()
        return (memory.peak - before) / sum(leaf.nbytes for leaf in leaves)
