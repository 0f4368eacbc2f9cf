"""Architectures by name: the functions that make their blocks (the planner's half: `planning/architectures.py`)."""

from __future__ import annotations

from collections.abc import Callable

from megavoxel.network.program import Block, Program, prior_name
from megavoxel.network.residual import residual_blocks
from megavoxel.network.unet import unet_blocks
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import shape_of

BLOCKS: dict[str, Callable[[NetworkPlan], list[Block]]] = {"unet": unet_blocks, "residual": residual_blocks}
"""Makers of blocks by `network.architecture`.

Blocks emit logits from a head at every one of `shape_of(plan).head_levels`, and pop the labels of a first stage at
every one of `prior_levels`.
"""


def whole_program(plan: NetworkPlan) -> Program:
    """All blocks of a network; what is stashed before the first one is what `entering_state` gives."""
    inputs = [prior_name(level) for level in shape_of(plan).prior_levels]
    return Program(BLOCKS[plan.architecture](plan), inputs=inputs)
