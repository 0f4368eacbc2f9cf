"""The sliding window, row of windows by row, so that memory is bounded by one row and not by the volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megavoxel.preprocessing.store import Box, read_box

Predictor = Callable[[Tensor], Tensor]
"""From float32 (1, channels, patch) to float32 logits (1, classes, patch)."""
SLAB_BYTES = 8 * 2**20
"""Most bytes of a slab's logits, unless one row has more."""


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Finished logits of the rows from `start` to `stop` along the first axis."""

    start: int
    stop: int
    logits: Tensor
    """float32 (classes, stop - start, y, x)."""


def window_starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of evenly spread windows, at most `step` patches apart, that cover `size` voxels.

    Where the image is smaller than the patch, one window is centred on it (its start is then negative).
    """
    if size <= patch:
        return [-((patch - size) // 2)]
    count = math.ceil((size - patch) / max(1, patch * step)) + 1
    distance = (size - patch) / (count - 1)
    return [round(index * distance) for index in range(count)]


def gaussian_weights(size: int, sigma: float) -> Tensor:
    """Weights of a window along one axis: a Gaussian of `sigma` windows, 1 at voxel size // 2 as in nnU-Net, float32.

    A window's weights are the products of those of its axes. None is below 1e-12, so that no product vanishes.
    """
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.exp(-0.5 * (offsets / (sigma * size)) ** 2).clamp(min=1e-12).float()


def predict_slabs(
    predictor: Predictor,
    image,
    *,
    patch: Sequence[int],
    step: float,
    sigma: float,
    mirror_axes: Sequence[int] = (),
    device: torch.device,
) -> Iterator[Slab]:
    """Logits of a whole image, weighted over overlapping windows, in slabs from first to last row.

    Args:
        predictor: takes windows on `device` and gives their logits there.
        image: array (channels, z, y, x) that is read window by window (NumPy or blosc2); zero is assumed around it.
        patch: voxels per axis of a window.
        step: largest distance of windows in patches.
        sigma: of the Gaussian weights, in patches.
        mirror_axes: each window is averaged over its mirror images along all subsets of these axes (0, 1, 2: z, y, x).
        device: where windows are computed and summed.
    """
    shape = tuple(image.shape[1:])
    starts = [window_starts(size, extent, step) for size, extent in zip(shape, patch, strict=True)]
    weights = [gaussian_weights(extent, sigma).to(device) for extent in patch]
    totals = [total_weights(*axis) for axis in zip(shape, starts, weights, strict=True)]
    window_weights = outer_product(weights) / 2 ** len(mirror_axes)
    inside = [slice(-side[0], size - side[0]) for size, side in zip(shape[1:], starts[1:], strict=True)]
    sums = None
    for row, following in itertools.pairwise([*starts[0], starts[0][-1] + patch[0]]):
        for column, line in itertools.product(*starts[1:]):
            window = torch.from_numpy(read_box(image, Box(start=(row, column, line), shape=tuple(patch))))
            y, x = column - starts[1][0], line - starts[2][0]
            for logits in mirrored(predictor, window[None].to(device), mirror_axes):
                if sums is None:
                    plane = (max(size, extent) for size, extent in zip(shape[1:], patch[1:], strict=True))
                    sums = torch.zeros(logits.shape[1], patch[0], *plane, device=device)
                sums[:, :, y : y + patch[1], x : x + patch[2]].addcmul_(logits[0], window_weights)
                del logits  # else they would be held while the network runs again
        first, done = max(0, row), following - row
        yield from _finished(sums[:, first - row : done, *inside], totals, first)
        _shift(sums, done)


def outer_product(axes: Sequence[Tensor]) -> Tensor:
    """(z, y, x) from weights per axis."""
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x


def total_weights(size: int, starts: Sequence[int], weights: Tensor) -> Tensor:
    """Sum of the weights of all windows along one axis, per voxel of the image."""
    total = weights.new_zeros(max(size, len(weights)))
    for start in starts:
        total[start - starts[0] :][: len(weights)] += weights
    return total[-starts[0] :][:size]


def mirrored(predictor: Predictor, window: Tensor, axes: Sequence[int]) -> Iterator[Tensor]:
    """Logits of a window (1, channels, z, y, x) and of its mirror images along all subsets of `axes`, turned back."""
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            dimensions = [axis + 2 for axis in chosen]
            yield predictor(window.flip(dimensions)).flip(dimensions)


def _finished(sums: Tensor, totals: Sequence[Tensor], first: int) -> Iterator[Slab]:
    """Slabs of finished rows (classes, rows, y, x), the first of which is row `first` of the image."""
    height = max(1, SLAB_BYTES // sums[:, :1].nbytes)
    end = min(first + sums.shape[1], len(totals[0]))
    for start in range(first, end, height):
        stop = min(end, start + height)
        total = outer_product([totals[0][start:stop], *totals[1:]])
        yield Slab(start=start, stop=stop, logits=sums[:, start - first : stop - first] / total)


def _shift(sums: Tensor, rows: int) -> None:
    """Moves the sums `rows` towards the front along the second axis and clears what becomes free."""
    kept = sums.shape[1] - rows
    for first in range(0, kept, rows):  # never more than `rows` at once: source and target do not overlap
        count = min(rows, kept - first)
        sums[:, first : first + count] = sums[:, first + rows : first + rows + count]
    sums[:, kept:] = 0
