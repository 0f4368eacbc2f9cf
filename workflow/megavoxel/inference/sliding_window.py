"""The sliding window, row of windows by row, so that memory is bounded by one row and not by the volume.

Where a row of windows across a whole plane is too much, the image is gone through in strips along the second axis, each
from the first row to the last. Windows of two strips overlap: what a strip adds to voxels of the next one is kept in a
file, row by row, and read in the same order when the next strip gets there.

The weights of a window's voxels are kept as terms: outer products of weights per axis, whose sum they are. The total of
all windows of a grid is then the same sum of the totals per axis, and is only made for the voxels that are asked for.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from megavoxel.errors import UserError
from megavoxel.preprocessing.store import Box, read_box
from megavoxel.volumes.grid import window_starts

Terms = list[list[Tensor]]
"""Per term the weights along axes z, y and x, float32."""


def window_terms(kind: str, patch: Sequence[int], *, sigma: float, device: torch.device) -> Terms:
    """Weights of a window's voxels.

    `centre` is that of Wang et al., "Memory-efficient Segmentation of High-resolution Volumetric MicroCT Images" (MIDL
    2022, appendix A.6), who double the weights of the centre of a patch and do not say how large it is: here the box of
    the voxels that lie in the central half of all three axes has the weight 2, all others 1.

    Args:
        kind: `gaussian` or `centre`, as `inference.weights` of a study.
        patch: voxels per axis.
        sigma: of `gaussian`, in windows.
    """
    if kind == "centre":
        terms = [[torch.ones(extent) for extent in patch], [central_half(extent) for extent in patch]]
    else:
        terms = [[gaussian_weights(extent, sigma) for extent in patch]]
    return [[axis.to(device) for axis in term] for term in terms]


def gaussian_weights(size: int, sigma: float) -> Tensor:
    """Weights of a window along one axis: a Gaussian of `sigma` windows, 1 at voxel size // 2 as in nnU-Net, float32.

    A window's weights are the products of those of its axes. None is below 1e-12, so that no product vanishes.
    """
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.exp(-0.5 * (offsets / (sigma * size)) ** 2).clamp(min=1e-12).float()


def central_half(size: int) -> Tensor:
    """1 for the voxels of an axis whose centres lie in its central half, ends included, else 0; float32.

    That is half of them where the size is a multiple of four, and always the same seen from both ends.
    """
    offsets = 2 * torch.arange(size) + 1 - size  # of the centres, in half voxels
    return (2 * offsets.abs() <= size).float()


def total_terms(shape: Sequence[int], starts: Sequence[Sequence[int]], terms: Terms) -> Terms:
    """Sum of the weights of all windows, per voxel of the image.

    Args:
        shape: voxels of the image per axis.
        starts: first voxels of the windows per axis; there is a window at every combination of them.
        terms: weights of a window.
    """
    return [[total_weights(*axis) for axis in zip(shape, starts, term, strict=True)] for term in terms]


def total_weights(size: int, starts: Sequence[int], weights: Tensor) -> Tensor:
    """Sum of the weights of all windows along one axis, per voxel of the image."""
    total = weights.new_zeros(max(size, len(weights)))
    for start in starts:
        total[start - starts[0] :][: len(weights)] += weights
    return total[-starts[0] :][:size]


def sum_of_products(terms: Terms) -> Tensor:
    """The weights (z, y, x) that terms stand for."""
    return reduce(torch.add, map(outer_product, terms))


def outer_product(axes: Sequence[Tensor]) -> Tensor:
    """(z, y, x) from weights per axis."""
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x


Predictor = Callable[[Tensor], Tensor]
"""Takes a window, float32 (1, channels, patch), and gives its logits, float32 (1, classes, patch)."""
SLAB_BYTES = 8 * 2**20
"""Most bytes of a slab's logits, unless one row has more."""
SUMS_BYTES = 2**28
"""Most bytes of the sums over the windows of a strip, unless one window across the image has more."""
HOST_SUMS_BYTES = 2**24
"""The limit on a CPU, where a job is granted its memory, and a detour through a file is cheap beside the windows."""


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Finished logits of the rows from `start` to `stop` along the first axis."""

    start: int
    stop: int
    logits: Tensor
    """float32 (classes, stop - start, y, x)."""
    first_column: int = 0
    """Voxel of the second axis with which the logits begin."""

    @property
    def place(self) -> tuple[slice, ...]:
        """Where it belongs in an array (classes, z, y, x)."""
        columns = slice(self.first_column, self.first_column + self.logits.shape[2])
        return slice(None), slice(self.start, self.stop), columns


def finite(slab: Slab, *, name: str) -> Slab:
    """A slab as it is: what is not finite would become a label map that says nothing, and looks like a finding.

    Raises:
        UserError: logits are NaN or infinite; `name` says of what.
    """
    if slab.logits.numel() and not torch.isfinite(torch.stack(slab.logits.aminmax())).all():
        raise UserError(
            f"{name}: the network gives values that are NaN or infinite, so that nothing is labelled; its weights are "
            "damaged or its training failed, or half precision is too little for this image"
        )
    return slab


def predict_slabs(
    predictor: Predictor,
    image,
    *,
    patch: Sequence[int],
    step: float,
    sigma: float,
    weights: str = "gaussian",
    mirror_axes: Sequence[int] = (),
    device: torch.device,
    classes: int | None = None,
    scratch: Path | None = None,
) -> Iterator[Slab]:
    """Logits of a whole image, weighted over overlapping windows, in slabs from first to last row.

    Where strips are needed, the slabs of one strip come after those of the other, each from first to last row.

    Args:
        predictor: takes windows on `device` and gives their logits there.
        image: array (channels, z, y, x) that is read window by window (NumPy or blosc2); zero is assumed around it.
        patch: voxels per axis of a window.
        step: largest distance of windows in patches.
        sigma: of the Gaussian weights, in patches.
        weights: how the voxels of a window count, `gaussian` or `centre`; see `window_terms`.
        mirror_axes: each window is averaged over its mirror images along all subsets of these axes (0, 1, 2: z, y, x).
        device: where windows are computed and summed.
        classes: of the logits, by which the width of strips is chosen; None: one strip whatever its size.
        scratch: folder for what strips hand on; None: the system's folder for temporary files.
    """
    shape = tuple(image.shape[1:])
    starts = [window_starts(size, extent, step) for size, extent in zip(shape, patch, strict=True)]
    terms = window_terms(weights, patch, sigma=sigma, device=device)
    totals = total_terms(shape, starts, terms)
    window_weights = sum_of_products(terms) / 2 ** len(mirror_axes)
    inside = slice(-starts[2][0], shape[2] - starts[2][0])

    def read_logits(start: tuple[int, int, int]) -> Iterator[Tensor]:
        window = torch.from_numpy(read_box(image, Box(start=start, shape=tuple(patch))))[None]
        if device.type == "cuda":  # from pinned memory the host does not wait for the copy
            window = window.pin_memory()
        return mirrored(predictor, window.to(device, non_blocking=True), mirror_axes)

    on_host = device.type == "cpu"
    widest = widest_strip(classes, patch, max(shape[2], patch[2]), on_host=on_host) if classes else None
    with ExitStack() as files:
        kept: BinaryIO | None = None
        for strip in window_strips(starts[1], patch[1], widest):
            columns = slice(max(0, strip.columns[0]), min(shape[1], strip.end))
            own = slice(columns.start - strip.columns[0], columns.stop - strip.columns[0])
            handed_on = None if strip.is_last else files.enter_context(tempfile.TemporaryFile(dir=scratch))
            for row, sums in _summed_rows(read_logits, (starts[0], strip.columns, starts[2]), window_weights):
                if kept is not None:
                    _add(sums, kept, strip.received)
                if handed_on is not None:
                    handed_on.write(sums[:, :, own.stop :].contiguous().cpu().numpy().data)
                first = max(0, row)
                in_plane = [[z, y[columns], x] for z, y, x in totals]
                yield from _finished(sums[:, first - row :, own, inside], in_plane, first, columns.start)
            if kept is not None:
                kept.close()
            if handed_on is not None:
                handed_on.seek(0)
            kept = handed_on


def widest_strip(classes: int, patch: Sequence[int], line: int, *, on_host: bool) -> int:
    """Voxels along the second axis whose sums over a row of windows take `SUMS_BYTES` at most, or `HOST_SUMS_BYTES`.

    Args:
        classes: of the logits.
        patch: voxels per axis of a window.
        line: voxels of the image along the third axis, at least those of a window.
        on_host: whether windows are summed on a CPU.
    """
    return max(1, (HOST_SUMS_BYTES if on_host else SUMS_BYTES) // (4 * classes * patch[0] * line))


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Neighbouring windows along the second axis."""

    columns: tuple[int, ...]
    """First voxels of the windows."""
    end: int
    """First voxel that later windows touch, or the first one behind the last window."""
    received: int
    """Voxels from the first window's on that windows of earlier strips reach."""
    is_last: bool


