"""Grids of voxels, without any voxels: their place in the patient, their spacings and shapes.

Everything but the files themselves works in *canonical order*: axes (z, y, x) of the closest RAS+ orientation, so that
axis 0 runs from inferior to superior, axis 1 from posterior to anterior, axis 2 from left to right. Images of several
channels have the channel first. `Geometry` knows the way from a file to this order and back. A network that was trained
elsewhere may see its images the other way round along some axes: then the grid has other `axes` than RAS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from megavoxel.errors import UserError

AXES = "[LR][AP][IS]"
"""Directions in which canonical axes x, y and z may run, as a pattern."""
CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
ANISOTROPY = 3.0
"""Ratio of the coarsest to the finest spacing above which the coarsest axis is resampled on its own."""
SPACING_TOLERANCE = 1e-3
"""Largest relative difference of spacings along an axis between two files on one grid."""
AFFINE_TOLERANCE = 0.05
"""Largest distance between the places of a corner voxel in two files on one grid, in units of the smallest voxel
side."""
SHEAR_TOLERANCE = 1e-3
"""Largest cosine of the angle between two axes of a grid: half a voxel over 500 voxels."""
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
"""How many mm the units are that NIfTI files can state, by nibabel's names."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The grid of a file as it lies on disk: three axes in the file's order (not canonical)."""

    shape: tuple[int, int, int]
    """Voxels per axis of the file."""
    affine: np.ndarray
    """4 x 4, voxel index of the file to mm in RAS+, or to another unit that the file states."""
    unit: str | None = None
    """One of MILLIMETRES; None: the file does not state it, and it counts as mm."""
    axes: str = "RAS"
    """Where the canonical axes x, y and z run to: L or R, P or A, I or S."""

    @property
    def orientation(self) -> np.ndarray:
        """Per axis of the file the canonical axis (0: x) and its direction, as nibabel has orientations."""
        signs = [1 if letter == own else -1 for letter, own in zip(self.axes, "RAS", strict=True)]
        return io_orientation(np.diag([*signs, 1]) @ self.affine)

    def in_mm(self) -> Geometry:
        """This grid with its affine in mm; a unit that is not stated counts as mm."""
        scaled = self.affine.copy()
        scaled[:3] *= MILLIMETRES[self.unit or "mm"]
        return replace(self, affine=scaled, unit="mm")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm in canonical order (z, y, x)."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(sizes[axis]) for axis in self._file_axes())

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels per axis in canonical order (z, y, x)."""
        return tuple(int(self.shape[axis]) for axis in self._file_axes())

    def _file_axes(self) -> list[int]:
        orientation = self.orientation[:, 0].astype(int)
        return [int(np.flatnonzero(orientation == world)[0]) for world in (2, 1, 0)]

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A file's array (i, j, k, ...) as (..., z, y, x); a view where possible."""
        turned = apply_orientation(array, self.orientation)
        return np.moveaxis(turned, [0, 1, 2], [-1, -2, -3])

    def restore(self, array: np.ndarray) -> np.ndarray:
        """A canonical array (z, y, x) in the order of the file (i, j, k); a view where possible."""
        back = ornt_transform(CANONICAL, self.orientation)
        return apply_orientation(np.transpose(array, (2, 1, 0)), back)

    def restore_channels(self, array: np.ndarray) -> np.ndarray:
        """A canonical array (channels, z, y, x) in the order of the file (i, j, k, channels); a view."""
        back = ornt_transform(CANONICAL, self.orientation)
        return apply_orientation(np.transpose(array, (3, 2, 1, 0)), back)


