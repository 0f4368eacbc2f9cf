"""Figures of scores and training: box plots per label, curves per setting, and curves of the points of sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from megavoxel.config.study import Sweep
from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.run_files import HISTORY_COLUMNS
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import empty_figure, figure_style, palette, save_figure

BOXES_PER_PANEL = 40
COLUMNS_OF_CURVES = 4
POINTS_PER_CURVE = 200
WIDTH_OF_BOXES = 0.8
"""Width of all boxes of a label together, where labels are 1 apart."""
SPREAD_OF_POINTS = 0.1
"""How far a point may stand from the middle of its box, as a fraction of the box's width."""
POINT_AREA = 2.5**2
SPLIT_TITLES = {"validation": "Validation (cross-validation)", "test": "Test"}
PANELS = {"training_loss": "training loss", "pseudo_dice": "pseudo-Dice (validation patches)"}
SIZE = (9.0, 4.2)
BAND_OPACITY = 0.2
LINEAR_UP_TO = 4.0
"""Where the longest run sees more than so many times the samples of the shortest, samples are on a log axis."""


def write_score_figures(stored: Stored, folder: Path) -> None:
    """Writes `KEY_by_label` of each metric, such as `dsc_by_label`, as .png and .svg."""
    with figure_style():
        for metric in stored.metrics:
            save_both(score_figure(stored, metric), folder, f"{metric.key}_by_label")


def write_training_figure(stored: Stored, folder: Path) -> None:
    """Writes `training_curves` as .png and .svg."""
    with figure_style():
        save_both(training_figure(stored), folder, "training_curves")


