"""Agreement of two surfaces: the normalised surface distance (NSD), also called surface Dice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from scipy.ndimage import find_objects

MARGIN = 1
Box = tuple[slice, ...]


def surface_dice(prediction: np.ndarray, reference: np.ndarray, *, tolerance: float, spacing: Sequence[float]) -> float:
    """NSD of two masks as defined by Nikolov et al. 2018 (arXiv:1809.04430, section "surface DSC").

    The surfaces run between voxels: each neighbourhood of 2 x 2 x 2 voxels contributes the area in mm² of its
    marching-cubes elements. NSD is the area of both surfaces that lies within `tolerance` of the other one, divided
    by the area of both. Outside of the array counts as not in the mask, so that a mask that touches the border has a
    surface there.

    Args:
        prediction: boolean mask with three axes.
        reference: boolean mask of the same shape.
        tolerance: largest accepted distance in mm, 0 or more.
        spacing: voxel size in mm per axis, in the order of the arrays' axes.

    Returns:
        A number from 0 to 1; NaN where both masks are empty, 0 where one is.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must agree")
    present = bool(prediction.any()), bool(reference.any())
    if not all(present):
        return 0.0 if any(present) else float("nan")
    with _quiet_single_thread():
        value = compute_surface_dice(
            _tensor(prediction),
            _tensor(reference),
            class_thresholds=[float(tolerance)],
            include_background=True,
            spacing=[float(size) for size in spacing],
            use_subvoxels=True,
        )
    return float(value)


def surface_dice_per_label(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Sequence[int],
    *,
    tolerances: Sequence[float],
    spacing: Sequence[float],
) -> np.ndarray:
    """NSD of each label, computed in the box around both masks: the same value as on the whole maps.

    Args:
        prediction: label map with three axes, integers from 0.
        reference: label map of the same shape.
        labels: values to score, 1 or more.
        tolerances: largest accepted distance in mm, one per label.
        spacing: voxel size in mm per axis, in the order of the arrays' axes.

    Returns:
        float64, one value per label as in `surface_dice`.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must agree")
    boxes = [_boxes(array, labels) for array in (prediction, reference)]
    scores = np.full(len(labels), np.nan)
    for position, (label, tolerance) in enumerate(zip(labels, tolerances, strict=True)):
        box = _around([found[label] for found in boxes if found[label] is not None], prediction.shape)
        if box is not None:
            scores[position] = surface_dice(
                prediction[box] == label, reference[box] == label, tolerance=tolerance, spacing=spacing
            )
    return scores


@contextmanager
def _quiet_single_thread() -> Iterator[None]:
    """Areas are summed in float32: the order of the sum, and so its last digits, must not depend on the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            # MONAI warns of an argument that its own code passes.
            warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
            yield
    finally:
        torch.set_num_threads(before)


def _tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=bool))[None, None]


def _boxes(array: np.ndarray, labels: Sequence[int]) -> dict[int, Box | None]:
    found = find_objects(array.astype(np.int32, copy=False))
    return {label: found[label - 1] if label <= len(found) else None for label in labels}


def _around(boxes: Sequence[Box], shape: Sequence[int]) -> Box | None:
    if not boxes:
        return None
    return tuple(
        slice(max(0, min(side.start for side in sides) - MARGIN), min(size, max(side.stop for side in sides) + MARGIN))
        for size, *sides in zip(shape, *boxes, strict=True)
    )
