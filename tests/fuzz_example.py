"""What the fuzz run hands to a reader: files, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fuzz_bench import Bench

GIVEN = "given"
"""Folder, below that of the inputs, in which new files of an example lie."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What an image holds, whatever its file looks like."""

    voxels: np.ndarray
    """(z, y, x) in the closest canonical order, as float."""
    first: tuple[float, float, float]
    """Smallest coordinates of a voxel's centre, x, y, z in RAS+, mm."""
    last: tuple[float, float, float]
    """Largest coordinates of a voxel's centre."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Files that replace or join those of the bench while a reader has them."""

    what: str
    """What was done, in a few words that a fault is named by."""
    files: dict[str, bytes | Path]
    """Content by place below the folder of the inputs; a path becomes a link to it."""
    read: Callable[[Bench], bool]
    """Whether the files were taken; False: refused."""
    is_sound: bool | None = None
    """True: they must be taken. False: they must be refused. None: either will do."""
