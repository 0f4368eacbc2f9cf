"""DICOM RTSTRUCT: structures as closed contours on the slices of a scan (PS3.3, section A.19).

A voxel is inside of a contour if its middle is, or lies on the contour. Of several contours of a structure on one
slice, what lies in an odd number of them is inside: one in another one is a hole, as are those that a keyhole links.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from skimage.draw import polygon

from megavoxel.errors import UserError
from megavoxel.volumes.formats import dicom_headers as tags
from megavoxel.volumes.formats.dicom_headers import Elements, More, read_header
from megavoxel.volumes.formats.itk import LPS_TO_RAS
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.structures import Structures, require_all_slices
from megavoxel.volumes.volume import unreadable

ROIS, ROI_NUMBER, ROI_FRAME, ROI_NAME = 0x30060020, 0x30060022, 0x30060024, 0x30060026
ROI_CONTOURS, CONTOURS, KIND, POINTS, REFERENCED_ROI = 0x30060039, 0x30060040, 0x30060042, 0x30060050, 0x30060084
FRAMES, STUDIES, SERIES_OF_STUDY = 0x30060010, 0x30060012, 0x30060014
VALUES = (ROI_NUMBER, ROI_FRAME, ROI_NAME, KIND, POINTS, REFERENCED_ROI)
SEQUENCES = (ROIS, ROI_CONTOURS, CONTOURS, FRAMES, STUDIES, SERIES_OF_STUDY)
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
OFF_SLICE = 0.25
"""How far a contour may lie from the middle of its slice, in slices."""
DIGITS = 3
"""Decimals of a place in pixels: DICOM writes mm as short text, and a middle on a contour is to stay on it."""
FARTHEST = 1e5
"""Largest place of a contour, in pixels."""


def open_contours(path: Path) -> Structures:
    """Opens a file of contours.

    Raises:
        UserError: it is damaged.
    """
    elements = read_header(path, More(values=VALUES, sequences=SEQUENCES)).elements
    names = {roi.text(ROI_NUMBER): roi.text(ROI_NAME) for roi in elements.sequences.get(ROIS, ())}
    closed: dict[str, list[np.ndarray]] = {}
    for roi in elements.sequences.get(ROI_CONTOURS, ()):
        contours = [_points(contour, path) for contour in roi.sequences.get(CONTOURS, ()) if _is_closed(contour)]
        number = roi.text(REFERENCED_ROI)
        closed.setdefault(names.get(number) or f"structure {number}", []).extend(contours)
    frame = elements.item(FRAMES)
    stated = (roi.text(ROI_FRAME) for roi in elements.sequences.get(ROIS, ()))
    return Structures(
        path=path,
        series=frame.item(STUDIES).item(SERIES_OF_STUDY).text(tags.SERIES),
        frame_of_reference=frame.text(tags.FRAME_OF_REFERENCE) or next(filter(None, stated), ""),
        names=tuple(name for name, contours in closed.items() if contours),
        draw=partial(_draw, closed, path),
    )


def _is_closed(contour: Elements) -> bool:
    return contour.text(KIND) in CLOSED and bool(contour.text(POINTS))


def _points(contour: Elements, path: Path) -> np.ndarray:
    """(n, 3) in mm, RAS+."""
    try:
        numbers = np.array(contour.text(POINTS).split("\\"), dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("a point of a contour is no number")
        return numbers.reshape(-1, 3) @ LPS_TO_RAS
    except ValueError as fault:
        raise unreadable(path, fault) from None


def _draw(closed: dict[str, list[np.ndarray]], path: Path, name: str, grid: Geometry) -> np.ndarray:
    mask, slices, what = np.zeros(grid.shape, bool), set(), f"{path.name}: '{name}'"
    inverse, seen = np.linalg.inv(grid.affine), set()
    for points in closed[name]:
        places = np.round(points @ inverse[:3, :3].T + inverse[:3, 3], DIGITS)
        if not (np.abs(places) <= FARTHEST).all():
            raise UserError(f"{what} has a contour that lies far outside of the image; bring the scan it was drawn in")
        number = _slice_of(places[:, 2], grid.shape[2], what)
        key = (number, places[:, :2].tobytes())
        if key in seen:
            raise UserError(f"{what} has the same contour twice on one slice; keep one of them")
        seen.add(key)
        mask[:, :, number] ^= _filled(places[:, :2], grid.shape[:2])
        slices.add(number)
    require_all_slices(slices, what)
    return mask


def _filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool of the pixels whose middle lies in a closed contour, or on it."""
    inside = np.zeros(shape, bool)
    inside[polygon(points[:, 0], points[:, 1], shape=shape)] = True
    on = _middles_on(points)  # scikit-image leaves out those of lines that a contour goes to and fro
    on = on[((on >= 0) & (on < shape)).all(axis=1)]
    inside[tuple(on.T)] = True
    return inside


def _middles_on(points: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) whose middle lies on a side of a contour between two other middles."""
    ends = np.stack([points, np.roll(points, -1, axis=0)], axis=1)
    ends = ends[(ends == np.round(ends)).all(axis=(1, 2))].astype(np.int64)
    counts = np.gcd(*np.abs(ends[:, 1] - ends[:, 0]).T)
    lines = [np.linspace(first, last, count + 1) for (first, last), count in zip(ends, counts, strict=True)]
    return np.concatenate([np.empty((0, 2)), *lines]).round().astype(np.int64)


def _slice_of(places: np.ndarray, depth: int, what: str) -> int:
    """The slice on which a contour lies.

    Raises:
        UserError: it lies across slices, between two, or where the image has none.
    """
    number = round(float(places.mean()))
    away = float(np.abs(places - number).max())
    if away > OFF_SLICE:
        how = "across the slices of the image" if np.ptp(places) > OFF_SLICE else "between two slices of the image"
        raise UserError(f"{what} has a contour that lies {how}; bring the scan that it was drawn in")
    if not 0 <= number < depth:
        raise UserError(f"{what} has a contour on a slice that the image does not have; bring all slices of the scan")
    return number
