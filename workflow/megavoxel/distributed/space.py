"""One process's place among those that hold the tiles of a patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from megavoxel.distributed.exchange import Exchange
from megavoxel.distributed.group import Group, subgroups
from megavoxel.distributed.spatial import in_tiles
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import even_tiling
from megavoxel.planning.topology import shape_of


@dataclass(frozen=True, kw_only=True)
class SpaceMember:
    """One process's place."""

    exchange: Exchange
    """With those that hold the other tiles of its patches."""
    samples: Group
    """Those processes once more, for samples, which lie in host memory."""
    sharers: Group
    """The processes that hold the same tile of other patches of a batch."""


def join_space(network: nn.Module, plan: Plan, group: Group) -> SpaceMember | None:
    """This process's place; the network works on tiles from here on. None where the plan has whole patches.

    Consecutive ranks hold the tiles of a patch: those that exchange the most are on one node.
    """
    count = plan.parallel.tiles
    if count == 1:
        return None
    patches = [range(first, first + count) for first in range(0, group.size, count)]
    tiles = subgroups(group, patches)
    exchange = Exchange(even_tiling(plan.patch, shape_of(plan.network).divisor, plan.parallel.space, tiles.rank), tiles)
    member = SpaceMember(
        exchange=exchange,
        samples=subgroups(Group(rank=group.rank, size=group.size), patches, backend="gloo"),
        sharers=subgroups(group, [range(tile, group.size, count) for tile in range(count)]),
    )
    # NCCL connects a group when all of its processes first talk.
    exchange.sum(torch.zeros(1, device=group.device))
    in_tiles(network, exchange)
    return member
