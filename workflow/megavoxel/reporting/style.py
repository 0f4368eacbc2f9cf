"""How all figures look, and how they are written and put into the page: the same bytes for the same content."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from megavoxel.errors import UserError
from megavoxel.files import atomic_path

DPI = 150
METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
DISTINCT_COLOURS = 10
PHOTO_QUALITY = 80
WIDEST = 16383
"""Pixels along a side of a WebP picture."""
CSS_PIXELS_PER_INCH = 104
WIDE = 800
"""CSS pixels from which on a figure has no other one beside it."""


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
        mpl.rcParams["text.parse_math"] = False  # a dollar in the name of a label or case is a dollar
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


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A figure as the page embeds it."""

    uri: str
    width: int
    height: int
    """CSS pixels at which its letters are as large as those of the page."""

    @property
    def is_wide(self) -> bool:
        """Whether it takes the width of the page by itself."""
        return self.width > WIDE


def drawing(path: Path) -> Embedded:
    """A PNG file without loss, as lines and letters need it.

    Raises:
        UserError: the file is missing.
    """
    return _embedded(path, lossless=True, method=3)


def photo(path: Path) -> Embedded:
    """A PNG file of slices, with a loss that is hard to see.

    Raises:
        UserError: the file is missing.
    """
    return _embedded(path, quality=PHOTO_QUALITY, method=4)


def _embedded(path: Path, **options: Any) -> Embedded:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: this figure is missing; run 'megavoxel report' without --tables-only") from None
    with Image.open(io.BytesIO(content)) as picture:
        width, height = (round(CSS_PIXELS_PER_INCH * side / DPI) for side in picture.size)
        if max(picture.size) > WIDEST:
            return Embedded(uri=_encoded("png", content), width=width, height=height)
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "WEBP", **options)
    return Embedded(uri=_encoded("webp", stream.getvalue()), width=width, height=height)


def _encoded(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
