"""Files of volumes as others write them: NIfTI, NRRD and NumPy arrays, each with the grid that it says it is on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.nifti import Geometry, open_nifti, read_geometry, unreadable, voxels_of

SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".npy")
SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
"""Signs that bring the world axes of an NRRD file to RAS+, by its field `space`."""
DAMAGED = (EOFError, OSError, OverflowError, TypeError, ValueError, KeyError, zlib.error)


def read_volume(path: Path, spacing: Sequence[float] | None = None) -> tuple[np.ndarray, Geometry]:
    """The voxels of a file (i, j, k), as they are stored, and their grid.

    An array of a .npy file is (z, y, x); it is returned as (x, y, z), on a grid of the given spacing that begins at 0.

    Args:
        path: with one of `SUFFIXES`.
        spacing: voxel size in mm along z, y, x of .npy files.

    Raises:
        UserError: the file is missing or damaged, has not three axes, or does not say its grid.
    """
    if path.name.endswith(".nrrd"):
        array, geometry = _read_nrrd(path)
    elif path.name.endswith(".npy"):
        array, geometry = _read_npy(path, spacing)
    else:
        array, geometry = voxels_of(open_nifti(path), path), read_geometry(path)
    if array.ndim != 3:
        raise UserError(f"{path}: expected one volume with three axes; the file has shape {array.shape}")
    return array, geometry


def _read_npy(path: Path, spacing: Sequence[float] | None) -> tuple[np.ndarray, Geometry]:
    if spacing is None:
        raise UserError(f"{path}: an array says nothing of its voxels' size; give 'spacing' under 'patients'")
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGED as fault:
        raise unreadable(path, fault) from None
    return array.T, Geometry(shape=array.T.shape, affine=np.diag([*reversed(spacing), 1.0]))


def _read_nrrd(path: Path) -> tuple[np.ndarray, Geometry]:
    nrrd = _nrrd(path)
    try:
        array, header = nrrd.read(str(path))
    except (nrrd.NRRDError, *DAMAGED) as fault:
        raise unreadable(path, fault) from None
    return array, Geometry(shape=array.shape, affine=_affine(header, path))


def _nrrd(path: Path) -> ModuleType:
    try:
        import nrrd
    except ImportError:
        raise UserError(
            f"{path}: reading NRRD files needs the package pynrrd: pip install 'megavoxel[nrrd]', or pip install pynrrd"
        ) from None
    return nrrd


def _affine(header: dict[str, Any], path: Path) -> np.ndarray:
    """4 x 4 to RAS+, by the header's `space`, `space directions` and `space origin` (teem.sourceforge.net/nrrd)."""
    signs = SPACES.get(str(header.get("space", "")).lower())
    directions = np.asarray(header.get("space directions", np.nan), dtype=float)
    if signs is None or directions.shape != (3, 3) or not np.isfinite(directions).all():
        raise UserError(
            f"{path}: its header must say 'space' (one of {', '.join(sorted(SPACES))}) and a 'space directions' of "
            "three vectors; write it again with them, or as NIfTI"
        )
    affine = np.eye(4)
    affine[:3, :3] = (directions * signs).T
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), dtype=float) * signs
    return affine
