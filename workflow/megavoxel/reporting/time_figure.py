"""`dsc_against_seconds`: accuracy against inference time, a line per network over its windows.

It is figure 1 of Zhu et al. (LAMP, MICCAI 2020): size of the network and of its input against both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from megavoxel.reporting.figures import legend_above, legend_columns
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import figure_style, palette, save_figure
from megavoxel.reporting.timing import published_seconds, time_table

NAME = "dsc_against_seconds"
NO_TIMES = "Nothing to show: no setting has both a DSC and a time on the same split."
METRIC = "DSC"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""By window, in the order in which settings have them; after the last, the first again."""
LINEAR_UP_TO = 4.0
"""Where the longest time is more than so many times the shortest, time is on a log axis."""
SIDE, LEGEND_LINE = 5.0, 0.21
"""Inches: height of the panel, and of a line of the legend."""


@dataclass(frozen=True, kw_only=True)
class TimedPoint:
    """A setting with one window."""

    setting: str
    network: str
    """What it shares with settings of the same network: the beginning of their names."""
    window: str
    seconds: float
    dsc: float
    published: tuple[float, float] | None
    """Seconds and DSC as published; None where one of them is not."""


def write_time_figure(stored: Stored, timings: pd.DataFrame, published: pd.DataFrame, folder: Path) -> None:
    """Writes `dsc_against_seconds.png` and `.svg`; where nothing was timed, removes those of an earlier report.

    Args:
        timings: as `megavoxel.reporting.timing.read_timings` gives them.
        published: as `megavoxel.reporting.published.read_published` gives it.
    """
    paths = [folder / f"{NAME}{suffix}" for suffix in (".png", ".svg")]
    if timings.empty:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    with figure_style():
        figure = time_figure(timed_points(stored, timings, published), stored.splits[-1])
        save_figure(figure, *paths)


def timed_points(stored: Stored, timings: pd.DataFrame, published: pd.DataFrame) -> list[TimedPoint]:
    """Settings with a DSC and a time on the split that is reported last, in the order of the study."""
    split = stored.splits[-1]
    means = case_means(stored.scores[stored.scores["split"] == split]).groupby("setting")[METRIC].mean()
    table = time_table(timings, published, stored.definition)
    networks = network_names(stored)
    return [
        TimedPoint(
            setting=row["setting"],
            network=networks.get(row["setting"], row["setting"]),
            window=row["window"],
            seconds=row["mean"],
            dsc=means[row["setting"]],
            published=_published(published, row["setting"]),
        )
        for row in table[table["split"] == split].to_dict("records")
        if not math.isnan(means.get(row["setting"], math.nan))
    ]


def network_names(stored: Stored) -> dict[str, str]:
    """By setting, what the names of all settings with the same network begin with: `unet-32` of `unet-32-small` and
    `unet-32-whole`. Where they share no beginning, or another network has the same one, the first setting's name."""
    families: dict[Any, list[str]] = {}
    for setting, plan in stored.plans.items():
        families.setdefault(plan.network, []).append(setting)
    begun = [_shared_beginning(members) for members in families.values()]
    names = {}
    for members, beginning in zip(families.values(), begun, strict=True):
        shared = beginning if beginning and begun.count(beginning) == 1 else members[0]
        names |= dict.fromkeys(members, shared)
    return names


def _shared_beginning(names: Sequence[str]) -> str:
    """The parts between hyphens that all names begin with."""
    parts = zip(*(name.split("-") for name in names), strict=False)
    return "-".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))


def time_figure(points: Sequence[TimedPoint], split: str) -> Figure:
    """DSC against mean seconds per image: a colour and a line per network, a marker per window; hollow: published."""
    if not points:
        figure = Figure(figsize=(6.5, 1.5), layout="constrained")
        figure.text(0.5, 0.5, NO_TIMES, ha="center", va="center")
        return figure
    colours = palette(list(dict.fromkeys(point.network for point in points)))
    windows = list(dict.fromkeys(point.window for point in points))
    markers = {window: MARKERS[number % len(MARKERS)] for number, window in enumerate(windows)}
    handles = _handles(points, colours, markers)
    width = SIDE + 1.5
    height = SIDE + LEGEND_LINE * math.ceil(len(handles) / legend_columns(handles, width))
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    for network, colour in colours.items():
        _draw(ax, [point for point in points if point.network == network], colour, markers)
    ax.set(xlabel="inference time in seconds per image", ylabel=f"{METRIC} ({split})")
    _scale_x(ax, points)
    legend_above(figure, handles)
    return figure


def _draw(ax: Axes, own: Sequence[TimedPoint], colour: tuple[float, ...], markers: Mapping[str, str]) -> None:
    """The points of one network, in order of the study, and the published ones."""
    said = [(point.window, *point.published) for point in own if point.published is not None]
    for line, face, style in (
        ([(point.window, point.seconds, point.dsc) for point in own], colour, "-"),
        (said, "white", ":"),
    ):
        ax.plot([x for _, x, _ in line], [y for _, _, y in line], color=colour, linestyle=style, linewidth=1.0)
        for window, x, y in line:
            marker = {"marker": markers[window], "color": colour, "markerfacecolor": face, "markersize": 6}
            ax.plot([x], [y], linestyle="none", zorder=3, **marker)


def _handles(points: Sequence[TimedPoint], colours: Mapping[str, Any], markers: Mapping[str, str]) -> list[Line2D]:
    handles = [Line2D([], [], color=colour, linewidth=2, label=network) for network, colour in colours.items()]
    grey = {"color": "0.3", "linestyle": "none", "markersize": 6}
    handles += [Line2D([], [], marker=marker, label=f"window {window}", **grey) for window, marker in markers.items()]
    if any(point.published is not None for point in points):
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", label="published", **grey))
    return handles


def _published(published: pd.DataFrame, row: str) -> tuple[float, float] | None:
    dsc = published[(published["row"] == row) & (published["metric"] == METRIC)]["value"]
    seconds = published_seconds(published, row)[1]
    return None if dsc.empty or math.isnan(seconds) else (seconds, float(dsc.iloc[0]))


def _scale_x(ax: Axes, points: Sequence[TimedPoint]) -> None:
    seconds = [point.seconds for point in points]
    seconds += [point.published[0] for point in points if point.published is not None]
    if max(seconds) > LINEAR_UP_TO * min(seconds):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
