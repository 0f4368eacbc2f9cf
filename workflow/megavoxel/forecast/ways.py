"""Ways of spreading a step over devices and time: which are exact for a plan, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megavoxel.config.setting import Checkpointing, Parallel
from megavoxel.errors import UserError, closest
from megavoxel.forecast.pipeline_step import fake_network
from megavoxel.forecast.setting import most_stages
from megavoxel.network.segmentation import convolution_names
from megavoxel.planning.plan import Plan
from megavoxel.planning.spacing import times
from megavoxel.planning.tile_checks import check_tiles, check_turns
from megavoxel.planning.tiling import cells_of
from megavoxel.planning.topology import shape_of

LESS_AND_LESS: tuple[Checkpointing, ...] = ("none", "norms", "blocks")
"""Kinds of checkpointing, each with less memory and more work than the one before."""


def check_parallel(plan: Plan, parallel: Parallel) -> None:
    """Refuses what cannot be run exactly.

    Raises:
        UserError: naming the setting, the keys and what is allowed.
    """
    where = f"setting {plan.setting}: parallel"
    for phase in plan.by_phase():
        _check_parts(phase.batch, parallel, where)
        check_tiles(phase, parallel, f"{where}.space")
    check_turns(plan, parallel)
    if parallel.pipeline == 1 and parallel.micro_batches > 1:
        raise UserError(f"{where}.micro_batches: only a pipeline has them; use accumulate, or set pipeline above 1")
    if not isinstance(parallel.checkpointing, str):
        _check_blocks(plan, parallel.checkpointing, f"{where}.checkpointing")
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
    if parallel.pipeline > 1 and (plan.training.freeze_encoder or plan.training.encoder_rate_decay != 1):
        raise UserError(
            f"{where}.pipeline: all weights go by one learning rate in a pipeline; set pipeline to 1 (data, space, "
            "accumulate and checkpointing spread a step as well), or remove training.freeze_encoder and "
            "training.encoder_rate_decay"
        )
    if parallel.pipeline > 1 and parallel.accumulate > 1 and needs_whole_batch(plan):
        what, remedy = ("training.batch_dice", ", or batch_dice to false")
        if not plan.training.batch_dice:
            what, remedy = ("an ignore label", "")
        raise UserError(
            f"{where}.accumulate: {what} needs the sums of the whole batch, which parts that go through a pipeline one "
            f"after the other do not have; set accumulate to 1 (micro_batches may be more){remedy}"
        )


def needs_whole_batch(plan: Plan) -> bool:
    """Whether the loss has sums over the whole batch: of Dice, or of the voxels that somebody annotated."""
    return plan.training.batch_dice or plan.preprocessing.ignore_value is not None


def _check_blocks(plan: Plan, names: Sequence[str], where: str) -> None:
    allowed = convolution_names(fake_network(plan.network).program)
    for name in names:
        if name not in allowed:
            raise UserError(
                f"{where}: the network has no convolution '{name}'{closest(name, allowed)}; allowed: none, norms, "
                f"blocks, auto, or a list of {', '.join(allowed)}"
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
        f"{times(parallel.space)} tiles" if parallel.tiles > 1 else "",
        f"a pipeline over {parallel.pipeline} devices" if parallel.pipeline > 1 else "",
        f"{parallel.micro_batches} micro-batches" if parallel.micro_batches > 1 else "",
        f"accumulation over {parallel.accumulate} parts" if parallel.accumulate > 1 else "",
        ""
        if parallel.checkpointing == "none"
        else f"checkpointing of {describe_checkpointing(parallel.checkpointing)}",
    ]
    return " with ".join(word for word in words if word) or "plain"


def describe_checkpointing(checkpointing: Checkpointing) -> str:
    """What is computed again, in a word or a few."""
    if isinstance(checkpointing, str):
        return checkpointing
    return f"norms and {len(checkpointing)} block{'s' if len(checkpointing) > 1 else ''}"


def effort(parallel: Parallel) -> tuple[int, float, int]:
    """Effort to sort by: devices first, then checkpointing and accumulation."""
    return (parallel.devices, recomputed(parallel), parallel.accumulate)


def recomputed(parallel: Parallel) -> float:
    """How much is computed again, to compare ways by; a list of blocks is between all norms and all blocks."""
    if isinstance(parallel.checkpointing, str):
        return float(LESS_AND_LESS.index(parallel.checkpointing))
    return LESS_AND_LESS.index("norms") + 0.5


def tilings(plan: Plan, most: int) -> list[tuple[int, ...]]:
    """Tiles per axis on 2, 4, 8, … devices up to `most`, for as long as the patch has cells for them.

    Each time the tiles are halved along the axis where they are longest, so that their rims are small.
    """
    found, cells = [(1, 1, 1)], cells_of(plan.patch, shape_of(plan.network).divisor)
    while math.prod(found[-1]) * 2 <= most:
        sides = [size / parts for size, parts in zip(plan.patch, found[-1], strict=True)]
        axes = [axis for axis, parts in enumerate(found[-1]) if cells[axis] >= 2 * parts]
        if not axes:
            break
        longest = max(axes, key=lambda axis: sides[axis])
        found.append(tuple(parts * 2 if axis == longest else parts for axis, parts in enumerate(found[-1])))
    return found[1:]


def can_be(plan: Plan, parallel: Parallel) -> bool:
    """Whether a plan can be run that way."""
    try:
        check_parallel(plan, parallel)
    except UserError:
        return False
    return True
