"""The study's first metric against what it costs: numbered points of memory, or of seconds, with a key above them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.costs import cascade_peaks, how_measured, largest, time_table
from megavoxel.reporting.figures import legend_above, legend_columns
from megavoxel.reporting.published import PEAK, SECONDS, models_of_rows
from megavoxel.reporting.statistics import case_means, groups_of, mean_interval, point_scores
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import empty_figure, figure_style, palette, save_figure

MEAN = "Mean over labels"
"""The panel that every study has; others are called after their label."""
NO_PEAK = "No peak memory was recorded: no manifest of this study has one."
NO_TIMES = "Nothing to show: no setting has both a score and a time on the same split."
MOST_LABELS = 5
"""Studies with more labels have the mean over labels alone."""
COLUMNS = 3
LINEAR_UP_TO = 4.0
"""Where the largest cost is more than so many times the smallest, it is on a log axis."""
MARKERS = {"setting": "o", "ensemble": "s", "published": "D"}
GREY = (0.4, 0.4, 0.4)
MARGIN = 0.12
MOST_TICKS = 4
"""Intervals between the numbers of a linear axis of cost: they are long, and panels narrow."""
PANEL, LEGEND_LINE, BELOW = 4.0, 0.21, 0.4
"""Inches: side of a panel, a line of the legend, and what stands below the panels."""
CHARACTERS_PER_INCH = 13
FONT_SIZE, DIGIT_WIDTH, DIGIT_HEIGHT, POINT_RADIUS = 7.0, 4.6, 7.5, 3.5
"""Sizes of the numbers beside points, and of points, in typographic points."""
RADII = (9.5, 13.0, 17.0, 22.0, 28.0, 35.0, 43.0, 52.0)
"""Distances of a number from its point that are tried; from the second on, a line leads to the number."""
DIRECTIONS, POINTS_PER_INCH = 12, 72
Box = tuple[float, float, float, float]
"""Left, bottom, right, top in typographic points from the figure's corner."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model, models that are repeats of one another, or a published row."""

    number: int
    """Counted from 1; published rows about a model of the study have its number."""
    name: str
    """Its name in the key."""
    kind: str
    """`setting`, `ensemble` or `published`."""
    cost: float
    """GiB (of published memory GB), or seconds."""
    scores: Mapping[str, float]
    """Score by panel."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Ends of 95 % bootstrap intervals, by panel."""
    line: str = ""
    """Points of the same line are joined and share a colour."""


def write_memory_figure(stored: Stored, published: pd.DataFrame, folder: Path) -> None:
    """Writes `KEY_against_memory.png` and `.svg`, KEY being that of the study's first metric, such as `dsc`."""
    with figure_style():
        save_figure(memory_figure(stored, published), *_paths(stored, folder, "memory"))


def write_time_figure(stored: Stored, timings: pd.DataFrame, published: pd.DataFrame, folder: Path) -> None:
    """Writes `KEY_against_seconds.png` and `.svg`; where nothing was timed, removes those of an earlier report."""
    paths = _paths(stored, folder, "seconds")
    if timings.empty:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    with figure_style():
        save_figure(time_figure(stored, timings, published), *paths)


def memory_figure(stored: Stored, published: pd.DataFrame) -> Figure:
    """Scores of the first split against peak memory, a numbered point for each model; repeats are one.

    One panel for the mean over labels and, of two to `MOST_LABELS` labels, one for each. Bars are 95 % bootstrap
    intervals over cases. Where no run has a measured peak, the figure says so.
    """
    points = memory_points(stored, published)
    if not points:
        return empty_figure(NO_PEAK)
    lines = [f"peak memory of training in GiB: {how_measured(stored)}"]
    if any(point.kind == "published" for point in points):
        lines[0] += "; of published points GPU memory in GB"
    absent = [model for model, gib in cascade_peaks(stored)[PEAK].items() if math.isnan(gib)]
    if absent:
        lines.append(f"no peak was recorded of {', '.join(absent)}")
    return scatter(points, panels(stored), "\n".join(lines), f"{stored.metrics[0].head} ({stored.first_split})")


