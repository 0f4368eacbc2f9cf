"""Labels of two maps compared one by one: how far they overlap, and how far their surfaces lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from scipy.ndimage import find_objects

from megavoxel.evaluation.components import Matching, matched_components
from megavoxel.evaluation.surfaces import border_of, distances_between, near, surface_of

VOXELS_AT_ONCE = 2**24
MARGIN = 1
"""Voxels around both masks that belong to the box of a label."""
MM3_PER_ML = 1000
Box = tuple[slice, ...]
Values = int | tuple[int, ...]
"""Value of a label in label maps, or the values of a region, which may overlap others."""


def dice_per_label(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[Values]) -> np.ndarray:
    """DSC = 2 |P ∩ R| / (|P| + |R|) of each label or region (Dice 1945), all from one count of value pairs.

    Args:
        prediction: label map of any shape, unsigned or non-negative integers.
        reference: label map of the same shape.
        labels: what to score, each once; other values count as not being any of them.

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
    prediction: np.ndarray, reference: np.ndarray, labels: Sequence[Values]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels per label: in both maps, in the prediction, in the reference; arguments as in `dice_per_label`."""
    _require_same_shape(prediction, reference)
    groups = [_tuple_of(label) for label in labels]
    single = list(dict.fromkeys(chain(*groups)))
    size = len(single) + 1
    predicted, referred = _positions(prediction, single), _positions(reference, single)
    pairs = np.zeros(size * size, dtype=np.int64)
    for start in range(0, predicted.size, VOXELS_AT_ONCE):
        part = slice(start, start + VOXELS_AT_ONCE)
        pairs += np.bincount(predicted[part].astype(np.int64) * size + referred[part], minlength=size * size)
    table = pairs.reshape(size, size)
    places = [[1 + single.index(value) for value in group] for group in groups]
    found = [(table[np.ix_(own, own)].sum(), table[own].sum(), table[:, own].sum()) for own in places]
    both, of_prediction, of_reference = np.array(found, dtype=np.int64).reshape(-1, 3).T
    return both, of_prediction, of_reference


def _require_same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must agree")


def mask_of(array: np.ndarray, label: Values) -> np.ndarray:
    """Where a label map has a label or region."""
    values = _tuple_of(label)
    return array == values[0] if len(values) == 1 else np.isin(array, values)


def _tuple_of(label: Values) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else (label,)


def _positions(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Flat array of 1 + the position of each voxel's value in `labels`, 0 for other values."""
    largest = max([int(array.max(initial=0)), *labels])
    position = np.zeros(largest + 1, dtype=np.uint16)
    position[list(labels)] = np.arange(1, len(labels) + 1)
    return position[array.reshape(-1)]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A label of a prediction and of a reference, cut to the box around both masks."""

    prediction: np.ndarray
    """bool, three axes; empty where neither map has the label."""
    reference: np.ndarray
    """bool, of the same shape."""
    both: int
    """Voxels that are in both masks."""
    predicted: int
    """Voxels of the prediction."""
    referred: int
    """Voxels of the reference."""
    tolerance: float
    """Largest distance of surfaces in mm that counts as none."""
    spacing: tuple[float, ...]
    """Voxel size in mm per axis."""
    diagonal_mm: float
    """Length of the whole image's diagonal."""

    @cached_property
    def borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Border voxels of the prediction and of the reference, bool: those with a face to a voxel outside the mask."""
        return border_of(self.prediction), border_of(self.reference)

    @cached_property
    def border_distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances in mm from each border voxel of the prediction to the nearest one of the reference, and back."""
        return distances_between(*self.borders, self.spacing)

    @cached_property
    def bands(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of the prediction within the tolerance of its own border voxels, and those of the reference, bool."""
        masks = zip((self.prediction, self.reference), self.borders, strict=True)
        return tuple(mask & near(border, self.tolerance, self.spacing) for mask, border in masks)

    @cached_property
    def surface_dice(self) -> float:
        """NSD of the masks as defined by Nikolov et al. 2018 (arXiv:1809.04430, section "surface DSC").

        The surfaces run between voxels: each neighbourhood of 2 x 2 x 2 voxels contributes the area in mm² of its
        marching-cubes elements. NSD is the area of both surfaces that lies within the tolerance of the other one,
        divided by the area of both. Outside of the image counts as not in the mask, so that a mask that touches the
        border has a surface there.
        """
        (ours, our_areas), (theirs, their_areas) = (
            surface_of(mask, self.spacing) for mask in (self.prediction, self.reference)
        )
        there, back = distances_between(ours, theirs, self.spacing, within=self.tolerance)
        close = our_areas[there <= self.tolerance], their_areas[back <= self.tolerance]
        # Exact sums: their last digits do not depend on the order of the voxels.
        return math.fsum(chain(*close)) / math.fsum(chain(our_areas, their_areas))

    @cached_property
    def skeletons(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre lines of the prediction and of the reference, bool, by the thinning of Lee et al. 1994."""
        with ThreadPoolExecutor(2) as pool:  # scikit-image lets other threads run while it thins
            prediction, reference = pool.map(_centre_lines, (self.prediction, self.reference))
        return prediction, reference

    @cached_property
    def components(self) -> Matching:
        """Connected components of both masks, and which of them are the same."""
        return matched_components(self.prediction, self.reference)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return math.prod(self.spacing) / MM3_PER_ML


def _centre_lines(mask: np.ndarray) -> np.ndarray:
    from skimage.morphology import skeletonize

    (box,) = find_objects(mask.view(np.uint8))
    found = np.zeros(mask.shape, bool)
    found[box] = skeletonize(mask[box], method="lee")
    return found


def compared_labels(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Sequence[Values],
    *,
    tolerances: Sequence[float],
    spacing: Sequence[float],
) -> Iterator[Compared]:
    """Each label or region of two maps in turn, in the box around both masks: metrics have the values of the whole maps
    there.

    Args:
        prediction: label map with three axes, integers from 0.
        reference: label map of the same shape.
        labels: of values from 1, each once.
        tolerances: largest accepted distance in mm, one per label.
        spacing: voxel size in mm per axis, in the order of the arrays' axes.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(prediction, reference)
    values = sorted(set(chain(*map(_tuple_of, labels))))
    boxes = [_boxes(array, values) for array in (prediction, reference)]
    diagonal = math.hypot(*(length * size for length, size in zip(prediction.shape, spacing, strict=True)))
    for label, tolerance in zip(labels, tolerances, strict=True):
        own = [found[value] for found in boxes for value in _tuple_of(label)]
        box = _around([one for one in own if one is not None], prediction.shape)
        ours, theirs = mask_of(prediction[box], label), mask_of(reference[box], label)
        yield Compared(
            prediction=ours,
            reference=theirs,
            both=np.count_nonzero(ours & theirs),
            predicted=np.count_nonzero(ours),
            referred=np.count_nonzero(theirs),
            tolerance=tolerance,
            spacing=tuple(spacing),
            diagonal_mm=diagonal,
        )


def _boxes(array: np.ndarray, labels: Sequence[int]) -> dict[int, Box | None]:
    found = find_objects(array.astype(np.int32, copy=False))
    return {label: found[label - 1] if label <= len(found) else None for label in labels}


def _around(boxes: Sequence[Box], shape: Sequence[int]) -> Box:
    """The box around all boxes, with a margin; an empty one where there is none."""
    if not boxes:
        return (slice(0, 0),) * len(shape)
    return tuple(
        slice(max(0, min(side.start for side in sides) - MARGIN), min(size, max(side.stop for side in sides) + MARGIN))
        for size, *sides in zip(shape, *boxes, strict=True)
    )
