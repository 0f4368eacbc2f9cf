"""Samples of processes that hold the tiles of a patch: each reads whole patches in turn and gives the others theirs.

A patch is read and augmented as a whole, because its tiles depend on voxels of one another (rotation, blur), and by one
process, so that as many are prepared at once as there are processes. What each gets is the plain patch, cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megavoxel.distributed.space import SpaceMember
from megavoxel.planning.tiling import Tiling
from megavoxel.training.annotation import sent_target_dtype
from megavoxel.training.on_device import DeviceAugmenter
from megavoxel.training.patches import PatchDataset, SampleNumbers, Share, patch_loader


class TileLoader:
    """This process's tiles of the batches: images (samples, channels, z, y, x), targets (samples, z, y, x).

    The tiles of the next step are on their way while a step runs. All processes that hold tiles of the same patches go
    through it together.

    Args:
        dataset: patches by number.
        share: the samples that the processes which hold the tiles of a patch take of each batch.
        space: this process's place among them.
        workers: processes that prepare its patches; 0: itself.
        augmenter: of what it reads, on its device, where loaders do not augment themselves.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        share: Share,
        space: SpaceMember,
        *,
        workers: int,
        pin: bool,
        augmenter: DeviceAugmenter | None = None,
    ) -> None:
        self.augmenter = augmenter
        self.space, self.samples, self.pin = space, share.samples, pin
        self.channels = dataset.plan.network.input_channels
        self.target_dtype = sent_target_dtype(dataset.plan)
        tiles = space.exchange.tiling.count
        numbers = list(SampleNumbers(share, len(dataset)))
        self.count = len(numbers)
        own = numbers[space.samples.rank :: tiles]
        self.loader = patch_loader(dataset, replace(share, batch=1, ranks=1), workers=workers, pin=False, numbers=own)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        patches, tiles = iter(self.loader), self.space.samples.size
        on_their_way: list[_Sample] = []
        for place in range(self.count):
            on_their_way.append(self._begin(place % tiles, patches))
            if len(on_their_way) == 2 * self.samples:
                yield self._batch(on_their_way)
        while on_their_way:
            yield self._batch(on_their_way)

    def _batch(self, on_their_way: list[_Sample]) -> tuple[Tensor, Tensor]:
        step, on_their_way[:] = on_their_way[: self.samples], on_their_way[self.samples :]
        for sample in step:
            for work in sample.works:
                work.wait()
        image, target = torch.stack([one.image for one in step]), torch.stack([one.target for one in step])
        return (image.pin_memory(), target.pin_memory()) if self.pin else (image, target)

    def _begin(self, reader: int, patches: Iterator[tuple[Tensor, Tensor]]) -> _Sample:
        """Begins to send the tiles of a patch, or to receive this process's tile from the one that reads it."""
        tiling = self.space.exchange.tiling
        if reader == self.space.samples.rank:
            read = next(patches)
            # Tiles travel in the host's memory.
            (image,), (target,) = read if self.augmenter is None else map(Tensor.cpu, self.augmenter.batch(read))
            return _scattered(image, target.to(self.target_dtype), tiling, self.space)
        shape = tiling.shape_of(tiling.rank)
        image, target = torch.empty(self.channels, *shape), torch.empty(shape, dtype=self.target_dtype)
        processes = self.space.samples.processes
        works = [dist.irecv(tensor, group=processes, group_src=reader) for tensor in (image, target)]
        return _Sample(image, target, works, [])


class _Sample(NamedTuple):
    image: Tensor
    """float32 (channels, z, y, x)."""
    target: Tensor
    """(z, y, x)."""
    works: list[dist.Work]
    sent: list[Tensor]
    """Kept until they have left."""


def _scattered(image: Tensor, target: Tensor, tiling: Tiling, space: SpaceMember) -> _Sample:
    works, sent = [], []
    for rank in range(tiling.count):
        if rank == tiling.rank:
            continue
        for tensor in (image, target):
            sent.append(tensor[(..., *tiling.tile_of(rank))].contiguous())
            works.append(dist.isend(sent[-1], group=space.samples.processes, group_dst=rank))
    own = (..., *tiling.tile)
    return _Sample(image[own].contiguous(), target[own].contiguous(), works, sent)
