"""Accuracy, time and memory against resolution (figure 2 of Pandit et al., 2021), and the training curves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from megavoxel.reporting.classification.tables import repeat_values
from megavoxel.reporting.figures import draw_band, legend_above
from megavoxel.reporting.scatter import MEAN, NO_PEAK, Point, scatter
from megavoxel.reporting.stored import StoredClassification
from megavoxel.reporting.style import empty_figure, figure_style, palette, save_figure

SERIAL, DISTRIBUTED = "serial", "distributed"
PANEL = 4.2
SPREAD = 0.012
"""Distance of the points of series at one resolution, as a fraction of it."""
REPEAT = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
"""Points of single repeats, rimmed so that they are seen on their series' bar."""
ABOVE_BARS = 5
COST_AXES = {"ms_per_image": "ms per training image", "peak_gib": "peak memory of a worker (GiB)"}
SCATTER_AXES = {"peak_gib": "peak memory of a worker in GiB", "seconds": "training of a run in seconds"}
RESOLUTION = "resolution (pixels per side)"
CURVE_AXES = {"training_loss": "training loss", "training_accuracy": "training accuracy"}


def write_figures(stored: StoredClassification, tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Writes accuracy and cost against resolution, accuracy against cost and training curves, each as .png and .svg.

    Args:
        tables: with full numbers, as `write_tables` returns them.
    """
    with figure_style():
        figures = {
            "accuracy_against_resolution": accuracy_figure(stored, tables["summary"], tables["published"]),
            "cost_against_resolution": cost_figure(stored, tables["cost"]),
            "accuracy_against_memory": cost_scatter(stored, tables["summary"], tables["cost"], "peak_gib"),
            "accuracy_against_seconds": cost_scatter(stored, tables["summary"], tables["cost"], "seconds"),
            "training_curves": curves_figure(stored),
        }
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png", folder / f"{name}.svg")


def series_of(stored: StoredClassification) -> dict[str, str]:
    """The line that each cell is a point of: its images per class, and serial or distributed training.

    Where several distributed cells would be at the same place of a line, workers and partition tell lines apart.
    """
    cells = list(stored.definition.cells)
    coarse = {cell: _series(stored, cell, detailed=False) for cell in cells}
    places = Counter(
        (coarse[cell], stored.cell_plan(cell).network, stored.cell_plan(cell).resolution) for cell in cells
    )
    detailed = max(places.values()) > 1
    return {cell: _series(stored, cell, detailed=detailed) for cell in cells}


def series_colours(series: dict[str, str]) -> dict[str, tuple[float, float, float]]:
    """A colour per series; serial and distributed training with as many images share one, and differ in their lines."""
    names = list(dict.fromkeys(series.values()))
    amounts = {name: name.rpartition(", ")[2] for name in names}
    if max(Counter(amounts.values()).values()) > len((SERIAL, DISTRIBUTED)):
        return palette(names)
    shared = palette(list(dict.fromkeys(amounts.values())))
    return {name: shared[amounts[name]] for name in names}


def accuracy_figure(stored: StoredClassification, summary: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Accuracy on the split that is reported last: a panel per network, a line per series; published values hollow."""
    split, series = stored.splits[-1], series_of(stored)
    own = summary[(summary["split"] == split) & summary["row"].isin(series)]
    networks, colours = _networks(stored), series_colours(series)
    width = PANEL * len(networks) if len(networks) > 1 else 1.6 * PANEL
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    printed = published[published["metric"] == "accuracy"].set_index("row")["published"]
    for network, ax in zip(networks, figure.subplots(1, len(networks), squeeze=False, sharey=True)[0], strict=True):
        part = own[own["network"] == network]
        for number, (name, line) in enumerate(_lines(part, series)):
            x = line["resolution"] * (1 + SPREAD * (number - (len(colours) - 1) / 2))
            style = _style(name, colours)
            # An interval of many images may lie beside a mean over repeats by the resamples' own chance.
            ends = [(line["accuracy"] - line["accuracy_low"]), (line["accuracy_high"] - line["accuracy"])]
            bars = [end.clip(lower=0) for end in ends]
            ax.errorbar(x, line["accuracy"], yerr=bars, marker="o", markersize=5, capsize=2, **style)
            _draw_repeats(ax, stored, line["row"], x, split, colours[name])
            known = line["row"].isin(printed.index).to_numpy()
            if known.any():
                values = printed.loc[line["row"][known]]
                ax.plot(x[known], values, marker="s", markerfacecolor="none", linewidth=0.6, **style)
        ax.axhline(1 / len(stored.classes), color="0.6", linewidth=0.8, linestyle=":")
        ax.set(title=network, xlabel=RESOLUTION, ylabel=f"accuracy ({split})")
        _resolution_axis(ax, part["resolution"])
    extra = [Line2D([], [], color="0.6", linestyle=":", label="chance")]
    if any(len(models) > 1 for models in stored.definition.cells.values()):
        extra.append(Line2D([], [], color="0.3", marker=".", linestyle="", label="a repeat", **REPEAT))
    if len(printed):
        extra.append(Line2D([], [], color="0.3", marker="s", markerfacecolor="none", linewidth=0.6, label="published"))
    legend_above(figure, [*_handles(colours), *extra])
    return figure


def cost_figure(stored: StoredClassification, cost: pd.DataFrame) -> Figure:
    """Milliseconds per training image, of all workers together, and peak memory of one; a row per network."""
    series, networks = series_of(stored), _networks(stored)
    figure = Figure(figsize=(2 * PANEL, 3.4 * len(networks) + 0.8), layout="constrained")
    colours = series_colours(series)
    for network, pair in zip(networks, figure.subplots(len(networks), 2, squeeze=False), strict=True):
        part = cost[cost["network"] == network].rename(columns={"cell": "row"})
        for ax, (column, title) in zip(pair, COST_AXES.items(), strict=True):
            for name, line in _lines(part, series):
                ax.plot(line["resolution"], line[column], marker="o", **_style(name, colours))
            ax.set(title=network, xlabel=RESOLUTION, ylabel=title, ylim=(0, None))
            _resolution_axis(ax, part["resolution"])
    legend_above(figure, _handles(colours))
    return figure


def cost_scatter(stored: StoredClassification, summary: pd.DataFrame, cost: pd.DataFrame, column: str) -> Figure:
    """Accuracy on the split that is reported last against a column of the cost, a numbered point for each cell."""
    split = stored.splits[-1]
    own = summary[summary["split"] == split].set_index("row")
    points = [
        Point(
            number=number,
            name=cell,
            kind="setting",
            cost=value,
            scores={MEAN: own["accuracy"][cell]},
            intervals={MEAN: (own["accuracy_low"][cell], own["accuracy_high"][cell])},
        )
        for number, (cell, value) in enumerate(zip(cost["cell"], cost[column], strict=True), start=1)
        if not np.isnan(value)
    ]
    return scatter(points, [MEAN], SCATTER_AXES[column], f"accuracy ({split})") if points else empty_figure(NO_PEAK)


def curves_figure(stored: StoredClassification) -> Figure:
    """Training loss and accuracy by epoch: a column per network and resolution, a line per series, the mean over its
    repeats and folds in a band that is their range."""
    series = series_of(stored)
    plans = {cell: stored.cell_plan(cell) for cell in series}
    places = list(dict.fromkeys((plan.network, plan.resolution) for plan in plans.values()))
    figure = Figure(figsize=(max(2, len(places)) * 3.2, 5.6), layout="constrained")
    axes = figure.subplots(2, len(places), squeeze=False, sharey="row")
    colours = series_colours(series)
    for cell, name in series.items():
        column = places.index((plans[cell].network, plans[cell].resolution))
        histories = [own for setting in stored.definition.cells[cell] for own in stored.histories[setting].values()]
        curves = pd.concat(histories).groupby("epoch")[list(CURVE_AXES)].agg(["mean", "min", "max"])
        for ax, key in zip(axes[:, column], CURVE_AXES, strict=True):
            draw_band(ax, curves[key], **_style(name, colours))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for column, (network, resolution) in enumerate(places):
        axes[0, column].set(title=f"{network}, {resolution} pixels")
        axes[1, column].set(xlabel="epoch")
    for ax, title in zip(axes[:, 0], CURVE_AXES.values(), strict=True):
        ax.set(ylabel=title)
    legend_above(figure, _handles(colours))
    return figure


def _style(series: str, colours: dict[str, tuple]) -> dict[str, Any]:
    return {"color": colours[series], "linestyle": "--" if DISTRIBUTED in series else "-"}


def _networks(stored: StoredClassification) -> list[str]:
    return list(dict.fromkeys(stored.cell_plan(cell).network for cell in stored.definition.cells))


def _series(stored: StoredClassification, cell: str, *, detailed: bool) -> str:
    plan = stored.cell_plan(cell)
    images = "all images" if plan.images_per_class is None else f"{plan.images_per_class} per class"
    if plan.workers == 1:
        return f"{SERIAL}, {images}"
    details = f" ({plan.workers}, {plan.data_partition}, {plan.training.learning_rate:g})" if detailed else ""
    return f"{DISTRIBUTED}{details}, {images}"


def _lines(part: pd.DataFrame, series: dict[str, str]) -> list[tuple[str, pd.DataFrame]]:
    """The lines of a panel, each with its points in order of resolution."""
    named = part.assign(series=part["row"].map(series), resolution=part["resolution"].astype(float))
    names = [name for name in dict.fromkeys(series.values()) if (named["series"] == name).any()]
    return [(name, named[named["series"] == name].sort_values("resolution")) for name in names]


def _draw_repeats(
    ax: Axes, stored: StoredClassification, rows: pd.Series, x: pd.Series, split: str, colour: tuple
) -> None:
    for row, place in zip(rows, x, strict=True):
        found = [repeat["accuracy"] for repeat in repeat_values(stored, row, split)]
        if len(found) > 1:
            ax.plot(np.full(len(found), place), found, ".", color=colour, zorder=ABOVE_BARS, **REPEAT)


def _resolution_axis(ax: Axes, resolutions: pd.Series) -> None:
    found = sorted(set(resolutions.astype(int)))
    if found[-1] > found[0]:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(found))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(map(str, found), rotation=45 if len(found) > 4 else 0)


def _handles(colours: dict[str, tuple]) -> list[Line2D]:
    return [Line2D([], [], marker="o", markersize=5, label=name, **_style(name, colours)) for name in colours]
