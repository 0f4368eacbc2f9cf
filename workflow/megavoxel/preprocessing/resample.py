"""Images and label maps to another spacing, by the rules of nnU-Net.

Images: spline interpolation on a grid is separable. Along each axis it is one matrix, and that matrix is what
`scipy.ndimage.zoom` makes of the unit vectors; multiplying by it gives what `zoom` gives on the whole array
(`grid_mode=True`, `mode="nearest"`), many times as fast.

Label maps: linear interpolation of the mask of each label, and the label with the largest share. A voxel of the new
grid lies between eight of the old one. Where these agree there is nothing to decide; elsewhere they vote with their
weights. Two differences from nnU-Net 2.8 remain. What lies outside of the nonzero region is a label of its own there
(-1) while masks are interpolated, and divides the votes of the background; here it is background. And shares that are
equal but for rounding are a tie here, whereas rounding decides there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from megavoxel.volumes.grid import separate_axis

TIED = 1e-9
"""Shares that differ by less count as equal: rounding alone tells them apart."""
VOTES_AT_ONCE = 2**18
"""Voxels whose corners are held in memory together."""
NEGLIGIBLE = 1e-7
"""Weights of a spline below this are left out where a block is resampled on its own. Those of a cubic spline shrink by
3.7 per voxel: what is left out adds up to less than 3e-7 of the largest intensity along an axis."""

Taps = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Along an axis, the old voxel before and the one behind each new voxel, each with its weight."""


@dataclass(frozen=True, kw_only=True)
class AxisTaps:
    """Along an axis, the old voxels around each new one."""

    nearest: np.ndarray
    sides: Taps

    def part(self, span: slice) -> tuple[slice, AxisTaps]:
        """The old voxels that the new ones of `span` need, and the taps of those, counted from the first of them."""
        (before, first), (behind, second) = self.sides
        nearest, before, behind = self.nearest[span], before[span], behind[span]
        hull = _hull(np.concatenate([nearest, before, behind]))
        sides = ((before - hull.start, first[span]), (behind - hull.start, second[span]))
        return hull, AxisTaps(nearest=nearest - hull.start, sides=sides)


def resample_image(
    array: np.ndarray,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    new_shape: Sequence[int],
    order: int,
) -> np.ndarray:
    """Resamples images by splines; values stay within the range of the input, as in `skimage.transform.resize`.

    Args:
        array: float32 (channels, three axes).
        current_spacing: mm per axis of `array`.
        new_spacing: mm per axis of the result; with the former it says whether one axis is taken on its own.
        new_shape: voxels per axis of the result.
        order: of the spline, 0 to 5. Where one axis is much coarser, slices across it are resampled in-plane with this
            order, and the nearest slice is taken.

    Returns:
        float32 (channels, *new_shape); `array` itself where the shape does not change.
    """
    if tuple(array.shape[1:]) == tuple(new_shape):
        return array
    separate = separate_axis(current_spacing, new_spacing)
    resampled = np.empty((len(array), *new_shape), dtype=np.float32)
    for channel, target in zip(array, resampled, strict=True):
        target[...] = _resample_channel(channel, new_shape, separate, order)
    return resampled


def resample_block(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    place: tuple[slice, ...],
    grids: tuple[Sequence[int], Sequence[int]],
    limits: tuple[np.ndarray, np.ndarray],
    separate: int | None,
    order: int,
) -> np.ndarray:
    """A block of the channel that `resample_image` makes, but for weights that are negligible and for rounding.

    Args:
        read: gives a box of the old channel, float32.
        place: the block on the new grid.
        grids: voxels per axis of the old and of the new grid.
        limits: `extremes` of the old channel.
        separate: the axis across which the nearest slice is taken, or None.
        order: of the spline.
    """
    spans, weights = [], {}
    for axis, (old, new, span) in enumerate(zip(*grids, place, strict=True)):
        if axis == separate:
            spans.append(_hull(nearest_voxels(old, new)[span]))
        elif old == new:
            spans.append(span)
        else:
            rows = axis_weights(old, new, order)[span]
            spans.append(_hull(np.flatnonzero((np.abs(rows) >= NEGLIGIBLE).any(axis=0))))
            weights[axis] = np.ascontiguousarray(rows[:, spans[axis]])
    block = read(tuple(spans))
    for axis in sorted(weights, key=lambda axis: grids[1][axis] / grids[0][axis]):
        block = _along(block, axis, weights[axis])
    if separate is None:
        return np.clip(block, *limits)
    slices = (*(slice(None),) * separate, spans[separate])
    block = np.clip(block, *(limit[slices] for limit in limits))
    nearest = nearest_voxels(grids[0][separate], grids[1][separate])[place[separate]]
    return block.take(nearest - spans[separate].start, axis=separate)


