"""What the labels of a folder look like: small, tubular or in many components, for the metrics that suit them.

The metrics are those that Metrics Reloaded recommends (Maier-Hein et al. 2024, Nat. Methods 21:195-212).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects

from megavoxel.parallel import map_cases
from megavoxel.volumes.masks import labelled_components
from megavoxel.volumes.open import open_volume

SMALL, TUBULAR, SCATTERED = "small", "tubular", "in many components"
METRICS = {SMALL: ("nsd", "assd"), TUBULAR: ("cldice", "nsd"), SCATTERED: ("lesion_f1", "pq", "dsc")}
"""The metrics that suit labels of a shape."""
TUBES = re.compile(
    "vessel|vascul|arter|vein|vena|aort|coronar|bronch|airway|trachea|nerve|duct|ureter|fib(er|re)|neurite|axon", re.I
)
"""Words in names of labels that are tubes."""
MOST_CASES = 5
"""Cases that are looked at, at even distances."""
MOST_VOXELS = 2**26
"""Label maps with more voxels are not looked at."""
FEW_VOXELS = 1000
"""A label with fewer voxels is small: about ten along each axis."""
MANY = 4
"""Number of components from which on they are many."""
CONNECTIVITY = 26
"""Voxels that share a face, an edge or a corner belong to one component."""
CRUMB = 8
"""Components with fewer voxels do not count."""
SPHERES, FILLED, STRETCHED = 50, 0.03, 4.0
"""A label is a tube if it has so many times the volume of the largest ball inside of it and fills so little of its box,
or if it is so many times as long as it is wide."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a label is in a case."""

    voxels: int
    components: int
    """Those of `CRUMB` voxels or more."""
    is_tube: bool
    """Whether its largest component looks like a tube."""


def shapes_of_labels(paths: Sequence[Path], labels: Mapping[str, Sequence[int]], *, processes: int) -> dict[str, str]:
    """The labels that are small, tubular or in many components, in most of the cases that are looked at.

    Args:
        paths: of label maps; without any, names alone tell.
        labels: values by name.
    """
    chosen = [paths[number * len(paths) // MOST_CASES] for number in range(MOST_CASES)] if paths else []
    look = partial(_looked_at, labels=dict(labels))
    found = map_cases(look, list(dict.fromkeys(chosen)), processes=processes, title="looking at the shapes of labels")
    shapes = {name: [case[name] for case in found if name in case] for name in labels}
    kinds = {name: _kind(name, own) for name, own in shapes.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def metrics_hint(shapes: Mapping[str, str]) -> dict[str, list[str]]:
    """The value of `metrics` in a study file that suits the labels."""
    return {"default": ["dsc", "nsd"]} | {name: list(METRICS[kind]) for name, kind in shapes.items()}


def _kind(name: str, shapes: Sequence[Shape]) -> str | None:
    if TUBES.search(name):
        return TUBULAR
    if not shapes:
        return None
    if median(shape.components for shape in shapes) >= MANY:
        return SCATTERED
    if median(shape.is_tube for shape in shapes) > 0.5:
        return TUBULAR
    return SMALL if median(shape.voxels for shape in shapes) < FEW_VOXELS else None


def _looked_at(path: Path, labels: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    volume = open_volume(path)
    if np.prod(volume.geometry.shape) > MOST_VOXELS:
        return {}
    array, spacing = volume.labels(), volume.geometry.spacing
    return {name: shape_of(mask, spacing) for name, mask in _masks(array, labels)}


def _masks(array: np.ndarray, labels: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in labels.items():
        mask = np.isin(array, values)
        box = next(iter(find_objects(mask.view(np.uint8))), None)
        if box is not None:
            yield name, mask[box]


def shape_of(mask: np.ndarray, spacing: Sequence[float]) -> Shape:
    """What a mask is.

    Args:
        mask: bool, three axes, some of it true; cut to its box.
        spacing: voxel size in mm per axis.
    """
    labelled = labelled_components(mask, CONNECTIVITY)
    sizes = np.bincount(labelled.reshape(-1))[1:]
    is_tube = _is_tube(labelled == 1 + sizes.argmax(), spacing)
    return Shape(voxels=int(sizes.sum()), components=int((sizes >= CRUMB).sum()), is_tube=is_tube)


def _is_tube(component: np.ndarray, spacing: Sequence[float]) -> bool:
    (box,) = find_objects(component.view(np.uint8))
    own = component[box]
    radius = distance_transform_edt(np.pad(own, 1), sampling=spacing).max()
    balls = own.sum() * np.prod(spacing) / (4 / 3 * np.pi * radius**3)
    is_thin = balls >= SPHERES and own.mean() <= FILLED
    return bool(is_thin or _stretch(own, spacing) >= STRETCHED)


def _stretch(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Length by width: the ratio of the largest two standard deviations of the places of a mask."""
    places = np.argwhere(mask) * np.asarray(spacing)
    # What is no larger than a voxel is as long as it is wide.
    spread = np.cov(places.T, bias=True) + np.eye(3) * max(spacing) ** 2 / 12
    _, middle, most = np.sqrt(np.linalg.eigvalsh(spread))
    return float(most / middle)
