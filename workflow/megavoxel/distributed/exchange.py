"""What the processes that hold the tiles of one patch tell one another.

All of them call the same functions in the same order: it follows from the network, never from what a tile holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megavoxel.distributed.group import Group
from megavoxel.planning.tiling import Offset, Tiling


class Way(NamedTuple):
    """One piece on its way between this process and a neighbour."""

    pair: tuple[int, int, bool]
    """The lower and the higher rank, and whether it is the higher one that sends: by this all pieces are ordered."""
    kind: Literal["send", "receive"]
    piece: Tensor
    other: int
    """The neighbour's rank."""


@dataclass
class Pending:
    """Pieces that neighbours are sending."""

    works: Sequence[dist.Work]
    received: dict[Offset, Tensor]
    sent: Sequence[Tensor]
    """Kept until they have left."""

    def wait(self) -> dict[Offset, Tensor]:
        """The pieces, by the offset of the tile that they come from."""
        for work in self.works:
            work.wait()
        self.works, self.sent = (), ()
        return self.received


class Exchange:
    """Between the processes of a group, by PyTorch.

    Args:
        tiling: of the patch that goes through the network, as this process sees it.
        group: the processes that hold its tiles.
    """

    def __init__(self, tiling: Tiling, group: Group) -> None:
        self.tiling, self.group = tiling, group
        self.sent_bytes = 0
        """Bytes of the pieces that this process has sent."""
        self.calls = 0
        """Times that it has waited for others."""

    def begin(self, sends: dict[Offset, Tensor], receives: dict[Offset, Tensor]) -> Pending:
        """Begins to send pieces to neighbours and to receive others into empty tensors; all are contiguous.

        Both sides of a pair go through their pairs in the same order, and within a pair the lower rank sends first. So
        nobody waits in a circle, even where all that a process sends and receives stands in one queue.
        """
        ways = [self._way("send", sends[offset], other) for offset, other in self._among(sends)]
        ways += [self._way("receive", receives[offset], other) for offset, other in self._among(receives)]
        self.sent_bytes += sum(piece.nbytes for piece in sends.values())
        self.calls += 1
        return Pending(self._post(sorted(ways, key=lambda way: way.pair)), receives, tuple(sends.values()))

    def gather(self, tensor: Tensor) -> Tensor:
        """Everybody's tensor, by rank, along a new first axis; the same to the bit everywhere."""
        self.sent_bytes += tensor.nbytes
        self.calls += 1
        return self._gather(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, the same to the bit everywhere; no gradient flows through it."""
        return self.gather(tensor.detach()).sum(dim=0)

    def weighted_mean(self, tensor: Tensor) -> Tensor:
        """The mean of everybody's tensor, weighted by the voxels that each holds; no gradient flows through it."""
        gathered = self.gather(tensor.detach())
        shares = gathered.new_tensor(self.tiling.shares)
        return (gathered * shares.view(-1, *[1] * tensor.dim())).sum(dim=0)

    def _among(self, pieces: dict[Offset, Tensor]) -> list[tuple[Offset, int]]:
        return [(offset, other) for offset, other in self.tiling.neighbours.items() if offset in pieces]

    def _way(self, kind: Literal["send", "receive"], piece: Tensor, other: int) -> Way:
        low, high = sorted((self.tiling.rank, other))
        sender = self.tiling.rank if kind == "send" else other
        return Way((low, high, sender == high), kind, piece, other)

    def _post(self, ways: Sequence[Way]) -> Sequence[dist.Work]:
        operations = {"send": dist.isend, "receive": dist.irecv}
        batch = [
            dist.P2POp(operations[way.kind], way.piece, group=self.group.processes, group_peer=way.other)
            for way in ways
        ]
        # One group of sends and receives, in which NCCL lets none wait for another.
        return dist.batch_isend_irecv(batch) if batch else ()

    def _gather(self, tensor: Tensor) -> Tensor:
        if self.group.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.group.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group.processes)
        return torch.stack(parts)


class SilentExchange(Exchange):
    """For forecasts: the neighbours are not there, but the pieces have their sizes."""

    def __init__(self, tiling: Tiling) -> None:
        super().__init__(tiling, Group(rank=tiling.rank, size=tiling.count))

    def _post(self, _: Sequence[Way]) -> Sequence[dist.Work]:
        return ()

    def _gather(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.tiling.count, *tensor.shape)
