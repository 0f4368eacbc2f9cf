"""How all figures look, and how they are written: the same bytes for the same content."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import seaborn as sns
from matplotlib.figure import Figure

from megavoxel.files import atomic_path

DPI = 150
METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
DISTINCT_COLOURS = 10


def palette(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """One colour per name, distinct to colour-blind readers for up to ten."""
    kind = "colorblind" if len(names) <= DISTINCT_COLOURS else "husl"
    return dict(zip(names, sns.color_palette(kind, len(names)), strict=True))


@contextmanager
def figure_style() -> Iterator[None]:
    """Within it, figures are drawn in the report's style and without chance."""
    with (
        mpl.rc_context(),
        sns.axes_style("whitegrid"),
        sns.plotting_context("paper", font_scale=1.1),
        warnings.catch_warnings(),
    ):
        mpl.rcParams.update({"svg.hashsalt": "megavoxel", "font.family": "DejaVu Sans", "figure.dpi": DPI})
        # Seaborn passes an argument that Matplotlib is about to rename.
        warnings.filterwarnings("ignore", "vert: bool", mpl.MatplotlibDeprecationWarning)
        yield


def empty_figure(text: str) -> Figure:
    """A figure that says why it shows nothing."""
    figure = Figure(figsize=(6.5, 1.5), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def save_figure(figure: Figure, *paths: Path) -> None:
    """Writes a figure to each path (.png or .svg), whole or not at all."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    # The layout is found by now; with any engine, even "none", each file would be drawn twice.
    figure.set_layout_engine(None)
    for path in paths:
        with atomic_path(path) as partial:
            figure.savefig(partial, dpi=DPI, metadata=METADATA[path.suffix])
