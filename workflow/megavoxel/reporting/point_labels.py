"""Texts beside points of a plot, so that none lies on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

FONT_SIZE = 7.0
DIGIT_WIDTH = 4.6
"""Points of a digit at this font size."""
HEIGHT = 7.5
POINT_RADIUS = 3.5
RADII = (9.5, 13.0, 17.0, 22.0, 28.0, 35.0, 43.0, 52.0)
"""Distances from the point that are tried, in typographic points; from the second on, a line leads to the text."""
DIRECTIONS = 12
POINTS_PER_INCH = 72

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in typographic points from the figure's corner."""


def write_beside(ax: Axes, points: Sequence[tuple[float, float, str, tuple[float, ...]]]) -> None:
    """Writes each point's text beside it, at the first free place: nearest first, the right before other sides.

    Where no place is free, the farthest is taken. The figure must have been drawn, so that its axes have their places.

    Args:
        points: x, y, text and colour of each, in the axes' units.
    """
    scale = POINTS_PER_INCH / ax.figure.dpi
    places = [tuple(scale * ax.transData.transform((x, y))) for x, y, _, _ in points]
    window = ax.get_window_extent()
    frame = (scale * window.x0, scale * window.y0, scale * window.x1, scale * window.y1)
    taken = [_box(x, y, 2 * POINT_RADIUS, 2 * POINT_RADIUS) for x, y in places]
    for (x, y), (*value, text, colour) in zip(places, points, strict=True):
        offset = _free_offset(x, y, DIGIT_WIDTH * len(text), taken, frame)
        taken.append(_box(x + offset[0], y + offset[1], DIGIT_WIDTH * len(text), HEIGHT))
        far = math.hypot(*offset) > 1.01 * RADII[0]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": POINT_RADIUS}
        ax.annotate(
            text,
            value,
            offset,
            textcoords="offset points",
            arrowprops=line if far else None,
            color=tuple(0.7 * part for part in colour),
            fontsize=FONT_SIZE,
            ha="center",
            va="center_baseline",
            in_layout=False,
            zorder=4,
        )


def _free_offset(x: float, y: float, width: float, taken: Sequence[Box], frame: Box) -> tuple[float, float]:
    for offset in _offsets():
        box = _box(x + offset[0], y + offset[1], width, HEIGHT)
        if _within(box, frame) and not any(_overlap(box, other) for other in taken):
            return offset
    return offset


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
