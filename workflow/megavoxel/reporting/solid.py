"""The labels of a case as solid bodies: seen obliquely from the front, without perspective, shaded by their surface.

A label map is reduced to a grid of equal steps in mm, turned, and looked through along the line of sight. It takes a
second for a map of any size, and the same map gives the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from megavoxel.reporting.panels import LEGEND_COLUMNS, label_legend, ordered
from megavoxel.reporting.style import empty_figure, palette

STEPS = 128
"""Steps of the reduced grid along the longest side of what is labelled."""
YAW, PITCH = math.radians(30), math.radians(20)
"""How far the eye has gone to the patient's left, and up."""
LIGHT = (-0.72, -0.55, -0.42)
"""Direction towards the light: to the viewer, up, to the left; of length 1."""
AMBIENT = 0.4
ENCLOSED = 0.5
"""Share of a label's colour that shows through a label around it."""
PANEL, PANELS_PER_ROW = 3.2, 4
LEGEND_LINE = 0.24
"""Inches of a line of the legend."""
BACKGROUND = np.float32(0.96)
MARGIN = 4
Box = tuple[slice, ...]


def solid_figure(maps: Mapping[str, np.ndarray], spacing: Sequence[float], names: Mapping[str, int]) -> Figure:
    """A panel with the solid labels of each map, all in one frame and of one scale.

    Args:
        maps: label maps (z, y, x) of one case in canonical order, by what is written above them.
        spacing: mm per axis.
        names: values of the labels by name; others are not shown.
    """
    values = [names[name] for name in ordered(names)]
    shown = {title: np.where(np.isin(labels, values), labels, 0) for title, labels in maps.items()}
    box = box_of(list(shown.values()))
    if box is None:
        return empty_figure(f"no label in {', '.join(maps)}")
    colours = np.array([(1.0, 1.0, 1.0), *palette(ordered(names)).values()])
    pictures = {
        title: picture(np.searchsorted([0, *values], labels[box]).astype(np.uint16), spacing, colours)
        for title, labels in shown.items()
    }
    seen = np.logical_or.reduce([(own != BACKGROUND).any(axis=-1) for own in pictures.values()])
    frame = ndimage.find_objects(ndimage.binary_dilation(seen, iterations=MARGIN).astype(np.uint8))[0]
    pictures = {title: own[frame] for title, own in pictures.items()}
    columns = min(len(pictures), PANELS_PER_ROW)
    rows = math.ceil(len(pictures) / columns)
    height, width, _ = next(iter(pictures.values())).shape
    legend = LEGEND_LINE * math.ceil(len(names) / LEGEND_COLUMNS)
    size = (PANEL * columns, (PANEL * min(1.5, height / width) + 0.4) * rows + legend)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, seen) in zip(axes, pictures.items(), strict=False):
        ax.imshow(seen, interpolation="bilinear")
        ax.set_title(title)
    label_legend(figure, names)
    return figure


def box_of(maps: Sequence[np.ndarray]) -> Box | None:
    """The smallest box with all voxels that a map labels; None where there are none."""
    labelled = np.logical_or.reduce([labels > 0 for labels in maps])
    return ndimage.find_objects(labelled.astype(np.uint8))[0] if labelled.any() else None


def picture(classes: np.ndarray, spacing: Sequence[float], colours: np.ndarray) -> np.ndarray:
    """The labels as an eye sees them that stands before the patient, to the left and above.

    Args:
        classes: (z, y, x) in canonical order; 0 is nothing.
        spacing: mm per axis.
        colours: (classes, 3) from 0 to 1; the first is not used.

    Returns:
        float32 (rows, columns, 3), the upper row first.
    """
    solid = np.pad(evenly_spaced(classes, spacing), 2)
    occupied = turned(ndimage.gaussian_filter((solid > 0).astype(np.float32), 0.8), order=1)
    # What is smoothed reaches a little beyond the labels: there it has the label beside it.
    seen = turned(np.where(solid > 0, solid, ndimage.maximum_filter(solid, 3)), order=0)
    most = occupied.max(axis=0)
    depth = (occupied >= np.minimum(0.5, most)).argmax(axis=0)
    place = (depth, *np.indices(depth.shape))
    front = seen[place]
    colour = _shaded(colours[front], occupied, place, depth / len(seen))
    behind, is_enclosed = _enclosed(seen, front)
    colour[is_enclosed] = (1 - ENCLOSED) * colour[is_enclosed] + ENCLOSED * colours[behind[is_enclosed]]
    # Rays that graze a body see a part of it, which makes its outline smooth.
    cover = (np.clip((most - 0.3) / 0.3, 0, 1) * (front > 0))[..., None]
    return (cover * colour + (1 - cover) * BACKGROUND).astype(np.float32)


