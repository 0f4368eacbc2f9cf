"""Which part of a patch, a *tile*, each of the processes holds that share it, and who holds the tiles around.

Tiles are whole cells of the network's stride. A level of the network then has whole tiles, too, and pooling, upsampling
and the coarser targets of deep supervision need no other process. Axes are (z, y, x); processes count along x first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

Offset = tuple[int, ...]
"""Where a neighbouring tile lies: -1, 0 or 1 per axis, not all 0."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A patch in tiles, seen from one process."""

    size: tuple[int, ...]
    """Voxels of the patch per axis."""
    stride: tuple[int, ...]
    """Voxels of a cell per axis: the stride of the whole network."""
    borders: tuple[tuple[int, ...], ...]
    """Per axis in cells: 0, where tiles meet, and the end, which may lie beyond the patch."""
    rank: int = 0
    """The process."""

    @property
    def space(self) -> tuple[int, ...]:
        """Tiles per axis."""
        return tuple(len(axis) - 1 for axis in self.borders)

    @property
    def count(self) -> int:
        """Tiles of the patch."""
        return math.prod(self.space)

    def place_of(self, rank: int) -> tuple[int, ...]:
        """Number of a process's tile along each axis."""
        _, y, x = self.space
        return (rank // (y * x), rank // x % y, rank % x)

    @cached_property
    def neighbours(self) -> dict[Offset, int]:
        """Processes with the tiles around this one, by offset."""
        place, found = self.place_of(self.rank), {}
        for offset in itertools.product((-1, 0, 1), repeat=3):
            there = [own + step for own, step in zip(place, offset, strict=True)]
            if any(offset) and all(0 <= own < tiles for own, tiles in zip(there, self.space, strict=True)):
                found[offset] = (there[0] * self.space[1] + there[1]) * self.space[2] + there[2]
        return found

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of all voxels that each process holds, with the network's padding; it is the same at every level."""
        cells = [math.prod(self._cells(rank)) for rank in range(self.count)]
        return tuple(own / sum(cells) for own in cells)

    @property
    def share(self) -> float:
        """Share of all voxels that this process holds."""
        return self.shares[self.rank]

    @property
    def smallest(self) -> tuple[int, ...]:
        """Cells of the thinnest tile per axis."""
        return tuple(min(end - begin for begin, end in itertools.pairwise(axis)) for axis in self.borders)

    @property
    def largest(self) -> int:
        """The process that needs the most memory."""
        return self.largest_of(range(self.count))

    def largest_of(self, ranks: Iterable[int]) -> int:
        """The one of several processes with the largest tile and, where tiles are equal, with the most neighbours."""
        places = (replace(self, rank=rank) for rank in ranks)
        return max(places, key=lambda one: (one.share, len(one.neighbours))).rank

    def tile_of(self, rank: int) -> tuple[slice, ...]:
        """A process's part of the patch; it sticks out nowhere, the network pads it."""
        return tuple(
            slice(axis[place] * step, min(axis[place + 1] * step, size))
            for axis, place, step, size in zip(self.borders, self.place_of(rank), self.stride, self.size, strict=True)
        )

    @property
    def tile(self) -> tuple[slice, ...]:
        """This process's part of the patch."""
        return self.tile_of(self.rank)

    def shape_of(self, rank: int) -> tuple[int, ...]:
        """Voxels of a process's tile per axis."""
        return tuple(part.stop - part.start for part in self.tile_of(rank))

    def voxels(self, stride: Sequence[int]) -> int:
        """Voxels of the whole patch at a level, `stride` being how many voxels of the image one of them covers."""
        return math.prod(math.ceil(size / step) for size, step in zip(self.size, stride, strict=True))

    def _cells(self, rank: int) -> tuple[int, ...]:
        sides = zip(self.borders, self.place_of(rank), strict=True)
        return tuple(axis[place + 1] - axis[place] for axis, place in sides)


def cells_of(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Cells per axis of a patch; the last may stick out of it."""
    return tuple(math.ceil(voxels / step) for voxels, step in zip(size, stride, strict=True))


def even_tiling(size: Sequence[int], stride: Sequence[int], space: Sequence[int], rank: int = 0) -> Tiling:
    """Tiles that differ by one cell per axis at most. The larger ones come last, where the patch may end in a cell.

    Args:
        size: voxels of the patch per axis.
        stride: voxels of a cell per axis.
        space: tiles per axis.
        rank: the process.

    Raises:
        ValueError: there are fewer cells than tiles.
    """
    cells = cells_of(size, stride)
    if any(count < parts for count, parts in zip(cells, space, strict=True)):
        raise ValueError(f"{cells} cells cannot be divided into {tuple(space)} tiles")
    borders = (
        tuple(number * count // parts for number in range(parts + 1)) for count, parts in zip(cells, space, strict=True)
    )
    return Tiling(size=tuple(size), stride=tuple(stride), borders=tuple(borders), rank=rank)
