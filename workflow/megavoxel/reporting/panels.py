"""Slices of images with label maps over them: where they come from, how grey they are, how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from megavoxel.reporting.figures import legend_columns
from megavoxel.reporting.style import palette

CT_WINDOW = (-160.0, 240.0)
PERCENTILES = (1.0, 99.0)
OPACITY = 0.55
LEGEND_COLUMNS = 5


def seen_from_the_feet(volume: np.ndarray, position: int) -> np.ndarray:
    """An axial slice (y, x) of a canonical volume (z, y, x) with the patient's right on the left."""
    return volume[position, :, ::-1]


def window_of(image: np.ndarray, modality: str) -> tuple[float, float]:
    """Intensities to show black and white: the abdominal window for CT, else percentiles of the image.

    Args:
        image: intensities, of any shape.
        modality: what the image is or, where nobody says that, the name of its channel.
    """
    if modality.upper() == "CT":
        return CT_WINDOW
    low, high = (float(value) for value in np.percentile(image, PERCENTILES))
    return low, high if high > low else low + 1.0


def draw_panel(
    ax: Axes,
    image: np.ndarray,
    labels: np.ndarray | None,
    names: Mapping[str, int],
    *,
    window: tuple[float, float],
    aspect: float,
) -> None:
    """One slice in grey with a label map over it, in the colours of `label_legend`.

    Args:
        image: (rows, columns) intensities, the lowest row first.
        labels: (rows, columns) label values; None: the image alone.
        window: intensities shown black and white.
        aspect: height of a voxel divided by its width.
    """
    low, high = window
    place = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
    ax.imshow(image, cmap="gray", vmin=low, vmax=high, **place)
    ax.set(xticks=[], yticks=[])
    if labels is None:
        return
    inorder = ordered(names)
    values = [names[name] for name in inorder]
    colours = ListedColormap([palette(inorder)[name] for name in inorder])
    norm = BoundaryNorm([value - 0.5 for value in values] + [values[-1] + 0.5], len(values))
    masked = np.ma.masked_where(~np.isin(labels, values), labels)
    ax.imshow(masked, cmap=colours, norm=norm, alpha=OPACITY, **place)


def label_legend(figure: Figure, names: Mapping[str, int], texts: Mapping[str, str] | None = None) -> None:
    """The colours of the labels, below all panels.

    Args:
        texts: what stands beside a colour, by the label's name; None: the name.
    """
    texts = {} if texts is None else texts
    colours = palette(ordered(names))
    handles = [Patch(color=colour, label=texts.get(name, name)) for name, colour in colours.items()]
    columns = min(LEGEND_COLUMNS, legend_columns(handles, figure.get_figwidth()))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def ordered(names: Mapping[str, int]) -> list[str]:
    """Names of labels in the order of their values."""
    return sorted(names, key=names.__getitem__)
