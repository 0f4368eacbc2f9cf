"""Seconds for the DSC and NSD, and for all metrics, of a case with 15 labels, against MONAI's DSC and NSD on whole
masks, and how far the values differ.

The reference is an atlas of ellipsoids with radii from 7 to 1 cm on thick slices; the prediction is the same atlas
under a smooth random displacement of a few millimetres, so that the mean DSC is about 0.92.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from scipy import ndimage

from benchmarks.measure import Row, paired_seconds, peer, smaller_is_better
from megavoxel.evaluation.compared import compared_labels
from megavoxel.evaluation.metrics import DEFAULT, METRICS

SHAPE = (128, 256, 256)
SPACING = (5.0, 0.8, 0.8)
TOLERANCE = 2.0
LABELS = tuple(range(1, 16))
DISPLACEMENT = 1.6
"""Standard deviation in mm, per axis."""
ACCEPTED_DIFFERENCE = 1e-4
REPEATS = 3


def run() -> list[Row]:
    """Rows for the time of two metrics and of all, and one for the largest difference of any label's value."""
    reference, prediction = make_maps()
    ours, theirs = score(prediction, reference), score_by_monai(prediction, reference)
    difference = float(np.abs(ours - theirs).max())
    seconds = paired_seconds(
        lambda: score(prediction, reference), lambda: score_by_monai(prediction, reference), repeats=REPEATS
    )
    all_seconds = paired_seconds(
        lambda: score(prediction, reference, METRICS), lambda: score_by_monai(prediction, reference), repeats=REPEATS
    )
    title = "DSC and NSD of 15 labels, 128 x 256 x 256"
    print(f"{title}: mean DSC {ours[0].mean():.2f}, NSD {ours[1].mean():.2f}", flush=True)
    return [
        smaller_is_better(title, peer("monai"), *seconds, "s"),
        smaller_is_better(
            "All metrics of 15 labels, 128 x 256 x 256", f"DSC and NSD of {peer('monai')}", *all_seconds, "s"
        ),
        smaller_is_better(
            "DSC and NSD: largest difference from MONAI", "own bound", max(difference, 1e-12), ACCEPTED_DIFFERENCE, "1"
        ),
    ]


def score(prediction: np.ndarray, reference: np.ndarray, keys: Iterable[str] = DEFAULT) -> np.ndarray:
    """Metrics per label, (metrics, labels); by default DSC and NSD."""
    tolerances = [TOLERANCE] * len(LABELS)
    labels = list(compared_labels(prediction, reference, LABELS, tolerances=tolerances, spacing=SPACING))
    return np.array([[METRICS[key].of(label) for label in labels] for key in keys])


def score_by_monai(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """DSC and NSD per label by MONAI, which takes one mask of the whole volume per label."""
    from monai.metrics import compute_dice, compute_surface_dice

    masks = [one_hot(array) for array in (prediction, reference)]
    dice = compute_dice(*masks)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        surface = compute_surface_dice(
            *masks, [TOLERANCE] * len(LABELS), include_background=True, spacing=list(SPACING), use_subvoxels=True
        )[0]
    return torch.stack([dice.double(), surface.double()]).numpy()


def one_hot(array: np.ndarray) -> torch.Tensor:
    """bool (1, labels, z, y, x)."""
    return torch.from_numpy(np.stack([array == label for label in LABELS]))[None]


def make_maps() -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction, uint8 (z, y, x)."""
    random = np.random.default_rng(0)
    reference = np.zeros(SHAPE, dtype=np.uint8)
    extent = np.array(SHAPE) * SPACING
    axes = [np.arange(size) * step for size, step in zip(SHAPE, SPACING, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    for label in LABELS:
        radii = np.geomspace(70, 10, len(LABELS))[label - 1] * random.uniform(0.7, 1.3, 3)
        centre = random.uniform(radii, extent - radii)
        distance = sum(
            ((axis - middle) / radius) ** 2 for axis, middle, radius in zip(grid, centre, radii, strict=True)
        )
        reference[distance < 1] = label
    coordinates = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32)
    for axis, step in enumerate(SPACING):
        coordinates[axis] += displacement(random) / step
    return reference, ndimage.map_coordinates(reference, coordinates, order=0, mode="nearest")


def displacement(random: np.random.Generator) -> np.ndarray:
    """One component of a random field in mm, smooth over centimetres."""
    coarse = ndimage.gaussian_filter(random.normal(size=(32, 16, 16)), 1.0)
    fine = ndimage.zoom(coarse, np.array(SHAPE) / coarse.shape, order=1)
    return (fine * (DISPLACEMENT / fine.std())).astype(np.float32)
