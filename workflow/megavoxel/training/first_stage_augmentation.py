"""Random faults of a first stage's label maps, so that the second stage learns not to trust them blindly.

Both are nnU-Net's (the end of `nnUNetTrainer.get_training_transforms`): its transforms of batchgeneratorsv2 change
one-hot channels that exclude one another, which a map of classes holds as well. Every branch has draws of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from megavoxel.config.training import Augmentation
from megavoxel.volumes.masks import labelled_components

PER_LABEL = 0.5
"""Probability that a label is changed where its branch is."""
RADII = np.arange(1, 8, 0.5)
"""Radii of balls in voxels. nnU-Net draws r between 1 and 8, and its ball has 2r + 1 voxels per axis, rounded down; one
of an even number lies half a voxel off its centre, which balls here do not."""
LARGEST_SHARE = 0.15
"""Components that cover this share of the patch, or more, stay."""
CONNECTIVITY = 26

Slices = tuple[slice, ...]
Operation = Callable[[np.ndarray, float], np.ndarray]


def augment_first_stage(labels: np.ndarray, keys: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Dilates, erodes, opens or closes labels, then removes small components, with the probabilities of `keys`.

    Args:
        labels: uint8 classes (branches, z, y, x) of a patch; left as they are.
        keys: `stage1_morphology` and `stage1_removal`, probabilities per branch.
        random: all draws come from it.

    Returns:
        uint8 (branches, z, y, x).
    """
    changed = labels.copy()
    for classes in changed:
        if random.random() < keys.stage1_morphology:
            change_shapes(classes, random)
        if random.random() < keys.stage1_removal:
            remove_components(classes, random)
    return changed


def change_shapes(classes: np.ndarray, random: np.random.Generator) -> None:
    """Dilates, erodes, opens or closes every other label on average by a ball, in random order and in place.

    Args:
        classes: uint8 (z, y, x), 0 is background.
        random: for the labels, their order, operations and radii.
    """
    boxes = _boxes(classes)
    for label in random.permutation(list(boxes)):
        if random.random() >= PER_LABEL:
            continue
        operation = (dilation, erosion, closing, opening)[random.integers(4)]
        change_shape(classes, int(label), boxes[label], operation, float(random.choice(RADII)))


def change_shape(classes: np.ndarray, label: int, box: Slices, operation: Operation, radius: float) -> None:
    """Applies an operation to a label, in place: what it loses becomes background, what it gains others lose.

    Args:
        classes: uint8 (z, y, x), 0 is background.
        label: one of the classes.
        box: a box that has all of its voxels.
        operation: `dilation`, `erosion`, `opening` or `closing`.
        radius: of the ball, in voxels.
    """
    # No voxel farther away than that takes part: a voxel outside of the box has a nearer one on its margin.
    part = classes[_grown(box, int(radius) + 1, classes.shape)]
    mask = part == label
    result = operation(mask, radius)
    part[mask & ~result] = 0
    part[result] = label


def remove_components(classes: np.ndarray, random: np.random.Generator) -> None:
    """Removes a random component (26 neighbours) of every other label on average, in place; large ones stay.

    Args:
        classes: uint8 (z, y, x), 0 is background.
        random: for the labels and components.
    """
    for label, box in _boxes(classes).items():
        if random.random() >= PER_LABEL:
            continue
        part = classes[box]
        components = labelled_components(part == label, CONNECTIVITY)
        sizes = np.bincount(components.ravel())[1:]
        small = 1 + np.flatnonzero(sizes < LARGEST_SHARE * classes.size)
        if len(small):
            part[components == random.choice(small)] = 0


def dilation(mask: np.ndarray, radius: float) -> np.ndarray:
    """The voxels at most `radius` voxels away from a mask (z, y, x); what lies outside of the array counts for none."""
    limit = int(radius**2)
    return _squared_distance(mask, limit) <= limit


def erosion(mask: np.ndarray, radius: float) -> np.ndarray:
    """The voxels of a mask (z, y, x) more than `radius` voxels away from any other; none lie outside of the array."""
    return ~dilation(~mask, radius)


def opening(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erosion, then dilation: thin parts go."""
    return dilation(erosion(mask, radius), radius)


def closing(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilation, then erosion: narrow gaps are filled."""
    return erosion(dilation(mask, radius), radius)


def _squared_distance(mask: np.ndarray, limit: int) -> np.ndarray:
    """Squared distance in voxels to the mask, or `limit` + 1 where it is larger, uint8; `limit` is at most 127.

    The square of a distance is a sum over axes, so that its minimum is found axis by axis (Saito and Toriwaki 1994,
    Pattern Recognition 27:1551). With distances as short as these, trying all steps along an axis in 8-bit integers is
    several times as fast as `scipy.ndimage.distance_transform_edt`.
    """
    distance = np.where(mask, np.uint8(0), np.uint8(limit + 1))
    for axis in range(mask.ndim):
        before = np.moveaxis(distance, axis, 0)
        after = before.copy()
        for step in range(1, min(int(limit**0.5), len(before) - 1) + 1):
            moved = before + np.uint8(step**2)
            np.minimum(after[step:], moved[:-step], out=after[step:])
            np.minimum(after[:-step], moved[step:], out=after[:-step])
        distance = np.moveaxis(after, 0, axis)
    return distance


def _boxes(classes: np.ndarray) -> dict[int, Slices]:
    """The box around each label that is present."""
    found = ndimage.find_objects(classes)
    return {label: box for label, box in enumerate(found, start=1) if box is not None}


def _grown(box: Slices, margin: int, shape: Sequence[int]) -> Slices:
    """A box with a margin on all sides, as far as the array reaches."""
    return tuple(
        slice(max(0, side.start - margin), min(size, side.stop + margin)) for side, size in zip(box, shape, strict=True)
    )
