"""Blocks that a volume is cut into: which voxels belong to which block, and what a block is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from nibabel.orientations import io_orientation

from megavoxel.config.dataset import Blocks
from megavoxel.errors import UserError
from megavoxel.volumes.nifti import Geometry

AXES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A box of a volume that becomes a case of its own."""

    name: str
    """`b` and its place along z, y, x, such as `b0-2-3`; names sort as places do."""
    box: tuple[tuple[int, int], ...]
    """Per canonical axis (z, y, x): first voxel of the block and first voxel after it."""


def blocks_of(shape: Sequence[int], blocks: Blocks) -> tuple[Block, ...]:
    """The blocks of a volume in order of their places, x fastest.

    No voxel lies in two blocks, and every voxel lies in a block or in a margin between two.

    Args:
        shape: voxels of the volume along z, y, x.
        blocks: how many blocks along each axis, and the margins between them.

    Raises:
        UserError: a block would have no voxel; names the axis.
    """
    sides = [
        _cut(size, count, margin, axis)
        for size, count, margin, axis in zip(shape, blocks.counts, blocks.margins, AXES, strict=True)
    ]
    return tuple(
        Block(
            name="b" + "-".join(_number(place, side) for place, side in zip(places, sides, strict=True)),
            box=tuple(side[place] for place, side in zip(places, sides, strict=True)),
        )
        for places in product(*(range(len(side)) for side in sides))
    )


def in_file_order(box: Sequence[tuple[int, int]], geometry: Geometry) -> tuple[slice, ...]:
    """Where a canonical box (z, y, x) lies in the array of a file (i, j, k), which may run the other way."""
    slices = []
    for size, (world, direction) in zip(geometry.shape, io_orientation(geometry.affine), strict=True):
        start, stop = box[2 - int(world)]
        slices.append(slice(start, stop) if direction > 0 else slice(size - stop, size - start))
    return tuple(slices)


def _cut(size: int, count: int, margin: int, axis: str) -> list[tuple[int, int]]:
    """First voxel and first voxel after each block of one axis; sizes differ by one voxel at most, the larger first."""
    left = size - margin * (count - 1)
    if left < count:
        raise UserError(
            f"{size} voxels along {axis} are too few for {count} blocks with a margin of {margin} voxels between two: "
            f"a block would be empty; lower 'counts' or 'margin' of {axis} under 'blocks' of the dataset file"
        )
    side, longer = divmod(left, count)
    starts = [number * (side + margin) + min(number, longer) for number in range(count)]
    return [(start, start + side + (number < longer)) for number, start in enumerate(starts)]


def _number(place: int, side: Sequence[object]) -> str:
    """A place with as many digits as the last one of its axis, so that names sort as numbers do."""
    return f"{place:0{len(str(len(side) - 1))}}"