def time_figure(stored: Stored, timings: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Scores of the split that is reported last against mean seconds per image, a numbered point for each setting and
    window; a line joins the settings of a network, as in figure 1 of Zhu et al. (LAMP, MICCAI 2020)."""
    points = time_points(stored, timings, published)
    if not points:
        return empty_figure(NO_TIMES)
    y_title = f"{stored.metrics[0].head} ({stored.splits[-1]})"
    return scatter(points, [MEAN], "inference time in seconds per image", y_title)


def panels(stored: Stored) -> list[str]:
    """The mean over labels and, of two to `MOST_LABELS` labels with the first metric, each of them."""
    labels = stored.labels_of(stored.metrics[0])
    return [MEAN, *labels] if 2 <= len(labels) <= MOST_LABELS else [MEAN]


def memory_points(stored: Stored, published: pd.DataFrame) -> list[Point]:
    """Models with a measured peak in the order of the tables, repeats of one another as one, then published rows.

    The score of a point is the mean over the cases of the first split; within a case, the mean over labels is taken
    first, then over repeats. Cases that a repeat lacks are left out. Its memory is the largest of its models and their
    first stages.
    """
    peaks = cascade_peaks(stored)
    found = {models: largest(peaks, models)[PEAK] for models in model_groups(stored)}
    known = {models: gib for models, gib in found.items() if not math.isnan(gib)}
    cases = {panel: _panel_means(stored, panel) for panel in panels(stored)}
    points = []
    for number, (models, gib) in enumerate(known.items(), start=1):
        values = {panel: point_scores(means, models, stored.metrics[:1])[0] for panel, means in cases.items()}
        own = {panel: table[stored.metrics[0].name] for panel, table in values.items()}
        groups = {panel: groups_of(stored, table["case"]) for panel, table in values.items()}
        more = len(models) - 1
        points.append(
            Point(
                number=number,
                name=models[0] + (f" + {more} repeat{'s' if more > 1 else ''}" if more else ""),
                kind="ensemble" if models[0] in stored.definition.ensembles else "setting",
                cost=gib,
                scores={panel: scores.mean() for panel, scores in own.items()},
                intervals={panel: mean_interval(scores, groups[panel]) for panel, scores in own.items()},
            )
        )
    numbers = {model: number for number, models in enumerate(known, start=1) for model in models}
    return points + (published_points(published, stored, numbers) if points else [])


def model_groups(stored: Stored) -> list[tuple[str, ...]]:
    """All models, those together that a point of a sweep lists as repeats of one another.

    Where two points share a model, the first of them makes the group.
    """
    repeats: dict[str, tuple[str, ...]] = {}
    for sweep in stored.definition.sweeps:
        for models in sweep.points.values():
            if len(models) > 1 and not repeats.keys() & set(models):
                repeats |= dict.fromkeys(models, models)
    return list(dict.fromkeys(repeats.get(model, (model,)) for model in stored.definition.models))


def published_points(published: pd.DataFrame, stored: Stored, numbers: Mapping[str, int]) -> list[Point]:
    """Published rows with memory and a score; a row that several tables repeat is one.

    Args:
        numbers: of the points of the study, by model.
    """
    models = models_of_rows(published, stored.definition)
    points: dict[Any, Point] = {}
    following = max(numbers.values()) + 1
    for (table, row), lines in published.groupby(["table", "row"], sort=False):
        values = lines.set_index("metric")["value"].to_dict()
        scores = _published_scores(values, stored.metrics[0])
        number = next((numbers[model] for model in models[table, row] if model in numbers), None)
        key = (number or row, values.get(PEAK), frozenset(scores.items()))
        if PEAK not in values or not scores or key in points:
            continue
        named = {"number": number or following, "name": f"{row} ({table})", "kind": "published"}
        points[key] = Point(**named, cost=values[PEAK], scores=scores)
        following += number is None
    return list(points.values())


def time_points(stored: Stored, timings: pd.DataFrame, published: pd.DataFrame) -> list[Point]:
    """Settings with a score and a time on the split that is reported last, in the order of the study; after each the
    published row of its name that has both."""
    split, metric = stored.splits[-1], stored.metrics[0]
    means = case_means(stored.scores[stored.scores["split"] == split]).groupby("setting")[metric.name].mean()
    table, networks = time_table(timings, published, stored.definition), network_names(stored)
    points: list[Point] = []
    number = 0
    for row in table[table["split"] == split].to_dict("records"):
        setting = row["setting"]
        if math.isnan(means.get(setting, math.nan)):
            continue
        number += 1
        shared = {"number": number, "name": f"{setting}, window {row['window']}"}
        shared["line"] = networks.get(setting, setting)
        points.append(Point(**shared, kind="setting", cost=row["mean"], scores={MEAN: means[setting]}))
        own = published[published["row"] == setting].drop_duplicates("metric").set_index("metric")["value"]
        if {SECONDS, metric.name} <= set(own.index):
            points.append(Point(**shared, kind="published", cost=own[SECONDS], scores={MEAN: own[metric.name]}))
    return points


def network_names(stored: Stored) -> dict[str, str]:
    """The beginning that the names of all settings with the same network share, by setting.

    `unet-32-small` and `unet-32-whole` share `unet-32`. Where they share no beginning, or another network has the same
    one, it is the first setting's name.
    """
    families: dict[Any, list[str]] = {}
    for setting, plan in stored.plans.items():
        families.setdefault(plan.network, []).append(setting)
    begun = [_shared_beginning(members) for members in families.values()]
    names = {}
    for members, beginning in zip(families.values(), begun, strict=True):
        shared = beginning if beginning and begun.count(beginning) == 1 else members[0]
        names |= dict.fromkeys(members, shared)
    return names


def scatter(points: Sequence[Point], shown: Sequence[str], x_title: str, y_title: str) -> Figure:
    """Numbered points in one panel or more, filled where measured and hollow where published, with a key above.

    Args:
        points: at least one.
        shown: the panels, each named by its title.
        x_title: of the cost; lines that are too long are wrapped.
        y_title: of the scores.
    """
    measured = [point for point in points if point.kind != "published"]
    colours = palette(list(dict.fromkeys(point.line or point.name for point in measured)))
    by_number = {point.number: colours[point.line or point.name] for point in measured}
    handles = _key(points, by_number)
    figure, axes = _panels(len(shown), handles)
    drawn = {panel: [point for point in points if _has_score(point, panel)] for panel in shown}
    for ax, (panel, own) in zip(axes, drawn.items(), strict=True):
        _draw(ax, panel, own, by_number)
        ax.set_title(panel if len(shown) > 1 else "")
    figure.supylabel(y_title, fontsize="medium")
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    wrapped = [part for line in x_title.splitlines() for part in textwrap.wrap(line, width)]
    figure.supxlabel("\n".join(wrapped), fontsize="medium")
    legend_above(figure, handles)
    # Numbers go where nothing else is: the axes must have their places before.
    figure.draw_without_rendering()
    for ax, (panel, own) in zip(axes, drawn.items(), strict=True):
        write_beside(
            ax,
            [(point.cost, point.scores[panel], str(point.number), by_number.get(point.number, GREY)) for point in own],
        )
    return figure


def write_beside(ax: Axes, points: Sequence[tuple[float, float, str, tuple[float, ...]]]) -> None:
    """Writes each point's text beside it, at the first free place: nearest first, the right before other sides.

    Where no place is free, the farthest is taken. The figure must have been drawn, so that its axes have their places.

    Args:
        points: x, y, text and colour of each, in the axes' units.
    """
    scale = POINTS_PER_INCH / ax.figure.dpi
    places = [tuple(scale * ax.transData.transform((x, y))) for x, y, _, _ in points]
    frame = tuple(scale * ax.get_window_extent().extents)
    taken = [_box(x, y, 2 * POINT_RADIUS, 2 * POINT_RADIUS) for x, y in places]
    for (x, y), (*value, text, colour) in zip(places, points, strict=True):
        for offset in _offsets():
            box = _box(x + offset[0], y + offset[1], DIGIT_WIDTH * len(text), DIGIT_HEIGHT)
            if _within(box, frame) and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": POINT_RADIUS}
        ax.annotate(
            text,
            value,
            offset,
            textcoords="offset points",
            arrowprops=line if math.hypot(*offset) > 1.01 * RADII[0] else None,
            color=tuple(0.7 * part for part in colour),
            fontsize=FONT_SIZE,
            ha="center",
            va="center_baseline",
            in_layout=False,
            zorder=4,
        )


def _paths(stored: Stored, folder: Path, cost: str) -> list[Path]:
    return [folder / f"{stored.metrics[0].key}_against_{cost}{suffix}" for suffix in (".png", ".svg")]


def _panel_means(stored: Stored, panel: str) -> pd.DataFrame:
    scores = stored.scores[stored.scores["split"] == stored.first_split]
    return case_means(scores if panel == MEAN else scores[scores["label"] == panel])


def _published_scores(values: Mapping[str, float], metric: Metric) -> dict[str, float]:
    """Scores by panel, from values by metric; where only labels are published, the mean is that over these labels."""
    prefix = f"{metric.name} "
    labels = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    if metric.name in values:
        return {**labels, MEAN: values[metric.name]}
    return {**labels, MEAN: sum(labels.values()) / len(labels)} if labels else {}


def _shared_beginning(names: Sequence[str]) -> str:
    """The parts between hyphens that all names begin with."""
    parts = zip(*(name.split("-") for name in names), strict=False)
    return "-".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))


def _has_score(point: Point, panel: str) -> bool:
    return not math.isnan(point.scores.get(panel, math.nan))


def _panels(count: int, handles: Sequence[Line2D]) -> tuple[Figure, list[Axes]]:
    """A figure with axes for each of `count` panels, and room for the key."""
    columns = min(COLUMNS, count)
    rows, width = math.ceil(count / columns), max(7.0, PANEL * columns)
    height = PANEL * rows + LEGEND_LINE * math.ceil(len(handles) / legend_columns(handles, width)) + BELOW
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _draw(ax: Axes, panel: str, own: Sequence[Point], colours: Mapping[int, tuple[float, ...]]) -> None:
    for is_published, style in ((False, "-"), (True, ":")):
        lines: dict[str, list[Point]] = {}
        for point in own:
            if point.line and (point.kind == "published") == is_published:
                lines.setdefault(point.line, []).append(point)
        for members in lines.values():
            place = [point.cost for point in members], [point.scores[panel] for point in members]
            ax.plot(*place, color=colours[members[0].number], linestyle=style, linewidth=1.0)
    for point in own:
        colour = colours.get(point.number, GREY)
        ends = point.intervals.get(panel, (math.nan, math.nan))
        if not math.isnan(ends[0]):
            ax.plot([point.cost, point.cost], ends, color=colour, linewidth=1.0, alpha=0.6, zorder=2)
        ax.plot([point.cost], [point.scores[panel]], **_marker(point.kind, colour), zorder=3)
    ax.margins(MARGIN)
    ax.xaxis.set_major_locator(MaxNLocator(MOST_TICKS))
    costs = [point.cost for point in own]
    if costs and max(costs) > LINEAR_UP_TO * min(costs):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())


def _marker(kind: str, colour: tuple[float, ...]) -> dict[str, Any]:
    """Filled for what was measured, hollow for what was published."""
    face = "white" if kind == "published" else colour
    return {"marker": MARKERS[kind], "color": colour, "markerfacecolor": face, "markersize": 5, "linestyle": "none"}


def _key(points: Sequence[Point], colours: Mapping[int, tuple[float, ...]]) -> list[Line2D]:
    """Lines of the key, one for each number; published rows about a measured point have one line together."""
    measured = [point for point in points if point.kind != "published"]
    published = [point for point in points if point.kind == "published"]
    named = [(f"{point.number}  {point.name}", point.kind, colours[point.number]) for point in measured]
    named += [
        (f"{point.number}  {point.name}", "published", GREY) for point in published if point.number not in colours
    ]
    if any(point.number in colours for point in published):
        named.append(("published, of the same number", "published", GREY))
    return [Line2D([], [], label=label, **_marker(kind, colour)) for label, kind, colour in named]


def _offsets() -> Iterator[tuple[float, float]]:
    for radius in RADII:
        for step in range(DIRECTIONS):
            # From the right, up and down in turns: 0, 1, -1, 2, -2, … twelfths of the circle.
            angle = math.tau / DIRECTIONS * ((step + 1) // 2) * (-1) ** (step + 1)
            yield radius * math.cos(angle), radius * math.sin(angle)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _within(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
