"""Overlap of two label maps: the Dice similarity coefficient (DSC)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VOXELS_AT_ONCE = 2**24


def dice_per_label(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """DSC = 2 |P ∩ R| / (|P| + |R|) of each label (Dice 1945), all labels from one count of value pairs.

    Args:
        prediction: label map of any shape, unsigned or non-negative integers.
        reference: label map of the same shape.
        labels: values to score, each once; other values count as not being any of them.

    Returns:
        float64, one value from 0 to 1 per label, in the order of `labels`. NaN where neither map has the label,
        0 where one map alone has it.

    Raises:
        ValueError: the shapes differ.
    """
    both, predicted, referred = label_counts(prediction, reference, labels)
    with np.errstate(invalid="ignore"):
        return 2.0 * both / (predicted + referred)


def label_counts(
    prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels per label: in both maps, in the prediction, in the reference; arguments as in `dice_per_label`."""
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must agree")
    size = len(labels) + 1
    predicted, referred = _positions(prediction, labels), _positions(reference, labels)
    pairs = np.zeros(size * size, dtype=np.int64)
    for start in range(0, predicted.size, VOXELS_AT_ONCE):
        part = slice(start, start + VOXELS_AT_ONCE)
        pairs += np.bincount(predicted[part].astype(np.int64) * size + referred[part], minlength=size * size)
    table = pairs.reshape(size, size)
    return table.diagonal()[1:].copy(), table.sum(axis=1)[1:], table.sum(axis=0)[1:]


def _positions(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Flat array of 1 + the position of each voxel's value in `labels`, 0 for other values."""
    largest = max([int(array.max(initial=0)), *labels])
    position = np.zeros(largest + 1, dtype=np.uint16)
    position[list(labels)] = np.arange(1, len(labels) + 1)
    return position[array.reshape(-1)]
