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
    return [round(index * (size - patch) / (count - 1)) for index in range(count)]


def gaussian_weights(patch: Sequence[int], sigma: float) -> Tensor:
    """Weights of a window: a Gaussian of `sigma` patches per axis with peak 1, float32 (z, y, x).

    Values that would vanish in float32 are raised to the smallest other one, as in nnU-Net.
    """
    weights = torch.ones(1)
    for size in patch:
        offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        axis = torch.exp(-0.5 * (offsets / (sigma * size)) ** 2)
        weights = weights[..., None] * axis
    weights = (weights[0] / weights.max()).float()
    return weights.clamp(min=weights[weights > 0].min())


def predict_slabs(
    predictor: Predictor, image, *, patch: Sequence[int], step: float, sigma: float, device: torch.device
) -> Iterator[Slab]:
    """Logits of a whole image, weighted over overlapping windows, in slabs from first to last row.

    Args:
        predictor: float32 (1, channels, patch) on `device` to float32 logits (1, classes, patch).
        image: array (channels, z, y, x) that is read window by window (NumPy or blosc2); zero is assumed around it.
        patch: voxels per axis of a window.
        step: largest distance of windows in patches.
        sigma: of the Gaussian weights, in patches.
        device: where windows are computed and summed.
    """
    shape = tuple(image.shape[1:])
    rows, columns, lines = (window_starts(size, extent, step) for size, extent in zip(shape, patch, strict=True))
    weights = gaussian_weights(patch, sigma).to(device)
    origin = (min(0, columns[0]), min(0, lines[0]))
    plane = tuple(max(size, extent) for size, extent in zip(shape[1:], patch[1:], strict=True))
    sums = total = None
    for row, following in itertools.pairwise([*rows, rows[-1] + patch[0]]):
        for column, line in itertools.product(columns, lines):
            window = torch.from_numpy(read_box(image, Box(start=(row, column, line), shape=tuple(patch))))
            logits = predictor(window[None].to(device))[0].float()
            if sums is None:
                sums = torch.zeros(len(logits), patch[0], *plane, device=device)
                total = torch.zeros(patch[0], *plane, device=device)
            y, x = column - origin[0], line - origin[1]
            sums[:, :, y : y + patch[1], x : x + patch[2]] += logits * weights
            total[:, y : y + patch[1], x : x + patch[2]] += weights
        done = following - row
        finished = _inside(sums[:, :done] / total[:done], row, origin, shape)
        if finished.logits.shape[1]:
            yield finished
        _shift(sums, done, axis=1)
        _shift(total, done, axis=0)


def mirrored(predictor: Predictor, axes: Sequence[int]) -> Predictor:
    """Averages a predictor over the image mirrored along every subset of `axes` (0, 1, 2 for z, y, x)."""
    subsets = [
        [axis + 2 for axis in chosen]
        for count in range(len(axes) + 1)
        for chosen in itertools.combinations(axes, count)
    ]

    def predict(window: Tensor) -> Tensor:
        mean = predictor(window)
        for dimensions in subsets[1:]:
            mean = mean + predictor(window.flip(dimensions)).flip(dimensions)
        return mean / len(subsets)

    return predict


def _inside(logits: Tensor, row: int, origin: tuple[int, int], shape: tuple[int, ...]) -> Slab:
    start, stop = max(0, row), min(shape[0], row + logits.shape[1])
    rows = logits[:, start - row : stop - row]
    y, x = -origin[0], -origin[1]
    return Slab(start=start, stop=stop, logits=rows[:, :, y : y + shape[1], x : x + shape[2]])


def _shift(sums: Tensor, rows: int, *, axis: int) -> None:
    """Moves the sums `rows` towards the front along `axis` and clears what becomes free."""
    depth = sums.shape[axis]
    kept = sums.narrow(axis, rows, depth - rows).clone()
    sums.narrow(axis, 0, depth - rows).copy_(kept)
    sums.narrow(axis, depth - rows, rows).zero_()
