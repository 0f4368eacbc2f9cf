"""Memory and FLOPs of one window of inference on each of the devices that it goes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.distributed.exchange import SilentExchange
from megavoxel.distributed.group import Group
from megavoxel.distributed.pipeline import Peers, Work
from megavoxel.forecast.pipeline import begins_of
from megavoxel.forecast.pipeline_step import SilentWork, staged_window
from megavoxel.forecast.step import CPU, ONE_NETWORK, Keyed, StepCost, float32_bytes, window, with_networks
from megavoxel.inference.tiled import TiledNetwork
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.patch import predicting_devices
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import Tiling, even_tiling
from megavoxel.planning.topology import shape_of


def window_costs(plan: Plan, size: Sequence[int], *, networks: int, precision: str) -> list[StepCost]:
    """What the devices need while a window goes through `networks` networks, one after the other.

    Args:
        plan: the setting, with its `parallel`.
        size: voxels per axis of the window.
        networks: whose mean is taken.
        precision: of the forward pass.

    Returns:
        First the device that has the windows and sums the logits. Of others that hold tiles, the one with the largest.
    """
    keys = {"networks": networks, "precision": precision}
    if predicting_devices(plan) == 1:
        return [window(plan, tuple(size), **keys)]
    if plan.parallel.tiles == 1:
        return staged_window(plan.network, begins_of(plan, plan.parallel, precision), size, **keys)
    key = Keyed(plan, (plan.network, plan.parallel.space, tuple(size), precision))
    tiling = even_tiling(size, shape_of(plan.network).divisor, plan.parallel.space)
    ranks = (0, max(range(1, tiling.count), key=lambda rank: _room(tiling, rank)))
    return [with_networks(_tiled_window(key, tuple(size), precision, rank), networks) for rank in ranks]


def _room(tiling: Tiling, rank: int) -> tuple[float, int]:
    """What a process's need of memory grows with: its share of the voxels, then its neighbours."""
    return tiling.shares[rank], len(replace(tiling, rank=rank).neighbours)


class _TilePeers(Peers):
    """Peers that never answer, whose tiles and logits are counted."""

    def __init__(self) -> None:
        super().__init__(0, CPU)
        self.moved_bytes = 0

    def _begin_to_send(self, tensor: Tensor, _: int) -> Work:
        self.moved_bytes += tensor.nbytes
        return SilentWork()

    def _begin_to_receive(self, tensor: Tensor, _: int) -> Work:
        self.moved_bytes += tensor.nbytes
        return SilentWork()


@cache
def _tiled_window(key: Keyed, size: tuple[int, ...], precision: str, rank: int) -> StepCost:
    """The cost of a window for the process that holds a tile of it, of one network."""
    plan, peers = key.plan, _TilePeers()
    tiling = even_tiling(size, shape_of(plan.network).divisor, plan.parallel.space, rank)
    exchange = SilentExchange(tiling)
    with FakeTensorMode(), MemoryTracker() as memory, torch.no_grad():
        tiled = TiledNetwork(
            SegmentationNetwork(plan.network).eval(), ONE_NETWORK, exchange=exchange, peers=peers, plan=plan,
            group=Group(rank=rank, size=tiling.count), precision=Precision(name=precision, reason="forecast"),
            memory_format=torch.contiguous_format,
        )  # fmt: skip
        memory.reset_peak()
        if rank == 0:
            tiled.lead(torch.zeros(1, plan.network.input_channels, *size))
        else:
            tiled.follow(size)
        weights = float32_bytes(tiled.network)
        return StepCost(
            peak_bytes=memory.peak,
            resident_bytes=weights,
            workspace_bytes=memory.largest_convolution,
            flops=memory.flops,
            parameter_bytes=weights,
            exchanged_bytes=exchange.sent_bytes + peers.moved_bytes,
        )


def slowest_of(costs: Sequence[StepCost]) -> StepCost:
    """What the device with the most to compute does, and the most that any sends and receives."""
    return replace(max(costs, key=lambda cost: cost.flops), exchanged_bytes=max(cost.exchanged_bytes for cost in costs))
