"""`dsc_against_memory`: which accuracy a setting gives for the memory that its training takes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from megavoxel.reporting.figures import legend_above, legend_columns
from megavoxel.reporting.memory import cascade_peaks, how_measured
from megavoxel.reporting.memory_points import (
    MEAN,
    SPLIT,
    Dot,
    Group,
    PublishedRow,
    dots,
    measured_groups,
    published_rows,
)
from megavoxel.reporting.point_labels import write_beside
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import figure_style, palette, save_figure

NAME = "dsc_against_memory"
NO_PEAK = "No peak memory was recorded: no manifest of this study has one."
MOST_LABELS = 5
"""Studies with more labels have the mean over labels alone."""
COLUMNS = 3
LINEAR_UP_TO = 4.0
"""Where the largest peak is more than so many times the smallest, memory is on a log axis."""
MARKERS = {"setting": "o", "ensemble": "s", "published": "D"}
GREY = (0.4, 0.4, 0.4)
MARGIN = 0.12
PANEL, LEGEND_LINE, BELOW = 4.0, 0.21, 0.4
"""Inches: side of a panel, a line of the legend, and what stands below the panels."""
CHARACTERS_PER_INCH = 13

Colours = Mapping[int, tuple[float, ...]]
"""By number of a point; published rows that are about no point of the study have none and are grey."""


def write_memory_figure(stored: Stored, published: pd.DataFrame, folder: Path) -> None:
    """Writes `dsc_against_memory.png` and `.svg`.

    Args:
        published: as `megavoxel.reporting.published.read_published` gives it.
    """
    with figure_style():
        save_figure(memory_figure(stored, published), folder / f"{NAME}.png", folder / f"{NAME}.svg")


def memory_figure(stored: Stored, published: pd.DataFrame) -> Figure:
    """DSC of the validation cases against peak memory, a numbered point for each model; repeats are one.

    One panel for the mean over labels and, of two to `MOST_LABELS` labels, one for each. Bars are 95 % bootstrap
    intervals over cases. Where no run has a measured peak, the figure says so.
    """
    groups = measured_groups(stored)
    if not groups:
        figure = Figure(figsize=(6.5, 1.5), layout="constrained")
        figure.text(0.5, 0.5, NO_PEAK, ha="center", va="center")
        return figure
    rows = published_rows(published, stored, groups)
    colours = dict(enumerate(palette([group.name for group in groups]).values(), start=1))
    points = {panel: dots(stored, panel, groups, rows) for panel in panels(stored)}
    handles = _handles(groups, rows, colours)
    figure, axes = _figure(len(points), handles)
    for ax, (panel, own) in zip(axes, points.items(), strict=True):
        _draw(ax, panel, own, colours)
    figure.supylabel(f"DSC ({SPLIT})", fontsize="medium")
    figure.supxlabel(_memory_title(stored, rows, figure.get_figwidth()), fontsize="medium")
    legend_above(figure, handles)
    # Texts go where nothing else is: the axes must have their places before.
    figure.draw_without_rendering()
    for ax, own in zip(axes, points.values(), strict=True):
        write_beside(ax, [(dot.gib, dot.dsc, str(dot.number), colours.get(dot.number, GREY)) for dot in own])
    return figure


def panels(stored: Stored) -> list[str]:
    """The mean over labels and, of two to `MOST_LABELS` labels, each of them."""
    return [MEAN, *stored.labels] if 2 <= len(stored.labels) <= MOST_LABELS else [MEAN]


def _figure(count: int, handles: Sequence[Line2D]) -> tuple[Figure, list[Axes]]:
    """A figure with axes for each of `count` panels, and room for the legend."""
    columns = min(COLUMNS, count)
    rows, width = math.ceil(count / columns), max(7.0, PANEL * columns)
    height = PANEL * rows + LEGEND_LINE * math.ceil(len(handles) / legend_columns(handles, width)) + BELOW
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _draw(ax: Axes, panel: str, own: Sequence[Dot], colours: Colours) -> None:
    for dot in own:
        colour = colours.get(dot.number, GREY)
        if not math.isnan(dot.low):
            ax.plot([dot.gib, dot.gib], [dot.low, dot.high], color=colour, linewidth=1.0, alpha=0.6, zorder=2)
        ax.plot([dot.gib], [dot.dsc], **_marker(dot.kind, colour), zorder=3)
    ax.set_title(panel)
    ax.margins(MARGIN)
    peaks = [dot.gib for dot in own]
    if peaks and max(peaks) > LINEAR_UP_TO * min(peaks):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())


def _marker(kind: str, colour: tuple[float, ...]) -> dict[str, Any]:
    """Filled for what was measured, hollow for what was published."""
    face = "white" if kind == "published" else colour
    return {"marker": MARKERS[kind], "color": colour, "markerfacecolor": face, "markersize": 5, "linestyle": "none"}


def _handles(groups: Sequence[Group], rows: Sequence[PublishedRow], colours: Colours) -> list[Line2D]:
    named = [(f"{group.number}  {group.name}", group.kind, colours[group.number]) for group in groups]
    named += [(f"{row.number}  {row.name}", "published", GREY) for row in rows if row.number not in colours]
    if any(row.number in colours for row in rows):
        named.append(("published, of the same number", "published", GREY))
    return [Line2D([], [], label=label, **_marker(kind, colour)) for label, kind, colour in named]


def _memory_title(stored: Stored, rows: Sequence[PublishedRow], inches: float) -> str:
    """What stands below the panels: what memory is, and which models have none."""
    lines = [f"peak memory of training in GiB: {how_measured(stored)}"]
    if rows:
        lines[0] += "; of published points GPU memory in GB"
    absent = [model for model, peak in cascade_peaks(stored).items() if math.isnan(peak.measured)]
    if absent:
        lines.append(f"no peak was recorded of {', '.join(absent)}")
    width = int(CHARACTERS_PER_INCH * inches)
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width))
