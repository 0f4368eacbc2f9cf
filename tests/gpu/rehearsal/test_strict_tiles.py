"""Tiles of a patch under NCCL's rules, where a wrong order of messages stands still: order, sizes, and gradients."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from strict_nccl import Meeting, Operation, StandstillError, run_stages
from torch import Tensor

import space_worker
from megavoxel.distributed.exchange import Exchange, Way
from megavoxel.distributed.group import Group
from megavoxel.distributed.space import SpaceMember
from megavoxel.distributed.spatial import in_tiles
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import even_tiling
from megavoxel.planning.topology import shape_of
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run
from megavoxel.training.step import train_step
from space_worker import batch_of, own_part, plan_of, step_of

WAYS = (
    "plain",
    "padded",
    "flat",
    "blocks again",
    "excitation, norms again",
    "batch norm, blocks again",
    "wide kernels",
)


class Gathering:
    """Where all tiles meet for a sum."""

    def __init__(self, tiles: int) -> None:
        self.barrier, self.tensors = threading.Barrier(tiles, timeout=60), [torch.empty(0)] * tiles

    def gather(self, rank: int, tensor: Tensor) -> Tensor:
        self.tensors[rank] = tensor
        self.barrier.wait()
        found = torch.stack(self.tensors)
        self.barrier.wait()
        return found


class StrictExchange(Exchange):
    """The product's exchange through a `Meeting`. Pieces go one by one: in a group, NCCL would forgive their order."""

    def __init__(self, plan: Plan, rank: int, meeting: Meeting, gathering: Gathering, *, sends_first: bool) -> None:
        tiling = even_tiling(plan.patch, shape_of(plan.network).divisor, plan.parallel.space, rank)
        super().__init__(tiling, Group(rank=rank, size=tiling.count))
        self.meeting, self.gathering, self.sends_first = meeting, gathering, sends_first

    def _post(self, ways: Sequence[Way]) -> list[Operation]:
        if self.sends_first:
            ways = sorted(ways, key=lambda way: way.kind != "send")
        return [self.meeting.post(self.tiling.rank, way.other, way.kind, way.piece) for way in ways]

    def _gather(self, tensor: Tensor) -> Tensor:
        return self.gathering.gather(self.tiling.rank, tensor)


def step_in_tiles(plan: Plan, *, one_queue: bool = False, sends_first: bool = False) -> list[dict[str, Tensor]]:
    """Gradients of each tile; their mean is the patch's."""
    count = plan.parallel.tiles
    meeting, gathering = Meeting(count, one_queue=one_queue), Gathering(count)
    # One after the other: their weights are drawn by the generator of the process.
    networks = [
        SegmentationNetwork(plan.network, seed=1, checkpointing=plan.parallel.checkpointing) for _ in range(count)
    ]

    def work(rank: int) -> dict[str, Tensor]:
        torch.set_num_threads(1)
        exchange = StrictExchange(plan, rank, meeting, gathering, sends_first=sends_first)
        network = in_tiles(networks[rank].double().train(), exchange)
        run = Run(
            plan=plan, device=space_worker.CPU, precision=Precision(name="float32", reason="test"), network=network,
            optimizer=build_optimizer(network.parameters(), plan.training),
            space=SpaceMember(exchange=exchange, samples=exchange.group, sharers=Group()),
        )  # fmt: skip
        try:
            train_step(run, *(own_part(run, tensor) for tensor in batch_of(plan)))
        except Exception:
            gathering.barrier.abort()
            raise
        return {name: weight.grad for name, weight in network.named_parameters()}

    return run_stages(meeting, work, range(count))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "one_queue"), [("padded", False), *((way, True) for way in WAYS)])
def test_tiles_move_on_and_find_the_gradients_of_one_process(way, one_queue):
    tiles = step_in_tiles(plan_of(way, space=(2, 2, 2)), one_queue=one_queue)
    wanted = step_of(plan_of(way), Group())["gradients"]
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        mean = torch.stack([own[name] for own in tiles]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-12 * largest, msg=name)


def test_in_another_order_tiles_stand_still():
    """Where everybody sends before it receives, and nothing is sent in groups, all wait for one another."""
    with pytest.raises(StandstillError):
        step_in_tiles(plan_of("plain", space=(2, 1, 1)), sends_first=True)
