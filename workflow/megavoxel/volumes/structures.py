"""Structures that somebody drew in a scan, as DICOM keeps them: a file of segments, or of contours."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.grid import Geometry

MOST_GAP_SLICES = 4
"""Slices from which on equal gaps between them say that those between were not drawn."""


@dataclass(frozen=True, kw_only=True)
class Structures:
    """A file with structures, none of which has been drawn on a grid."""

    path: Path
    series: str
    """UID of the series in which they were drawn; empty: it is not stated."""
    frame_of_reference: str
    """UID of the coordinates in which they lie; empty: it is not stated."""
    names: tuple[str, ...]
    """Names of the structures that enclose anything, each once."""
    draw: Callable[[str, Geometry], np.ndarray]
    """From a name and the grid of the image to bool (i, j, k) of the image's file. Raises UserError where the structure
    does not lie on the slices and pixels of this grid."""


def require_all_slices(slices: Collection[int], what: str) -> None:
    """Refuses a structure that was drawn on every second slice, or fewer.

    Args:
        slices: numbers of those with the structure.
        what: names it and its file.

    Raises:
        UserError: between any two slices, equally many are left out.
    """
    gaps = np.diff(sorted(slices))
    if len(slices) >= MOST_GAP_SLICES and gaps.min() == gaps.max() > 1:
        raise UserError(
            f"{what} is drawn on every {gaps[0]}. slice only; fill in the slices between, in the program that it was "
            "drawn with"
        )
