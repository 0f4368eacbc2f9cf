"""DICOM series on any grid, and structures drawn in them, written byte by byte: SEG and RTSTRUCT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicom_bytes import Items, common, text, without, write_file

SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
TURN = 0.4
OBLIQUE = (
    (np.cos(TURN), np.sin(TURN), 0.0),
    (-np.sin(TURN) * np.cos(TURN), np.cos(TURN) ** 2, np.sin(TURN)),
)
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A series of slices, LPS+."""

    shape: tuple[int, int, int] = (6, 24, 20)
    """Slices, rows and columns."""
    directions: Sequence[Sequence[float]] = AXIAL
    """In which the columns' number rises, and in which the rows' does."""
    spacing: tuple[float, float, float] = (0.8, 1.2, 2.5)
    """Distance of columns, rows and slices in mm."""
    origin: tuple[float, float, float] = (-30.0, 12.0, 5.0)
    uid: str = "1.2.3"
    frame: str = "1.2.4"

    def place(self, column: float, row: float, number: float) -> np.ndarray:
        """A place in mm by its pixel and slice."""
        along, down = np.array(self.directions)
        width, height, distance = self.spacing
        return self.origin + along * column * width + down * row * height + np.cross(along, down) * number * distance

    def write(self, folder: Path, *, modality: str = "CT") -> Path:
        """Its slices, whose numbers and names run against their places."""
        for number in range(self.shape[0]):
            plane = np.random.default_rng(number).integers(0, 2000, self.shape[1:]).astype(np.uint16)
            items = common(plane, uid=self.uid, number=self.shape[0] - number, modality=modality)
            items += [
                (0x00200032, "DS", text(np.round(self.place(0, 0, number), 6))),
                (0x00200037, "DS", "\\".join(f"{value:.10f}" for value in np.ravel(self.directions))),
                (0x00180050, "DS", f"{self.spacing[2]:g}"),
                (0x00280030, "DS", text(self.spacing[1::-1])),
                (0x00281052, "DS", "-1000"),
                (0x00281053, "DS", "1"),
                (0x00200052, "UI", self.frame),
            ]
            write_file(folder / f"IM{self.shape[0] - number}", items)
        return folder


def write_segments(
    path: Path,
    scan: Scan,
    masks: dict[str, np.ndarray],
    *,
    slices: Sequence[int] | None = None,
    spacing: tuple[float, float] | None = None,
    uid: str | None = None,
    frame: str | None = None,
) -> Path:
    """A file of segments: masks (slices, rows, columns) as frames of bits, those without a pixel left out.

    Args:
        slices: the slice on which each of the planes lies, where it is another one.
        spacing: distance of columns and rows, where it is another one.
        uid: of the series in which they were drawn.
        frame: UID of the frame of reference.
    """
    names, frames, planes = list(masks), [], []
    for number, name in enumerate(names, start=1):
        for plane in np.flatnonzero(masks[name].any(axis=(1, 2))):
            place = scan.place(0, 0, slices[plane] if slices else plane)
            position = [(0x00209113, "SQ", [[(0x00200032, "DS", text(np.round(place, 6)))]])]
            frames.append([*position, (0x0062000A, "SQ", [[(0x0062000B, "US", number)]])])
            planes.append(masks[name][plane])
    bits = np.packbits(np.array(planes, np.uint8).ravel(), bitorder="little").tobytes()
    width, height = spacing or scan.spacing[:2]
    directions = "\\".join(f"{value:.10f}" for value in np.ravel(scan.directions))
    shared = [
        (0x00209116, "SQ", [[(0x00200037, "DS", directions)]]),
        (0x00289110, "SQ", [[(0x00180050, "DS", f"{scan.spacing[2]:g}"), (0x00280030, "DS", text((height, width)))]]),
    ]
    items = _head(np.zeros((1, 1)), scan, SEG, "SEG", frame)
    items = without(0x00280100, 0x00280101, 0x00280102, 0x7FE00010, 0x00280010, 0x00280011)(items, 0)
    items += [
        (0x00280008, "IS", str(len(planes))), (0x00280010, "US", planes[0].shape[0]),
        (0x00280011, "US", planes[0].shape[1]), (0x00280100, "US", 1), (0x00280101, "US", 1), (0x00280102, "US", 0),
        (0x00620001, "CS", "BINARY"),
        (0x00620002, "SQ", [[(0x00620004, "US", n), (0x00620005, "LO", name)] for n, name in enumerate(names, 1)]),
        (0x00081115, "SQ", [[(0x0020000E, "UI", uid or scan.uid)]]),
        (0x52009229, "SQ", [shared]), (0x52009230, "SQ", frames), (0x7FE00010, "OB", bits + b"\0" * (len(bits) % 2)),
    ]  # fmt: skip
    return write_file(path, items, kind=SEG)


def write_contours(
    path: Path, scan: Scan, contours: dict[str, Sequence[np.ndarray]], *, kind: str = "CLOSED_PLANAR"
) -> Path:
    """A file of structures: contours (n, 3) in pixels and slices of a scan."""
    rois, drawn = [], []
    for number, (name, several) in enumerate(contours.items(), start=1):
        rois.append([(0x30060022, "IS", str(number)), (0x30060024, "UI", scan.frame), (0x30060026, "LO", name)])
        items = []
        for contour in several:
            places = "\\".join(f"{value:.5f}" for point in contour for value in scan.place(*point))
            items.append([(0x30060042, "CS", kind), (0x30060046, "IS", str(len(contour))), (0x30060050, "DS", places)])
        drawn.append([(0x30060040, "SQ", items), (0x30060084, "IS", str(number))])
    series = [[(0x0020000E, "UI", scan.uid)]]
    frames = [[(0x00200052, "UI", scan.frame), (0x30060012, "SQ", [[(0x30060014, "SQ", series)]])]]
    items = without(*(0x00280000 + n for n in (2, 4, 16, 17, 256, 257, 258, 259)), 0x7FE00010)(
        _head(np.zeros((1, 1)), scan, RTSTRUCT, "RTSTRUCT", None), 0
    )
    items += [(0x30060010, "SQ", frames), (0x30060020, "SQ", rois), (0x30060039, "SQ", drawn)]
    return write_file(path, items, kind=RTSTRUCT)


def _head(pixels: np.ndarray, scan: Scan, kind: str, modality: str, frame: str | None) -> Items:
    items = common(pixels, uid=f"{scan.uid}.99", number=1, kind=kind, modality=modality)
    return [*items, (0x00200052, "UI", frame or scan.frame)]
