"""Ways of running a setting: which can be, what they are called, and what comes next where one is too large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megavoxel.config.hardware import Device
from megavoxel.config.study import Parallel
from megavoxel.errors import UserError
from megavoxel.forecast.setting import most_stages
from megavoxel.planning.plan import Plan


def check_parallel(plan: Plan, parallel: Parallel) -> None:
    """Refuses what cannot be run exactly.

    Raises:
        UserError: naming the setting, the keys and what is allowed.
    """
    where = f"setting {plan.setting}: parallel"
    for phase in plan.by_phase():
        _check_parts(phase.batch, parallel, where)
    if parallel.pipeline == 1 and parallel.micro_batches > 1:
        raise UserError(f"{where}.micro_batches: only a pipeline has them; use accumulate, or set pipeline above 1")
    if parallel.pipeline > most_stages(plan):
        most = most_stages(plan)
        raise UserError(
            f"{where}.pipeline: {parallel.pipeline} stages; the network has {most} blocks; allowed: 1 to {most}"
        )
    if parallel.pipeline > 1 and plan.expanded_patch is not None:
        raise UserError(
            f"{where}.pipeline: a step with an expanded patch runs a part of the network on its own and cannot go "
            "through a pipeline; set pipeline to 1 (data, accumulate and checkpointing spread it as well)"
        )
    if parallel.pipeline > 1 and parallel.accumulate > 1 and plan.training.batch_dice:
        raise UserError(
            f"{where}.accumulate: training.batch_dice needs the sums of the whole batch, which parts that go through a "
            "pipeline one after the other do not have; set accumulate to 1 (micro_batches may be more), or batch_dice "
            "to false"
        )


def _check_parts(batch: int, parallel: Parallel, where: str) -> None:
    if parallel.data > batch:
        raise UserError(
            f"{where}.data: {parallel.data} devices cannot share a batch of {batch}: each needs a sample of its own; "
            f"allowed: 1 to {batch}"
        )
    if batch % parallel.parts:
        raise UserError(
            f"{where}: batch {batch} cannot be cut into data {parallel.data} × accumulate {parallel.accumulate} × "
            f"micro_batches {parallel.micro_batches} equal parts; allowed: a product that divides {batch} "
            f"({', '.join(str(parts) for parts in range(1, batch + 1) if batch % parts == 0)})"
        )


def describe(parallel: Parallel) -> str:
    """The way in a few words."""
    words = [
        f"{parallel.data} devices by data" if parallel.data > 1 else "",
        f"a pipeline over {parallel.pipeline} devices" if parallel.pipeline > 1 else "",
        f"{parallel.micro_batches} micro-batches" if parallel.micro_batches > 1 else "",
        f"accumulation over {parallel.accumulate} parts" if parallel.accumulate > 1 else "",
        "checkpointing" if parallel.checkpointing else "",
    ]
    return " with ".join(word for word in words if word) or "plain"


def effort(parallel: Parallel) -> tuple[int, bool, int]:
    """Devices, then what costs time."""
    return (parallel.devices, parallel.checkpointing, parallel.accumulate)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, … up to `most`."""
    return [2**power for power in range(most.bit_length())]


def next_option(plan: Plan, parallel: Parallel, device: Device) -> str:
    """What to try where memory ran out, in keys of the study: the mildest that can be run and a job may ask for."""
    for key, value in _with_less_memory(plan, parallel):
        option = replace(parallel, **{key: value})
        if option.devices <= max(device.most_devices, parallel.devices) and _can_be(plan, option):
            return f"parallel.{key}: {str(value).lower()}"
    return "a smaller patch"


def _with_less_memory(plan: Plan, parallel: Parallel) -> Iterator[tuple[str, int | bool]]:
    """Single keys of `parallel` that lower what a device needs, from mild to harsh; not all of them can be."""
    samples = plan.common_batch // parallel.parts
    factor = next((factor for factor in range(2, samples + 1) if samples % factor == 0), None)
    if factor is not None:
        yield "accumulate", parallel.accumulate * factor
    if not parallel.checkpointing:
        yield "checkpointing", True
    if factor is not None:
        yield "micro_batches", parallel.micro_batches * factor
    yield "pipeline", parallel.pipeline * 2


def _can_be(plan: Plan, parallel: Parallel) -> bool:
    try:
        check_parallel(plan, parallel)
    except UserError:
        return False
    return True