def window_strips(columns: Sequence[int], patch: int, widest: int | None) -> list[Strip]:
    """Windows in strips of at most `widest` voxels, but at least one window each; None: one strip.

    Args:
        columns: first voxels of the windows along the second axis, ascending.
        patch: voxels of a window along it.
        widest: voxels.
    """
    groups: list[list[int]] = []
    for column in columns:
        if groups and (widest is None or column + patch - groups[-1][0] <= widest):
            groups[-1].append(column)
        else:
            groups.append([column])
    strips, reached = [], columns[0]
    for group, following in itertools.pairwise([*groups, None]):
        end = group[-1] + patch if following is None else min(following[0], group[-1] + patch)
        strips.append(
            Strip(columns=tuple(group), end=end, received=max(0, reached - group[0]), is_last=following is None)
        )
        reached = group[-1] + patch
    return strips


def _summed_rows(
    read_logits: Callable[[tuple[int, int, int]], Iterator[Tensor]],
    starts: Sequence[Sequence[int]],
    window_weights: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """First row and weighted sums (classes, rows, y, x) of what no later window of a strip touches.

    The sums are overwritten when the next ones are asked for.
    """
    patch = window_weights.shape
    sums = None
    for row, following in itertools.pairwise([*starts[0], starts[0][-1] + patch[0]]):
        for column, line in itertools.product(*starts[1:]):
            y, x = column - starts[1][0], line - starts[2][0]
            for logits in read_logits((row, column, line)):
                if sums is None:
                    plane = (side[-1] - side[0] + extent for side, extent in zip(starts[1:], patch[1:], strict=True))
                    sums = torch.zeros(logits.shape[1], patch[0], *plane, device=logits.device)
                sums[:, :, y : y + patch[1], x : x + patch[2]].addcmul_(logits[0], window_weights)
                del logits  # else they would be held while the network runs again
        yield row, sums[:, : following - row]
        _shift(sums, following - row)


def _add(sums: Tensor, kept: BinaryIO, columns: int) -> None:
    """Adds what the strip before handed on to the first columns of the sums."""
    part = sums[:, :, :columns]
    values = np.frombuffer(bytearray(kept.read(4 * part.numel())), dtype=np.float32)
    part += torch.from_numpy(values).view(part.shape).to(sums.device)


def mirrored(predictor: Predictor, window: Tensor, axes: Sequence[int]) -> Iterator[Tensor]:
    """Logits of a window (1, channels, z, y, x) and of its mirror images along all subsets of `axes`, turned back."""
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            dimensions = [axis + 2 for axis in chosen]
            yield predictor(window.flip(dimensions)).flip(dimensions)


def _finished(sums: Tensor, totals: Terms, first: int, column: int) -> Iterator[Slab]:
    """Slabs of finished rows (classes, rows, y, x), which begin with row `first` and column `column` of the image."""
    height = max(1, SLAB_BYTES // sums[:, :1].nbytes)
    end = min(first + sums.shape[1], len(totals[0][0]))
    for start in range(first, end, height):
        stop = min(end, start + height)
        total = sum_of_products([[z[start:stop], y, x] for z, y, x in totals])
        logits = sums[:, start - first : stop - first] / total
        yield Slab(start=start, stop=stop, logits=logits, first_column=column)


def _shift(sums: Tensor, rows: int) -> None:
    """Moves the sums `rows` towards the front along the second axis and clears what becomes free."""
    kept = sums.shape[1] - rows
    for first in range(0, kept, rows):  # never more than `rows` at once: source and target do not overlap
        count = min(rows, kept - first)
        sums[:, first : first + count] = sums[:, first + rows : first + rows + count]
    sums[:, kept:] = 0