def extremes(
    blocks: Iterable[tuple[tuple[slice, ...], np.ndarray]], shape: Sequence[int], separate: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of a channel, or of each of its slices across the axis `separate`.

    Args:
        blocks: places and voxels; together the channel.
        shape: of the channel.
        separate: an axis, or None.

    Returns:
        Two float32 arrays of three axes, each of one voxel but `separate`.
    """
    size = [shape[axis] if axis == separate else 1 for axis in range(3)]
    low, high = np.full(size, np.inf, dtype=np.float32), np.full(size, -np.inf, dtype=np.float32)
    in_plane = tuple(axis for axis in range(3) if axis != separate)
    for place, voxels in blocks:
        part = tuple(place[axis] if axis == separate else slice(None) for axis in range(3))
        low[part] = np.minimum(low[part], voxels.min(axis=in_plane, keepdims=True))
        high[part] = np.maximum(high[part], voxels.max(axis=in_plane, keepdims=True))
    return low, high


def resample_labels(
    labels: np.ndarray,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    new_shape: Sequence[int],
    order: int,
) -> np.ndarray:
    """Resamples a label map: masks of the labels are interpolated, and the largest share takes the voxel.

    Of equal shares the nearest voxel's label wins; where that is none of them, the smallest label. The same as
    `resize_segmentation` of batchgenerators 0.25.5, which nnU-Net 2.8 uses.

    Args:
        labels: unsigned integers (three axes).
        current_spacing: mm per axis of `labels`.
        new_spacing: mm per axis of the result.
        new_shape: voxels per axis of the result.
        order: 0 (nearest neighbour) or 1 (linear); the nearest slice across an axis that is much coarser.

    Returns:
        (new_shape), dtype of `labels`; `labels` itself where the shape does not change.
    """
    if tuple(labels.shape) == tuple(new_shape):
        return labels
    return elect_labels(labels, label_taps(labels.shape, new_shape, separate_axis(current_spacing, new_spacing)), order)


def label_taps(old_shape: Sequence[int], new_shape: Sequence[int], separate: int | None) -> list[AxisTaps]:
    """Per axis, the old voxels that the new ones lie between; across the axis `separate` the nearest alone counts."""
    sizes = enumerate(zip(old_shape, new_shape, strict=True))
    return [
        AxisTaps(nearest=nearest_voxels(*size), sides=_nearest_taps(*size) if axis == separate else _linear_taps(*size))
        for axis, size in sizes
    ]


def elect_labels(labels: np.ndarray, axes: Sequence[AxisTaps], order: int) -> np.ndarray:
    """The label that the old voxels around each new one elect, as `resample_labels` has it.

    Args:
        labels: unsigned integers (three axes).
        axes: the old voxels of each new one, per axis.
        order: 0 or 1.
    """
    resampled = labels[np.ix_(*(axis.nearest for axis in axes))]
    if order == 0:
        return resampled
    taps = [axis.sides for axis in axes]
    undecided = np.flatnonzero(_corners_differ(labels, taps))
    for begin in range(0, len(undecided), VOTES_AT_ONCE):
        chosen = np.unravel_index(undecided[begin : begin + VOTES_AT_ONCE], resampled.shape)
        resampled[chosen] = _vote(labels, taps, chosen, resampled[chosen])
    return resampled


def nearest_voxels(old_size: int, new_size: int) -> np.ndarray:
    """The old voxel that is nearest to each new one along an axis (halves: the later one)."""
    return np.clip(np.floor(_places(old_size, new_size) + 0.5), 0, old_size - 1).astype(int)


@lru_cache(maxsize=32)
def axis_weights(old_size: int, new_size: int, order: int) -> np.ndarray:
    """The matrix (new_size, old_size), float32, that resamples one axis; voxel centres lie at (i + 1/2) / size."""
    columns = [
        ndimage.zoom(unit, new_size / old_size, order=order, mode="nearest", grid_mode=True)
        for unit in np.eye(old_size)
    ]
    weights = np.stack(columns, axis=1).astype(np.float32)
    weights.flags.writeable = False
    return weights


def _resample_channel(channel: np.ndarray, new_shape: Sequence[int], separate: int | None, order: int) -> np.ndarray:
    in_plane = tuple(axis for axis in range(3) if axis != separate)
    low, high = channel.min(axis=in_plane, keepdims=True), channel.max(axis=in_plane, keepdims=True)
    changed = [axis for axis in in_plane if channel.shape[axis] != new_shape[axis]]
    for axis in sorted(changed, key=lambda axis: new_shape[axis] / channel.shape[axis]):
        channel = _along(channel, axis, axis_weights(channel.shape[axis], new_shape[axis], order))
    channel = np.clip(channel, low, high)
    if separate is None:
        return channel
    return channel.take(nearest_voxels(channel.shape[separate], new_shape[separate]), axis=separate)


def _hull(places: np.ndarray) -> slice:
    return slice(int(places.min()), int(places.max()) + 1)


def _places(old_size: int, new_size: int) -> np.ndarray:
    """Centres of the new voxels in units of old ones, counted from the centre of the first."""
    return (np.arange(new_size) + 0.5) * (old_size / new_size) - 0.5


def _nearest_taps(old_size: int, new_size: int) -> Taps:
    nearest = nearest_voxels(old_size, new_size)
    return (nearest, np.ones(new_size)), (nearest, np.zeros(new_size))


def _linear_taps(old_size: int, new_size: int) -> Taps:
    place = np.clip(_places(old_size, new_size), 0, old_size - 1)
    before = np.floor(place).astype(int)
    share = place - before
    return (before, 1 - share), (np.minimum(before + 1, old_size - 1), share)


def _corners_differ(labels: np.ndarray, taps: Sequence[Taps]) -> np.ndarray:
    """Where the eight old voxels around a new one are not all of one label."""
    low = high = labels
    for axis, ((before, _), (after, _)) in enumerate(taps):
        low = np.minimum(low.take(before, axis=axis), low.take(after, axis=axis))
        high = np.maximum(high.take(before, axis=axis), high.take(after, axis=axis))
    return low != high


def _vote(labels: np.ndarray, taps: Sequence[Taps], chosen: Sequence[np.ndarray], nearest: np.ndarray) -> np.ndarray:
    """The label with the largest share among the eight old voxels around each chosen new one."""
    corners = np.empty((8, len(nearest)), dtype=labels.dtype)
    weights = np.ones((8, len(nearest)))
    for number, sides in enumerate(product((0, 1), repeat=3)):
        sampled = [taps[axis][side] for axis, side in enumerate(sides)]
        corners[number] = labels[tuple(old[where] for (old, _), where in zip(sampled, chosen, strict=True))]
        for (_, weight), where in zip(sampled, chosen, strict=True):
            weights[number] *= weight[where]
    shares = np.stack([np.where(corners == corner, weights, 0).sum(axis=0) for corner in corners])
    leading = shares >= shares.max(axis=0) - TIED
    smallest = np.where(leading, corners, np.iinfo(labels.dtype).max).min(axis=0)
    return np.where((leading & (corners == nearest)).any(axis=0), nearest, smallest)


def _along(array: np.ndarray, axis: int, weights: np.ndarray) -> np.ndarray:
    """`weights` (new, old) applied to one axis of a three-dimensional array."""
    shape = (*array.shape[:axis], len(weights), *array.shape[axis + 1 :])
    if axis == 0:
        return (weights @ array.reshape(array.shape[0], -1)).reshape(shape)
    if axis == array.ndim - 1:
        return (array.reshape(-1, array.shape[-1]) @ weights.T).reshape(shape)
    return np.matmul(weights, array)
