"""A process of benchmarks/pipeline.py or benchmarks/tiles.py, which writes its result to FOLDER/RANK.json.

torchrun … -m benchmarks.pipeline_worker {memory,trace,throughput,tiles} FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import peak_mib
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group, joined_group
from megavoxel.forecast.calibration import SMALL, held_bytes, measure
from megavoxel.network.host_memory import release_unused_memory, return_freed_memory
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan, load_plan
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run
from megavoxel.training.step import train_step
from pytorch_pipeline import PyTorchPipeline

CPU = torch.device("cpu")
NOWHERE = VolumeData(number=0, preprocessed=Path(), training=(), validation=())
STEPS = 2
"""Steps, of which the first allocates the optimiser's state."""
PAUSE = 0.5
"""Seconds of every pass of a micro-batch through a stage in a trace. Nothing is computed meanwhile, so that neither the
number of processors nor what else they do changes which stages wait."""
ROUNDS = 5
"""Number of turns; one before them is not counted."""


def main() -> None:
    """Does what the first argument says."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    plan = load_plan(folder / "plan.json")
    with joined_group(CPU) as group:
        ways = {"memory": memory, "trace": trace, "throughput": throughput, "tiles": tiles}
        found = ways[what](plan, group)
        (folder / f"{group.rank}.json").write_text(json.dumps(found))


def memory(plan: Plan, group: Group) -> float:
    """Most bytes that the process held in two steps, beyond what it held with all libraries loaded."""
    return_freed_memory()
    measure(SMALL, plan.training.precision, CPU)
    release_unused_memory()
    before = held_bytes(CPU)
    run = start_run(plan, NOWHERE, CPU, group=group)
    for _ in range(STEPS):
        train_step(run, *batch_of(run))
    return peak_mib() * 2**20 - before


def trace(plan: Plan, group: Group) -> list[dict[str, Any]]:
    """The passes of micro-batches through the stage in one step, by their begin; nanoseconds of the machine's clock."""
    run = start_run(plan, NOWHERE, CPU, group=group)
    train_step(run, *batch_of(run))
    first = next(iter(run.network.program))
    first.register_forward_hook(lambda *call: _Pause.apply(call[-1]))
    torch.distributed.barrier()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train_step(run, *batch_of(run))
    events = [event for event in profiled.profiler.kineto_results.events() if event.name().startswith("micro-batch")]
    passes = [
        {"name": event.name(), "begin": event.start_ns(), "end": event.end_ns(), "busy": PAUSE * 1e9}
        for event in events
    ]
    return sorted(passes, key=lambda one: one["begin"])


def throughput(plan: Plan, group: Group) -> dict[str, list[float]]:
    """Seconds of steps of each, in turns."""
    ours, theirs = start_run(plan, NOWHERE, CPU, group=group), pytorch_step(plan, group)
    image, target = batch_of(ours if group.rank == 0 else plain_run(plan))
    steps = {
        "ours": lambda: train_step(ours, image, target),
        "plain": on_all_threads(plan, group),
        "pytorch": lambda: theirs(image, target),
    }
    return in_turns(steps)


def tiles(plan: Plan, group: Group) -> dict[str, list[float]]:
    """Seconds of steps in tiles, and of one process with all threads, in turns."""
    run = start_run(plan, NOWHERE, CPU, group=group)
    batch = batch_of(run)
    return in_turns({"tiles": lambda: train_step(run, *batch), "plain": on_all_threads(plan, group)})


def plain_run(plan: Plan) -> Run:
    """A run of the same plan in one process."""
    return start_run(replace(plan, parallel=Parallel(), stages=()), NOWHERE, CPU)


def on_all_threads(plan: Plan, group: Group) -> Callable[[], None]:
    """A step of one process with as many threads as there are processes, which wait meanwhile."""
    run = plain_run(plan)
    image, target = batch_of(run)

    def step() -> None:
        if group.rank == 0:
            torch.set_num_threads(group.size)
            train_step(run, image, target)
            torch.set_num_threads(1)

    return step


def in_turns(steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each, one after the other and again; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(ROUNDS + 1):
        for name, step in steps.items():
            found = _seconds(step)
            if repeat:
                seconds[name].append(found)
    return seconds


def pytorch_step(plan: Plan, group: Group) -> Callable[[Tensor, Tensor], None]:
    """An optimiser step by PyTorch's pipeline; every process clips by the norm of its own gradients."""
    network = SegmentationNetwork(plan.network).to(memory_format=torch.channels_last_3d).train()
    pipeline = PyTorchPipeline(network, plan, group)
    optimizer = build_optimizer(pipeline.parameters, plan.training)

    def step(image: Tensor, target: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        pipeline.forward_and_backward(image, target)
        torch.nn.utils.clip_grad_norm_(pipeline.parameters, plan.training.gradient_clip)
        optimizer.step()

    return step


def batch_of(run: Run) -> tuple[Tensor, Tensor]:
    """Noise, of which a process with a tile has this; later stages of a pipeline read none."""
    plan = run.plan
    if run.pipeline is not None and run.pipeline.stage.number > 0:
        return torch.empty(0), torch.empty(0)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(plan.batch, plan.network.input_channels, *plan.patch, generator=generator)
    target = torch.randint(0, plan.network.classes, (plan.batch, *plan.patch), generator=generator)
    own = (..., *(run.space.exchange.tiling.tile if run.space is not None else ()))
    return image[own], target[own]


def _seconds(step: Callable[[], object]) -> float:
    torch.distributed.barrier()
    begin = time.perf_counter()
    step()
    torch.distributed.barrier()
    return time.perf_counter() - begin


class _Pause(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        time.sleep(PAUSE)
        return tensor.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        time.sleep(PAUSE)
        return gradient


if __name__ == "__main__":
    main()
