"""Parts of volumes that memory does not hold: slabs along the slowest axis of a file, and arrays on disk for them.

A gzip file can only be read and written from its beginning to its end, so that the file's last axis says in which
order voxels come. Slabs are handed over in canonical order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.volumes.grid import Geometry

LARGE_VOXELS = 2**27
"""Voxels of a case, all channels counted, from which on its stages read and write by blocks."""
SLAB_VOXELS = 2**22
"""Most voxels of a slab, unless one plane of the file has more."""
CHUNK = (16, 256)
"""Voxels of a chunk on disk, at most: across the slabs' axis, and along each of the other two."""
BLOCK = 64
"""Voxels along an axis of a block, the part of a chunk that is unpacked on its own, at most."""

Place = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class FileSlab:
    """Some planes of one channel of a file."""

    channel: int
    place: Place
    """Where in the volume (z, y, x)."""
    voxels: np.ndarray
    """(z, y, x) in canonical order."""


def slab_axis(geometry: Geometry) -> tuple[int, bool]:
    """The canonical axis along which planes follow one another in the file, and whether the last comes first."""
    world, direction = geometry.orientation[2]
    return 2 - int(world), direction < 0


def slab_rows(shape: Sequence[int], axis: int) -> int:
    """Planes of a slab across `axis`: a power of two."""
    plane = math.prod(shape) // max(1, shape[axis])
    return 2 ** max(0, int(math.log2(max(1, SLAB_VOXELS // max(1, plane)))))


def slab_places(shape: Sequence[int], axis: int, *, flipped: bool = False) -> list[Place]:
    """The slabs of a volume across `axis`, each of `slab_rows` but the last; `flipped`: the last one first."""
    rows, whole = slab_rows(shape, axis), [slice(0, size) for size in shape]
    spans = [slice(start, min(shape[axis], start + rows)) for start in range(0, shape[axis], rows)]
    places = [tuple(span if number == axis else side for number, side in enumerate(whole)) for span in spans]
    return places[::-1] if flipped else places


def gathered(slabs: Iterable[tuple[int, np.ndarray]], rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts slabs, which come from row 0 on, anew into slabs of `rows` rows; the last one may have fewer."""
    first, held, height = 0, [], 0
    for _, slab in slabs:
        left = slab
        while len(left):
            held.append(left[: rows - height])
            left, height = left[rows - height :], height + len(held[-1])
            if height == rows:
                yield first, np.concatenate(held)
                first, held, height = first + rows, [], 0
    if held:
        yield first, np.concatenate(held)


def scratch_array(path: Path, shape: Sequence[int], kind: type, *, axis: int) -> blosc2.NDArray:
    """A compressed array on disk, zero so far, that is written in slabs across `axis` and read in any other way.

    Args:
        shape: (…, three axes); leading axes have one element per chunk.
        kind: dtype.
        axis: 0, 1 or 2, among the last three.
    """
    space, lead = tuple(shape[-3:]), (1,) * (len(shape) - 3)
    most = [CHUNK[1]] * 3
    most[axis] = min(CHUNK[0], slab_rows(space, axis))
    chunks = [max(1, min(size, extent)) for size, extent in zip(space, most, strict=True)]
    blocks = [min(extent, BLOCK) for extent in chunks]
    return blosc2.zeros(
        tuple(shape), dtype=kind, urlpath=str(path), mode="w", chunks=(*lead, *chunks), blocks=(*lead, *blocks),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=1, nthreads=1), dparams=blosc2.DParams(nthreads=1),
    )  # fmt: skip