def score_figure(stored: Stored, metric: Metric) -> Figure:
    """Box plots of a metric per label, one box per model, one point per case; one panel per split."""
    scores = stored.scores[(stored.scores["metric"] == metric.name) & stored.scores["value"].notna()]
    models = stored.definition.models
    groups = chunks(stored.labels_of(metric), max(1, BOXES_PER_PANEL // len(models)))
    panels = list(product(stored.splits, groups))
    widest = max(len(group) for group in groups)
    figure = Figure(figsize=(_panel_width(widest, len(models)), 3.2 * len(panels) + 0.5), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    limits, ticks = _limits(metric, scores["value"])
    for ax, (split, group) in zip(axes, panels, strict=True):
        part = scores[(scores["split"] == split) & scores["label"].isin(group)]
        _draw_boxes(ax, part, group, models)
        title = SPLIT_TITLES[split] if group is groups[0] else ""
        ax.set(title=title, xlabel="", ylabel=_axis_title(stored, metric), ylim=limits)
        ax.set_yticks([tick for tick in ax.get_yticks() if ticks[0] <= tick <= ticks[1]])
        _turn_long_names(ax, group, figure.get_figwidth() / widest)
    handles = [Patch(facecolor=colour, edgecolor="0.3", label=model) for model, colour in _light(models).items()]
    legend_above(figure, handles)
    return figure


def training_figure(stored: Stored) -> Figure:
    """Losses and mean pseudo-Dice over epochs: one column per setting, one colour per fold."""
    settings = list(stored.histories)
    columns = min(COLUMNS_OF_CURVES, len(settings))
    rows = chunks(settings, columns)
    figure = Figure(figsize=(max(6.5, 3.4 * columns), 4.6 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(2 * len(rows), columns, squeeze=False)
    folds = sorted({fold for histories in stored.histories.values() for fold in histories})
    colours = palette([str(fold) for fold in folds])
    limits = _loss_limits(stored)
    for row, group in enumerate(rows):
        for column in range(columns):
            pair = axes[2 * row : 2 * row + 2, column]
            if column >= len(group):
                for ax in pair:
                    ax.set_axis_off()
                continue
            _draw_curves(pair, stored.histories[group[column]], colours)
            pair[0].set(title=group[column], ylabel="loss" if column == 0 else "", ylim=limits)
            pair[1].set(xlabel="epoch", ylabel="pseudo-Dice" if column == 0 else "", ylim=(-0.02, 1.02))
            # The axes are those of the panel below, and of the one on the left.
            pair[0].tick_params(labelbottom=False)
            for ax in pair if column else ():
                ax.tick_params(labelleft=False)
    handles = [Line2D([], [], color=colours[str(fold)], label=f"fold {fold}") for fold in folds]
    handles.append(Line2D([], [], color="0.3", label="training"))
    handles.append(Line2D([], [], color="0.3", linestyle="--", label="validation"))
    legend_above(figure, handles)
    return figure


def thinned(history: pd.DataFrame) -> pd.DataFrame:
    """A history of at most `POINTS_PER_CURVE` lines: means over as many epochs as that takes."""
    together = math.ceil(len(history) / POINTS_PER_CURVE)
    return history[list(HISTORY_COLUMNS)].groupby(np.arange(len(history)) // together).mean()


def legend_above(figure: Figure, handles: Sequence[Patch | Line2D], title: str | None = None) -> None:
    """A legend over all panels, in as many columns as fit."""
    columns = legend_columns(handles, figure.get_figwidth())
    place = {"loc": "outside upper center", "ncols": columns, "frameon": False}
    figure.legend(handles=handles, title=title, **place)


def legend_columns(handles: Sequence[Patch | Line2D], inches: float) -> int:
    """Columns of a legend that fit into a width, at least one."""
    longest = max(len(handle.get_label()) for handle in handles)
    return min(max(1, int(inches / (0.7 + 0.085 * longest))), len(handles))


def save_both(figure: Figure, folder: Path, name: str) -> None:
    """Writes a figure as .png and .svg."""
    save_figure(figure, folder / f"{name}.png", folder / f"{name}.svg")


def _draw_boxes(ax: Axes, part: pd.DataFrame, labels: Sequence[str], models: Sequence[str]) -> None:
    keys = {"data": part, "x": "label", "y": "value", "hue": "setting", "order": labels, "hue_order": models}
    style = {"palette": _light(models), "showfliers": False, "linewidth": 0.8, "gap": 0.15, "saturation": 1}
    sns.boxplot(**keys, **style, width=WIDTH_OF_BOXES, ax=ax, legend=False)
    _draw_points(ax, part, labels, models)
    ax.set_xlim(-0.5, len(labels) - 0.5)


def _draw_points(ax: Axes, part: pd.DataFrame, labels: Sequence[str], models: Sequence[str]) -> None:
    """One point per case over its box. A cloud per model: Seaborn's, one per box, would take longer than all tables."""
    random, width = np.random.default_rng(0), WIDTH_OF_BOXES / len(models)
    places = {label: place for place, label in enumerate(labels)}
    for number, (model, colour) in enumerate(palette(models).items()):
        own = part[part["setting"] == model]
        middle = own["label"].map(places) + width * (number + 0.5) - WIDTH_OF_BOXES / 2
        spread = random.uniform(-SPREAD_OF_POINTS, SPREAD_OF_POINTS, len(own)) * width
        ax.scatter(middle + spread, own["value"], s=POINT_AREA, color=[colour], alpha=0.8, linewidth=0, rasterized=True)


def _light(models: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The models' colours for areas, so that points in the full colour stand out."""
    return {model: tuple(1 - 0.55 * (1 - part) for part in colour) for model, colour in palette(models).items()}


def _draw_curves(pair: Sequence[Axes], histories: dict[int, pd.DataFrame], colours: dict[str, tuple]) -> None:
    losses, dice = pair
    for fold, whole in histories.items():
        history = thinned(whole)
        style = {"color": colours[str(fold)], "linewidth": 1.2, "marker": "o" if len(history) == 1 else None}
        losses.plot(history["epoch"], history["training_loss"], **style)
        losses.plot(history["epoch"], history["validation_loss"], linestyle="--", alpha=0.7, **style)
        dice.plot(history["epoch"], history["pseudo_dice"], linestyle="--", **style)
    for ax in pair:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _loss_limits(stored: Stored) -> tuple[float, float]:
    losses = pd.concat(
        [
            history[["training_loss", "validation_loss"]]
            for histories in stored.histories.values()
            for history in histories.values()
        ]
    )
    low, high = float(losses.min(axis=None)), float(losses.max(axis=None))
    if not math.isfinite(low) or not math.isfinite(high):
        return 0.0, 1.0
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def chunks(names: Sequence[str], size: int) -> list[list[str]]:
    """The names in rows of nearly equal length, none longer than `size`."""
    rows = max(1, math.ceil(len(names) / size))
    size = math.ceil(len(names) / rows)
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _panel_width(labels: int, models: int) -> float:
    """Inches that leave each box about a third of an inch."""
    return min(14.0, max(6.5, 1.2 + 0.32 * labels * (models + 0.5)))


def _turn_long_names(ax: Axes, labels: Sequence[str], slot: float) -> None:
    if max(len(label) for label in labels) * 0.085 > slot:
        ax.tick_params(axis="x", rotation=30)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def _limits(metric: Metric, values: pd.Series) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of an axis of a metric, and the first and last place of a tick."""
    if math.isinf(metric.low):
        margin = 1.05 * values.abs().max() if len(values) and values.abs().max() > 0 else 1.0
        return (-margin, margin), (-margin, margin)
    if math.isinf(metric.high):
        top = 1.05 * values.max() if len(values) and values.max() > 0 else 1.0
        return (-0.02 * top, top), (0.0, top)
    low = math.floor(10 * values.min()) / 10 if len(values) else 0.0
    return (min(low, 0.9) - 0.02, 1.02), (low - 0.01, 1.0)


def _axis_title(stored: Stored, metric: Metric) -> str:
    if not metric.takes_tolerance:
        return metric.head
    tolerances = {stored.tolerances[label] for label in stored.labels_of(metric) if label in stored.tolerances}
    if len(tolerances) == 1:
        return f"{metric.head} at {tolerances.pop():g} mm"
    return f"{metric.head} (tolerance per label)"


def write_sweep_figures(stored: Stored, folder: Path) -> None:
    """Writes `sweep-NAME.png` and `.svg` for every sweep."""
    with figure_style():
        for sweep in stored.definition.sweeps:
            path = folder / f"sweep-{sweep.name}"
            save_figure(sweep_figure(stored, sweep), path.with_suffix(".png"), path.with_suffix(".svg"))


def sweep_figure(stored: Stored, sweep: Sweep) -> Figure:
    """One line per point, the mean over its repeats and folds, in a band that is their range.

    Ensembles are not trained and have no line.
    """
    curves = point_curves(stored, sweep)
    if not curves:
        return empty_figure(f"{sweep.title}: no point was trained by itself")
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    colours = palette(list(sweep.points))
    for ax, (column, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for point, curve in curves.items():
            draw_band(ax, curve[column], color=colours[point])
        ax.set(ylabel=title, xlabel=_x_title(stored, sweep))
        _scale_x(ax, [curve.index[-1] for curve in curves.values()], by_epoch=epochs_agree(stored, sweep))
    handles = [Line2D([], [], color=colours[point], linewidth=2, label=point) for point in curves]
    legend_above(figure, handles, title=sweep.title)
    return figure


def draw_band(ax: Axes, curve: pd.DataFrame, **style: Any) -> None:
    """A line in a band.

    Args:
        curve: columns mean, min and max.
        style: of the line, with its `color`.
    """
    ax.plot(curve.index, curve["mean"], linewidth=1.2, marker="o" if len(curve) == 1 else None, **style)
    ax.fill_between(curve.index, curve["min"], curve["max"], color=style["color"], alpha=BAND_OPACITY, linewidth=0)


def point_curves(stored: Stored, sweep: Sweep) -> dict[str, pd.DataFrame]:
    """Mean, min and max over the runs of each point that was trained, in the order of the sweep.

    Returns:
        By point, a table with the columns (training_loss or pseudo_dice, mean or min or max); its index is the epoch
        where all runs of the sweep have as many epochs of as many steps, else the number of samples seen.
    """
    by_epoch = epochs_agree(stored, sweep)
    curves = {}
    for point, models in sweep.points.items():
        runs = []
        for setting in _trained(stored, models):
            per_epoch = 1 if by_epoch else samples_per_epoch(stored, setting)
            for history in stored.histories[setting].values():
                short = thinned(history)
                runs.append(short.assign(x=short["epoch"] * per_epoch))
        if runs:
            curves[point] = pd.concat(runs).groupby("x")[list(PANELS)].agg(["mean", "min", "max"])
    return curves


def epochs_agree(stored: Stored, sweep: Sweep) -> bool:
    """Whether an epoch means the same for all runs of a sweep: as many epochs of as many steps."""
    trainings = [stored.plans[setting].training for setting in _settings(stored, sweep)]
    return len({(training.epochs, training.iterations_per_epoch) for training in trainings}) <= 1


def samples_per_epoch(stored: Stored, setting: str) -> int:
    """Training patches that a run of the setting sees in an epoch."""
    plan = stored.plans[setting]
    return plan.training.iterations_per_epoch * plan.batch


def _settings(stored: Stored, sweep: Sweep) -> list[str]:
    return [setting for models in sweep.points.values() for setting in _trained(stored, models)]


def _trained(stored: Stored, models: Sequence[str]) -> list[str]:
    return [model for model in models if model in stored.histories]


def _x_title(stored: Stored, sweep: Sweep) -> str:
    if not epochs_agree(stored, sweep):
        return "training samples seen"
    steps = stored.plans[_settings(stored, sweep)[0]].training.iterations_per_epoch
    return f"epoch ({steps} steps each)"


def _scale_x(ax: Axes, ends: Sequence[float], *, by_epoch: bool) -> None:
    if by_epoch:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    elif max(ends) > LINEAR_UP_TO * min(ends):
        ax.set_xscale("log")
