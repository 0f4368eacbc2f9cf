"""NumPy arrays of three axes (z, y, x): .npy files, which say nothing of their grid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.grid import geometry_of
from megavoxel.volumes.volume import Format, Hints, Planes, Volume, unreadable

DAMAGED = (EOFError, OSError, OverflowError, TypeError, ValueError)


def _open(path: Path, hints: Hints) -> Volume:
    if hints.spacing is None:
        raise UserError(f"{path}: an array says nothing of its voxels' size; give 'spacing' under 'patients'")
    array = _load(path)
    if array.ndim != 3:
        raise UserError(f"{path}: expected one volume with three axes; the file has shape {array.shape[::-1]}")
    return Volume(
        path=path,
        geometry=geometry_of(array.shape[::-1], np.diag([*reversed(hints.spacing), 1.0]), path),
        channels=1,
        voxels=partial(_voxels, path),
        begin=partial(_begin, path),
    )


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except DAMAGED as fault:
        raise unreadable(path, fault) from None


def _voxels(path: Path, kind: type | None) -> np.ndarray:
    return np.array(_load(path).T, dtype=kind)


def _begin(path: Path) -> AbstractContextManager[Planes]:
    array = _load(path).T
    return nullcontext(lambda span, _channel: np.array(array[..., span]))


FORMATS = (Format(suffixes=(".npy",), open=_open, needs_spacing=True),)
