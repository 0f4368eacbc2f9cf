"""A picture of a labelled scan for a first look: three planes, with and without the labels, and their volumes in mL.

Files are read slab by slab, so that a scan of any size takes little memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megavoxel.reporting.panels import draw_panel, label_legend, window_of
from megavoxel.reporting.style import figure_style, save_figure
from megavoxel.volumes.open import open_volume
from megavoxel.volumes.slabs import FileSlab
from megavoxel.volumes.volume import Volume

PLANES = (("axial", 1, 2), ("coronal", 0, 2), ("sagittal", 0, 1))
"""Name, axis that runs up, and axis that runs across, for each canonical axis (z, y, x) that a plane cuts."""
ENDS = ("IS", "PA", "LR")
"""Where each canonical axis begins and ends."""
WIDTH, MOST_HEIGHT = 9.0, 7.0
"""Inches of the panels."""
MM3_PER_ML = 1000.0


@dataclass(frozen=True, kw_only=True)
class LabelVolume:
    """How large a label is in a case."""

    voxels: int
    ml: float
    """Millilitres."""


def write_picture(
    path: Path, image: Volume, labels: Path, names: Mapping[str, int], *, title: str, modality: str
) -> dict[str, LabelVolume]:
    """Writes a .png of axial, coronal and sagittal slice, each the one with most labelled voxels, else the middle one.

    As a radiologist sees them: the patient's right is on the left, in the sagittal slice the front is.

    Args:
        path: of the .png, which appears whole or not at all.
        image: its first channel is shown.
        labels: label map on the grid of the image.
        modality: of the image; decides about its window.

    Returns:
        How large each label is, by its name.

    Raises:
        UserError: a file cannot be read.
    """
    shape, spacing = image.geometry.canonical_shape, image.geometry.spacing
    label_map = open_volume(labels)
    marked, voxels = counted(label_map.label_slabs(), shape)
    places = [int(count.argmax()) if count.any() else len(count) // 2 for count in marked]
    maps = slices_at(label_map.label_slabs(), places, shape)
    greys = slices_at((slab for slab in image.image_slabs() if slab.channel == 0), places, shape)
    voxel = math.prod(spacing) / MM3_PER_ML
    volumes = {name: LabelVolume(voxels=voxels[value], ml=voxels[value] * voxel) for name, value in names.items()}
    texts = {name: f"{name}: {_three_digits(volume.ml)} mL" for name, volume in volumes.items()}
    with figure_style():
        figure = picture_figure(greys, maps, spacing, names, modality)
        figure.suptitle(title)
        label_legend(figure, names, texts)
        save_figure(figure, path)
    return volumes


def counted(slabs: Iterable[FileSlab], shape: Sequence[int]) -> tuple[list[np.ndarray], Counter[int]]:
    """Labelled voxels of each plane, by axis (z, y, x), and voxels of each value but 0."""
    marked, voxels = [np.zeros(length, dtype=np.int64) for length in shape], Counter()
    for slab in slabs:
        labelled = slab.voxels != 0
        for axis, count in enumerate(marked):
            others = tuple(other for other in range(3) if other != axis)
            count[slab.place[axis]] += np.count_nonzero(labelled, axis=others)
        values, counts = np.unique(slab.voxels[labelled], return_counts=True)
        voxels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return marked, voxels


def slices_at(slabs: Iterable[FileSlab], places: Sequence[int], shape: Sequence[int]) -> list[np.ndarray]:
    """Three slices through a volume that comes in slabs, across the axes z, y and x in this order.

    Args:
        slabs: of one channel.
        places: plane of each axis.
        shape: of the volume (z, y, x).
    """
    whole: list[np.ndarray | None] = [None, None, None]
    for slab in slabs:
        for axis, place in enumerate(places):
            span = slab.place[axis]
            if not span.start <= place < span.stop:
                continue
            up, across = PLANES[axis][1:]
            if whole[axis] is None:
                whole[axis] = np.zeros((shape[up], shape[across]), slab.voxels.dtype)
            whole[axis][slab.place[up], slab.place[across]] = np.take(slab.voxels, place - span.start, axis=axis)
    return whole


def picture_figure(
    greys: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    spacing: Sequence[float],
    names: Mapping[str, int],
    modality: str,
) -> Figure:
    """The slices above, and below with the labels."""
    window = window_of(np.concatenate([grey.ravel() for grey in greys]), modality)
    extents = [(grey.shape[0] * spacing[up], grey.shape[1] * spacing[across]) for grey, _, up, across in _planes(greys)]
    widths = [width for _, width in extents]
    height = WIDTH * max(height for height, _ in extents) / sum(widths)
    figure = Figure(figsize=(WIDTH, 2 * min(height, MOST_HEIGHT / 2) + 1.3), layout="constrained")
    rows = figure.subplots(2, 3, width_ratios=widths)
    for column, (grey, name, up, across) in enumerate(_planes(greys)):
        place = {"window": window, "aspect": spacing[up] / spacing[across]}
        for ax, labels in zip(rows[:, column], (None, maps[column][:, ::-1]), strict=True):
            draw_panel(ax, grey[:, ::-1], labels, names, **place)
            _name_sides(ax, up, across)
        rows[0, column].set_title(name)
    return figure


def _planes(greys: Sequence[np.ndarray]) -> list[tuple[np.ndarray, str, int, int]]:
    return [(grey, *plane) for grey, plane in zip(greys, PLANES, strict=True)]


def _name_sides(ax: Axes, up: int, across: int) -> None:
    """Letters where the patient's sides are; axes that run across are drawn from their end to their beginning."""
    bottom, top = ENDS[up]
    right, left = ENDS[across]
    sides = ((0.02, 0.5, left), (0.98, 0.5, right), (0.5, 0.02, bottom), (0.5, 0.98, top))
    for x, y, letter in sides:
        # At an edge, the text's own edge lies there: "left" at 0, "center" in the middle, "right" at 1.
        across_at, up_at = (("left", "center", "right")[round(2 * x)], ("bottom", "center", "top")[round(2 * y)])
        ax.text(x, y, letter, transform=ax.transAxes, color="gold", ha=across_at, va=up_at, fontsize=8)


def _three_digits(value: float) -> str:
    """At least three significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