def evenly_spaced(classes: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Classes on a grid with the same step in mm along all axes, at most `STEPS` of them.

    Where several voxels become one, the highest class among them is taken, so that nothing thin is lost.
    """
    sizes = [count * step for count, step in zip(classes.shape, spacing, strict=True)]
    step = max(sizes) / STEPS
    factors = [max(1, math.floor(step / own)) for own in spacing]
    missing = [(0, -count % factor) for count, factor in zip(classes.shape, factors, strict=True)]
    padded = np.pad(classes, missing)
    for axis, factor in enumerate(factors):
        padded = np.maximum.reduceat(padded, np.arange(0, padded.shape[axis], factor), axis=axis)
    places = [
        np.clip(((np.arange(max(1, round(size / step))) + 0.5) * step / (own * factor)).astype(int), 0, count - 1)
        for size, own, factor, count in zip(sizes, spacing, factors, padded.shape, strict=True)
    ]
    return padded[np.ix_(*places)]


def turned(volume: np.ndarray, *, order: int) -> np.ndarray:
    """A volume (z, y, x) in the directions of the eye: away from it, down, to its right."""
    axes = line_of_sight()
    shape = np.ceil(np.abs(axes) @ np.array(volume.shape)).astype(int)
    middle = (np.array(volume.shape) - 1) / 2 - axes.T @ ((shape - 1) / 2)
    return ndimage.affine_transform(volume, axes.T, offset=middle, output_shape=tuple(shape), order=order)


def line_of_sight() -> np.ndarray:
    """Directions away from the eye, down and to its right, as rows of (z, y, x): up, to the front, to the right."""
    right, up, away = np.array([0.0, 0, -1]), np.array([1.0, 0, 0]), np.array([0.0, -1, 0])
    right, away = math.cos(YAW) * right + math.sin(YAW) * away, math.cos(YAW) * away - math.sin(YAW) * right
    away, up = math.cos(PITCH) * away - math.sin(PITCH) * up, math.cos(PITCH) * up + math.sin(PITCH) * away
    return np.stack([away, -up, right])


def _shaded(colour: np.ndarray, occupied: np.ndarray, place: tuple[np.ndarray, ...], depth: np.ndarray) -> np.ndarray:
    """Colours (rows, columns, 3) by how a surface looks to the light; what is far is a little darker."""
    inward = np.stack([slope[place] for slope in np.gradient(occupied)], axis=-1)
    length = np.linalg.norm(inward, axis=-1)
    facing = np.clip(-inward @ np.array(LIGHT) / np.maximum(length, 1e-6), 0, 1)
    return colour * ((AMBIENT + (1 - AMBIENT) * facing) * (1 - 0.3 * depth))[..., None]


def _enclosed(seen: np.ndarray, front: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first other class behind that in front, and whether it is thicker than a step and the one in front goes on
    behind it."""
    others = (seen > 0) & (seen != front)
    first = others.argmax(axis=0)
    last = len(seen) - 1 - (seen == front)[::-1].argmax(axis=0)
    behind, within = (
        np.take_along_axis(seen, np.minimum(first + more, len(seen) - 1)[None], axis=0)[0] for more in (0, 2)
    )
    return behind, others.any(axis=0) & (front > 0) & (last > first + 3) & (within == behind)
