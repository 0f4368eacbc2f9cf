"""Images and label maps to another spacing, by the rules of nnU-Net.

Spline interpolation on a grid is separable: along each axis it is one matrix, and that matrix is what
`scipy.ndimage.zoom` makes of the unit vectors. Multiplying by it gives what `zoom` gives on the whole array
(`grid_mode=True`, `mode="nearest"`), many times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from megavoxel.data.grid import separate_axis

THRESHOLD = 0.5 - 1e-6
"""A label owns a voxel that it covers by one half; the margin takes in sums that rounding left just below."""


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


def resample_labels(
    labels: np.ndarray,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    new_shape: Sequence[int],
    order: int,
) -> np.ndarray:
    """Resamples a label map: each label's mask is interpolated, in ascending order, and taken where it is 0.5 or more.

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
    separate = separate_axis(current_spacing, new_spacing)
    weights = [
        axis_weights(old, new, 0 if axis == separate else order)
        for axis, (old, new) in enumerate(zip(labels.shape, new_shape, strict=True))
    ]
    resampled = np.zeros(tuple(new_shape), dtype=labels.dtype)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            _add_label(resampled, labels[box] == label, label, box, weights)
    return resampled


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
    nearest = axis_weights(channel.shape[separate], new_shape[separate], 0).argmax(axis=1)
    return channel.take(nearest, axis=separate)


def _add_label(
    target: np.ndarray, mask: np.ndarray, label: int, box: tuple[slice, ...], weights: Sequence[np.ndarray]
) -> None:
    """Writes `label` where its resampled mask is large enough, computing only voxels that its box can reach."""
    reached = []
    share = mask.astype(np.float32)
    for axis, (matrix, side) in enumerate(zip(weights, box, strict=True)):
        if len(matrix) == matrix.shape[1]:
            reached.append(side)
            continue
        columns = matrix[:, side]
        rows = np.flatnonzero(columns.any(axis=1))
        if not rows.size:
            return
        reached.append(slice(rows[0], rows[-1] + 1))
        share = _along(share, axis, columns[reached[-1]])
    target[tuple(reached)][share >= THRESHOLD] = label


def _along(array: np.ndarray, axis: int, weights: np.ndarray) -> np.ndarray:
    """`weights` (new, old) applied to one axis of a three-dimensional array."""
    shape = (*array.shape[:axis], len(weights), *array.shape[axis + 1 :])
    if axis == 0:
        return (weights @ array.reshape(array.shape[0], -1)).reshape(shape)
    if axis == array.ndim - 1:
        return (array.reshape(-1, array.shape[-1]) @ weights.T).reshape(shape)
    return np.matmul(weights, array)