def geometry_of(shape: Sequence[int], affine: np.ndarray, path: Path, unit: str | None = None) -> Geometry:
    """The grid that the header of a file states, in its own unit.

    Raises:
        UserError: the affine is singular or not finite, or its axes are not at right angles.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.isnan(io_orientation(affine)).any():
        raise UserError(f"{path}: the affine of its header is singular or not finite; write the file with a valid one")
    require_right_angles(affine, path)
    return Geometry(shape=tuple(int(size) for size in shape), affine=affine, unit=unit)


def require_right_angles(affine: np.ndarray, path: Path) -> None:
    """Refuses a sheared grid, whose voxels no spacing describes; ITK refuses it in NIfTI as well.

    Raises:
        UserError: two axes of the affine are not at right angles.
    """
    axes = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), np.finfo(float).tiny)
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    if cosines.max() > SHEAR_TOLERANCE:
        raise UserError(
            f"{path}: two axes of its grid are at an angle of {math.degrees(math.acos(min(1, cosines.max()))):.4g} "
            "degrees, expected are 90: resample it to a grid whose axes are at right angles"
        )


def assumed_affine(path: Path, spacing: Sequence[float], orientation: str | None, how: str = "") -> np.ndarray:
    """4 x 4 of a grid whose first voxel lies at 0, for a file that does not say how its axes lie in the patient.

    Args:
        path: the file, for the message.
        spacing: voxel size in mm along the file's axes i, j, k.
        orientation: the directions in which these axes run, such as RAS.
        how: in what way files of this format say their orientation, for the message.

    Raises:
        UserError: nobody said which orientation to assume.
    """
    if orientation is None:
        raise UserError(
            f"{path}: its header does not say how the scan lies in the patient, so left and right may be exchanged; "
            f"write it with its orientation{how}, or, to predict, give the directions of its axes i, j, k, such as "
            "--assume-orientation RAS"
        )
    turn = inv_ornt_aff(axcodes2ornt(orientation), (1, 1, 1))
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.inv(turn)[:3, :3] @ np.diag(np.asarray(spacing, dtype=float))
    return affine


def compare_grids(first: Geometry, second: Geometry) -> list[tuple[str, str]]:
    """How two grids differ beyond the tolerances: check (`shape`, `spacing` or `affine`) and message, or nothing.

    Grids of which one does not state its unit are compared as if both had the same.
    """
    if first.shape != second.shape:
        return [("shape", f"{shown_sizes(first.shape)} and {shown_sizes(second.shape)} voxels")]
    if None not in (first.unit, second.unit) and first.unit != second.unit:
        first, second = first.in_mm(), second.in_mm()
    sides, other_sides = (np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (first, second))
    if (np.abs(other_sides - sides) > SPACING_TOLERANCE * sides).any():
        differing = f"{shown_sizes(sides)} and {shown_sizes(other_sides)}"
        return [("spacing", f"spacings of {differing} mm (in the files' order)")]
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in first.shape))])
    moved = np.linalg.norm((corners @ (second.affine - first.affine).T)[:, :3], axis=1).max()
    allowed = AFFINE_TOLERANCE * sides.min()
    if moved > allowed:
        place = f"their affines place a corner {moved:.3g} mm apart, allowed are {allowed:.3g} mm"
        return [("affine", f"{place}; if the voxels do match, copy the image's affine to the label map")]
    return []


def shown_sizes(numbers: Sequence[float] | np.ndarray) -> str:
    """Sizes along the axes for a message: `14 x 12 x 9`."""
    return " x ".join(f"{number:.6g}" for number in numbers)


def rounded_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    """Spacing in mm to six significant digits.

    Affines are stored in single precision: without rounding, their noise would decide which of two equal axes is the
    coarser one.
    """
    return tuple(float(f"{size:.6g}") for size in spacing)


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis after resampling: shape × spacing / new spacing, rounded (halves to even), at least 1."""
    return tuple(max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, new_spacing, strict=True))


def separate_axis(current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis across which slices are taken as they are (nearest neighbour), or None.

    It is the coarsest axis of the current spacing if that is anisotropic (coarsest more than 3 times the finest),
    else of the new spacing if that is. Two equally coarse axes count as none.
    """
    for spacing in (current_spacing, new_spacing):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarsest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def window_starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of evenly spread windows, at most `step` patches apart, that cover `size` voxels.

    Where the image is smaller than the patch, one window is centred on it (its start is then negative).
    """
    if size <= patch:
        return [-((patch - size) // 2)]
    count = math.ceil((size - patch) / max(1, patch * step)) + 1
    distance = (size - patch) / (count - 1)
    return [round(index * distance) for index in range(count)]
