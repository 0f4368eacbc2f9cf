"""Windows that a device has no room for, worked out in tiles one after the other, to the result of the whole window.

The network runs block by block, and each block over all tiles. Between two blocks the activations of all tiles lie in
host memory; on the device there is one tile at a time. What a tile needs of others is known by then: the voxels around
it lie in host memory, and the moments of a norm are those that all tiles have told. For these a block runs once more
than it asks for them: a convolution computed again takes less time than its result on the way to the host and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megavoxel.distributed.exchange import Exchange, Pending
from megavoxel.distributed.group import Group
from megavoxel.distributed.spatial import edge, in_tiles
from megavoxel.network.device import Precision
from megavoxel.network.program import RunState, head_name
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import Offset, Tiling, even_tiling

HOST = torch.device("cpu")


class TurnExchange(Exchange):
    """What the tiles of one process tell one another while they run in turn through a block."""

    def __init__(self, tiling: Tiling) -> None:
        super().__init__(tiling, Group())
        self.inputs: Sequence[Tensor] = ()
        """Input of the block, by tile."""
        self.answers: Sequence[Tensor] = ()
        """What all tiles have told, by tile, for each time that the block asks."""
        self.asked = 0
        """Times that the block has asked in this turn."""
        self.told: Tensor | None = None
        """What this tile tells where the block asks for more than there are answers."""

    def begin_turn(self, rank: int, answers: Sequence[Tensor]) -> None:
        """From here on the tile of this rank runs through the block."""
        self.tiling = replace(self.tiling, rank=rank)
        self.answers, self.asked, self.told = answers, 0, None

    def begin(self, _: dict[Offset, Tensor], receives: dict[Offset, Tensor]) -> Pending:
        """Copies what a tile needs of its neighbours' inputs."""
        for offset, piece in receives.items():
            piece.copy_(_facing(self.inputs[self.tiling.neighbours[offset]], offset, piece.shape))
        return Pending((), receives, ())

    def _gather(self, tensor: Tensor) -> Tensor:
        number, self.asked = self.asked, self.asked + 1
        if number < len(self.answers):
            return self.answers[number]
        if self.told is None:  # what follows depends on an answer that is not known yet
            self.told = tensor
        return tensor.expand(self.tiling.count, *tensor.shape)


def _facing(tile: Tensor, offset: Offset, shape: torch.Size) -> Tensor:
    """The voxels of the tile at an offset that lie next to the one in turn, as many as a piece of this shape has."""
    sides = zip(offset, shape[2:], strict=True)
    return tile[(..., *(edge(-way, voxels) for way, voxels in sides))]


class TilesInTurn:
    """A network that runs over the tiles of each window in turn.

    Args:
        network: in evaluation mode; the caller brings it to the device.
        plan: says into how many tiles windows are cut.
        device: where a tile is worked out.
        precision: of the forward pass.
        memory_format: of activations on the device.
        exchange: between the tiles; None: one for all tiles of a window.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        *,
        plan: Plan,
        device: torch.device,
        precision: Precision,
        memory_format: torch.memory_format,
        exchange: TurnExchange | None = None,
    ) -> None:
        self.plan, self.device, self.precision, self.memory_format = plan, device, precision, memory_format
        whole = even_tiling(plan.patch, network.shape.divisor, (1, 1, 1))  # until a window says how it is cut
        self.exchange = exchange or TurnExchange(whole)
        self.network = in_tiles(network, self.exchange)
        self.blocks = list(network.program)

    def __call__(self, window: Tensor) -> list[Tensor]:
        """Logits (1, classes, z, y, x) of a window (1, channels, z, y, x), of its type and in host memory like it."""
        whole = even_tiling(window.shape[2:], self.network.shape.divisor, self.plan.inference.tiles)
        self.exchange.tiling = whole
        tiles = [(..., *whole.tile_of(rank)) for rank in range(whole.count)]
        states = [self.network.enter(window[tile]) for tile in tiles]
        self.run(states)
        logits = window.new_empty(1, self.plan.network.classes, *whole.size)
        for tile, state in zip(tiles, states, strict=True):
            (found,) = self.network.logits_by_level(state, logits[tile].shape[2:]).values()
            logits[tile] = found
        return [logits]

    def run(self, states: list[RunState]) -> None:
        """Brings the states of all tiles, which lie in host memory, through all blocks that the finest logits need."""
        finest = head_name(self.network.shape.supervised_levels[0])
        for number, block in enumerate(self.blocks):
            if block.emits in (None, finest):
                self._run_block(number, states)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A tensor from host memory on the device."""
        return tensor.to(self.device).contiguous(memory_format=self.memory_format)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A tensor of the device in host memory."""
        return tensor.to(HOST)

    def _run_block(self, number: int, states: list[RunState]) -> None:
        self.exchange.inputs = [state.activation for state in states]
        answers: list[Tensor] = []
        while True:
            told = [self._run_tile(number, rank, state, answers) for rank, state in enumerate(states)]
            if told[0] is None:
                break
            answers.append(torch.stack(told))
        self.exchange.inputs = ()

    def _run_tile(self, number: int, rank: int, state: RunState, answers: list[Tensor]) -> Tensor | None:
        """Brings the state of one tile behind a block; where the block asks for more, what the tile tells instead."""
        block = self.blocks[number]
        self.exchange.begin_turn(rank, answers)
        popped = {name: self.to_device(state.stashed[name]) for name in block.pops}
        running = RunState(activation=self.to_device(state.activation), stashed=popped)
        del popped
        with self.precision.autocast(self.device):
            running = self.network.program.run(running, start=number, stop=number + 1)
        if self.exchange.told is not None:
            return self.exchange.told
        for name in block.pops:
            del state.stashed[name]
        if block.emits is not None:
            state.logits[block.emits] = self.to_host(running.logits[block.emits])
            return None
        given, state.activation = state.activation, self.to_host(running.activation)
        state.stashed |= block.stashed(given, state.activation)
        return None
