"""Prediction in tiles: each process holds the whole network and a tile of every window."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from megavoxel.distributed.exchange import Exchange
from megavoxel.distributed.pipeline import Peers
from megavoxel.distributed.spatial import in_tiles
from megavoxel.inference.joint import JointNetwork
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.tiling import Tiling, even_tiling


class TiledNetwork(JointNetwork):
    """A network that works on a tile of every window.

    Args:
        exchange: between the tiles of a window; None: with the processes of the group.
        peers: through which tiles and their logits go; None: the processes of the group.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        number: int,
        *,
        exchange: Exchange | None = None,
        peers: Peers | None = None,
        **keys: Any,
    ) -> None:
        super().__init__(network, number, **keys)
        self.exchange = exchange or Exchange(self.tiling_of(self.plan.patch), self.group)
        self.peers = peers or Peers(0, self.group.device)
        self.dtype = next(network.parameters()).dtype
        """Number format of windows and of logits."""
        in_tiles(network, self.exchange)

    def tiling_of(self, shape: tuple[int, ...]) -> Tiling:
        """A window of this shape (z, y, x) in tiles, seen from this process."""
        return even_tiling(shape, self.network.shape.divisor, self.plan.parallel.space, self.group.rank)

    def lead(self, window: Tensor) -> Tensor:
        """Gives every process its tile; the logits of all of them."""
        shape = tuple(window.shape[2:])
        tiling = self.tiling_of(shape)
        others = [rank for rank in range(tiling.count) if rank != tiling.rank]
        for rank in others:
            self.peers.send(window[(..., *tiling.tile_of(rank))], rank)
        self.peers.finish()  # else their copies would be kept while the network runs
        own = self._run(window[(..., *tiling.tile)], tiling)
        logits = own.new_empty(1, self.plan.network.classes, *shape)
        logits[(..., *tiling.tile)] = own
        del own
        for rank in others:
            logits[(..., *tiling.tile_of(rank))] = self._receive(self.plan.network.classes, rank, tiling)
        return logits

    def follow(self, shape: tuple[int, ...]) -> None:
        """This process's tile of a window."""
        tiling = self.tiling_of(shape)
        tile = self._receive(self.plan.network.input_channels, 0, tiling, tile=tiling.rank)
        self.peers.send(self._run(tile, tiling), 0)
        self.peers.finish()

    def _receive(self, channels: int, source: int, tiling: Tiling, *, tile: int | None = None) -> Tensor:
        """What a process sends of a tile, by default of its own."""
        shape = tiling.shape_of(source if tile is None else tile)
        return self.peers.receive((1, channels, *shape), self.dtype, source).wait()

    def _run(self, tile: Tensor, tiling: Tiling) -> Tensor:
        self.exchange.tiling = tiling
        with self.precision.autocast(self.group.device):
            return self.network(tile.contiguous(memory_format=self.memory_format))[0].to(self.dtype)
