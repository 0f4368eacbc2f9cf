"""Figures of confidence: reliability by label, and disagreement of the folds beside the scores of the test cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megavoxel.reporting.confidence import Judged, disagreements
from megavoxel.reporting.figures import chunks, legend_above, save_both
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import empty_figure, figure_style, palette

COLUMNS = 4
FEWEST_VOXELS = 20
"""Voxels of a bin from which on it is drawn."""
NO_PARTS = "Nothing is predicted yet."
NO_DISAGREEMENT = "No test case was predicted by several folds."


def write_confidence_figures(stored: Stored, judged: Sequence[Judged], folder: Path) -> None:
    """Writes `reliability` and `disagreement` as .png and .svg."""
    with figure_style():
        save_both(reliability_figure(stored, judged), folder, "reliability")
        save_both(disagreement_figure(stored, judged), folder, "disagreement")


def reliability_figure(stored: Stored, judged: Sequence[Judged]) -> Figure:
    """The share of voxels that are a label over its probability, in bins: a panel per label, a colour per setting."""
    if not judged:
        return empty_figure(NO_PARTS)
    own = [one for one in judged if one.split == judged[0].split]
    labels = [name for name in stored.labels if name in own[0].whole.structures]
    rows, colours = chunks(labels, COLUMNS), palette(stored.definition.settings)
    figure = Figure(figsize=(max(6.5, 2.6 * len(rows[0])), 2.8 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for ax in axes.flat[len(labels) :]:
        ax.set_axis_off()
    for ax, label in zip(axes.flat, labels, strict=False):
        ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        for one in own:
            _draw_bins(ax, one.bins(label, tempered=False), colours[one.setting], "--")
            if one.tempered:
                _draw_bins(ax, one.bins(label, tempered=True), colours[one.setting], "-")
        ax.set(title=label, xlabel="probability", ylabel="share in the reference", xlim=(0, 1), ylim=(0, 1))
        ax.label_outer()
    handles = [Line2D([], [], color=colours[one.setting], label=one.setting) for one in own]
    handles.append(Line2D([], [], color="0.3", linestyle="--", label="as predicted"))
    handles += [Line2D([], [], color="0.3", label="with temperature")] if any(one.tempered for one in own) else []
    legend_above(figure, handles)
    return figure


def _draw_bins(ax: Axes, bins: np.ndarray, colour: tuple[float, float, float], style: str) -> None:
    voxels, probability, hits = bins[:, bins[0] >= FEWEST_VOXELS]
    ax.plot(probability / voxels, hits / voxels, style, color=colour, marker="o", markersize=3, linewidth=1.2)


def disagreement_figure(stored: Stored, judged: Sequence[Judged]) -> Figure:
    """The first metric of each test case over the mean disagreement of the folds about what they label."""
    told = {own.setting: disagreements(stored, own) for own in judged if own.split == "test"}
    told = {setting: table for setting, table in told.items() if len(table)}
    if not told:
        return empty_figure(NO_DISAGREEMENT)
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    ax, colours = figure.subplots(), palette(stored.definition.settings)
    for setting, table in told.items():
        ax.plot(table["disagreement"], table["score"], "o", color=colours[setting], markersize=4)
    ax.set(xlabel="mean disagreement of the folds (nats)", ylabel=f"{stored.metrics[0].head}, mean over labels")
    ax.set_xlim(left=0)
    legend_above(figure, [Line2D([], [], color=colours[name], marker="o", linestyle="", label=name) for name in told])
    return figure
