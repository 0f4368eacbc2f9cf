"""How the points of a sweep learn: training loss and Dice of validation patches, one line per point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from megavoxel.config.study import Sweep
from megavoxel.reporting.figures import legend_above, thinned
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import empty_figure, figure_style, palette, save_figure

PANELS = {"training_loss": "training loss", "pseudo_dice": "pseudo-Dice (validation patches)"}
SIZE = (9.0, 4.2)
BAND_OPACITY = 0.2
LINEAR_UP_TO = 4.0
"""Where the longest run sees more than so many times the samples of the shortest, samples are on a log axis."""


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
            style = {"color": colours[point], "linewidth": 1.2, "marker": "o" if len(curve) == 1 else None}
            ax.plot(curve.index, curve[column, "mean"], **style)
            low, high = curve[column, "min"], curve[column, "max"]
            ax.fill_between(curve.index, low, high, color=colours[point], alpha=BAND_OPACITY, linewidth=0)
        ax.set(ylabel=title, xlabel=_x_title(stored, sweep))
        _scale_x(ax, [curve.index[-1] for curve in curves.values()], by_epoch=epochs_agree(stored, sweep))
    handles = [Line2D([], [], color=colours[point], linewidth=2, label=point) for point in curves]
    legend_above(figure, handles, title=sweep.title)
    return figure


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
