"""Memory and FLOPs of one window of inference on each of the devices that it goes over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.hardware import Device
from megavoxel.distributed.exchange import Pending, SilentExchange
from megavoxel.distributed.group import Group
from megavoxel.distributed.pipeline import Peers, Work
from megavoxel.forecast.pipeline import begins_of
from megavoxel.forecast.pipeline_step import SilentWork, staged_window
from megavoxel.forecast.step import CPU, ONE_NETWORK, Keyed, StepCost, float32_bytes, window, with_networks
from megavoxel.inference.tiled import TiledNetwork
from megavoxel.inference.turns import TilesInTurn, TurnExchange
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.patch import has_turns, predicting_devices
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import Offset, even_tiling
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
    if has_turns(plan):
        key = Keyed(plan, (plan.network, plan.inference.tiles, tuple(size), precision))
        return [with_networks(_window_in_turn(key, tuple(size), precision), networks)]
    if predicting_devices(plan) == 1:
        return [window(plan, tuple(size), **keys)]
    if plan.parallel.tiles == 1:
        return staged_window(plan.network, begins_of(plan, plan.parallel, precision), size, **keys)
    key = Keyed(plan, (plan.network, plan.parallel.space, tuple(size), precision))
    tiling = even_tiling(size, shape_of(plan.network).divisor, plan.parallel.space)
    ranks = (0, tiling.largest_of(range(1, tiling.count)))
    return [with_networks(_tiled_window(key, tuple(size), precision, rank), networks) for rank in ranks]


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
            work=memory.work,
            parameter_bytes=weights,
            exchanged_bytes=exchange.sent_bytes + peers.moved_bytes,
        )


class _TwoMemories(MemoryTracker):
    """Counts what lies on a device, and on its own what lies in host memory."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.on_host = MemoryTracker(), False

    def _add(self, tensor: Tensor) -> None:
        if tensor.untyped_storage()._cdata in self.host._known:
            return
        (self.host if self.on_host else super())._add(tensor)


class _OneTurn(TurnExchange):
    """One tile that runs alone; what others would tell has its size."""

    def begin_turn(self, _: int, answers: Sequence[Tensor]) -> None:
        super().begin_turn(self.tiling.rank, answers)

    def begin(self, _: dict[Offset, Tensor], receives: dict[Offset, Tensor]) -> Pending:
        return Pending((), receives, ())

    def _gather(self, tensor: Tensor) -> Tensor:
        return super()._gather(tensor).expand(self.tiling.count, *tensor.shape)


class _CountedTurns(TilesInTurn):
    """Tiles in turn whose ways between host memory and the device are copies from one count to the other."""

    def __init__(self, network: SegmentationNetwork, memory: _TwoMemories, **keys: Any) -> None:
        super().__init__(network, **keys)
        self.memory, self.moved_bytes = memory, 0

    def to_device(self, tensor: Tensor) -> Tensor:
        self.memory.on_host = False
        self.moved_bytes += tensor.nbytes
        return tensor.clone()

    def to_host(self, tensor: Tensor) -> Tensor:
        self.memory.on_host = True
        self.moved_bytes += tensor.nbytes
        return tensor.clone()


@cache
def _window_in_turn(key: Keyed, size: tuple[int, ...], precision: str) -> StepCost:
    """The cost of a window of which one device works out the tiles in turn, of one network: that of the largest tile,
    times as many as there are of its size."""
    plan, voxels = key.plan, math.prod(size)
    tiling = even_tiling(size, shape_of(plan.network).divisor, plan.inference.tiles)
    tiling = replace(tiling, rank=tiling.largest)
    tiles = 1 / tiling.share
    with FakeTensorMode(), _TwoMemories() as memory, torch.no_grad():
        network = SegmentationNetwork(plan.network).eval()
        turns = _CountedTurns(
            network, memory, plan=plan, device=CPU, precision=Precision(name=precision, reason="forecast"),
            memory_format=torch.contiguous_format, exchange=_OneTurn(tiling),
        )  # fmt: skip
        memory.reset_peak()
        memory.on_host = True
        state = network.enter(torch.zeros(1, plan.network.input_channels, *tiling.shape_of(tiling.rank)))
        turns.run([state])
        on_host = tiles * max(memory.host.peak, memory.host.live + 4 * plan.network.classes * voxels / tiles)
        weights = float32_bytes(network)
        return StepCost(
            peak_bytes=memory.peak,
            resident_bytes=weights,
            workspace_bytes=memory.largest_convolution,
            work=round(tiles * memory.work),
            parameter_bytes=weights,
            exchanged_bytes=round(tiles * turns.moved_bytes),
            host_bytes=4 * plan.network.input_channels * voxels + round(on_host),
        )


def bytes_beside(cost: StepCost, sums: int, device: Device) -> int:
    """What the first device holds beside its part of a window: the sums of logits.

    Of tiles in turn, they lie in host memory like all activations. A CPU has no other memory.
    """
    if not cost.host_bytes:
        return sums
    return 0 if device.gpus else sums + cost.host_bytes


def slowest_of(costs: Sequence[StepCost]) -> StepCost:
    """What the device with the most to compute does, and the most that any sends and receives."""
    return replace(max(costs, key=lambda cost: cost.flops), exchanged_bytes=max(cost.exchanged_bytes for cost in costs))
