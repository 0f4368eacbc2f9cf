"""DICOM SEG: segments as frames of bits, each of which says where it lies (PS3.3, section A.51).

A segment is put on the grid of the image voxel by voxel. Its frames must have the pixels of that grid; they may lie in
any order, in any direction along its axes, and on a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.formats import dicom_headers as tags
from megavoxel.volumes.formats.dicom_frames import Frame, frames_of
from megavoxel.volumes.formats.dicom_headers import Elements, Header, More, read_header
from megavoxel.volumes.formats.itk import LPS_TO_RAS, itk_result, simpleitk
from megavoxel.volumes.grid import AFFINE_TOLERANCE, Geometry
from megavoxel.volumes.structures import Structures, require_all_slices
from megavoxel.volumes.volume import DamagedFileError

TYPE, SEGMENTS, NUMBER, LABEL, LARGEST = 0x00620001, 0x00620002, 0x00620004, 0x00620005, 0x0062000E
IDENTIFICATION, REFERENCED_NUMBER, REFERENCED_SERIES = 0x0062000A, 0x0062000B, 0x00081115
VALUES = (TYPE, NUMBER, LABEL, LARGEST, REFERENCED_NUMBER)
SEQUENCES = (SEGMENTS, IDENTIFICATION, REFERENCED_SERIES)
STEP_TOLERANCE = 0.01
"""Largest difference of a step between pixels from one between voxels, in voxels."""


def open_segments(path: Path) -> Structures:
    """Opens a file of segments by its header.

    Raises:
        UserError: it is damaged, its pixels are no segments, or a frame does not say where it lies.
    """
    found = _Segments(read_header(path, More(values=VALUES, sequences=SEQUENCES)))
    elements = found.header.elements
    return Structures(
        path=path,
        series=elements.item(REFERENCED_SERIES).text(tags.SERIES),
        frame_of_reference=elements.text(tags.FRAME_OF_REFERENCE),
        names=tuple(found.numbers),
        draw=found.draw,
    )


class _Segments:
    """The segments of a file, whose pixels are read when the first of them is drawn."""

    def __init__(self, header: Header) -> None:
        self.header, self.path = header, header.path
        self.kind = header.elements.text(TYPE) or "BINARY"
        self.frames = frames_of(header)
        self.numbers: dict[str, list[int]] = {}
        for segment in header.elements.sequences.get(SEGMENTS, ()):
            number = segment.short(NUMBER)
            self.numbers.setdefault(segment.text(LABEL) or f"segment {number}", []).append(number)
        if header.elements.short(tags.BITS) not in (1, 8, 16):
            raise UserError(
                f"{self.path}: its pixels have {header.elements.short(tags.BITS)} bits; allowed: 1, 8 or 16"
            )
        if any(None in (frame.position, frame.directions, frame.spacing) for frame in self.frames):
            raise UserError(f"{self.path}: its frames do not say where they lie; write the segments again, as NIfTI")

    def draw(self, name: str, grid: Geometry) -> np.ndarray:
        mask, slices = np.zeros(grid.shape, bool), set()
        for frame in self.frames:
            inside = self._inside(frame, self.numbers[name])
            if inside is not None and inside.any():
                voxels = _voxels(inside, frame, grid, f"{self.path.name}: '{name}'")
                mask[tuple(voxels.T)] = True
                slices |= set(np.unique(voxels[:, 2]).tolist())
        require_all_slices(slices, f"{self.path.name}: '{name}'")
        return mask

    def _inside(self, frame: Frame, numbers: Sequence[int]) -> np.ndarray | None:
        """bool (rows, columns) of the pixels of a frame that are in a segment; None: it is of another segment."""
        if self.kind == "LABELMAP":
            return np.isin(self._pixels(frame), numbers)
        if self._segment_of(frame) not in numbers:
            return None
        largest = self.header.elements.item(SEGMENTS).short(LARGEST) or 255
        return self._pixels(frame) >= (largest / 2 if self.kind == "FRACTIONAL" else 1)

    def _segment_of(self, frame: Frame) -> int:
        elements = self.header.elements
        own = elements.sequences.get(tags.PER_FRAME, ())
        groups = (own[frame.index] if own else Elements(), elements.item(tags.SHARED))
        return next((number for group in groups if (number := group.item(IDENTIFICATION).short(REFERENCED_NUMBER))), 0)

    def _pixels(self, frame: Frame) -> np.ndarray:
        rows, columns = frame.size
        count, bits = rows * columns, self.header.elements.short(tags.BITS)
        if isinstance(self._stored, np.ndarray):
            return self._stored[frame.index]
        if bits == 1:  # frames follow one another without filling up bytes
            first = frame.index * count
            packed = np.frombuffer(self._stored, np.uint8)[first // 8 : (first + count + 7) // 8]
            return np.unpackbits(packed, bitorder="little")[first % 8 :][:count].reshape(rows, columns)
        kind = np.dtype(np.uint8 if bits == 8 else f"{self.header.elements.order}u2")
        start = frame.index * count * kind.itemsize
        return np.frombuffer(self._stored, kind, count, start).reshape(rows, columns)

    @cached_property
    def _stored(self) -> bytes | np.ndarray:
        """Pixels as they are stored, or, of compressed ones, (frames, rows, columns)."""
        pixels = read_header(self.path, More(pixels=True)).pixels
        if pixels is not None:
            return pixels
        itk = simpleitk()
        try:
            array = itk.GetArrayFromImage(itk_result(self.path, lambda: itk.ReadImage(str(self.path))))
        except DamagedFileError:
            raise UserError(
                f"{self.path}: its pixels are damaged, or compressed in a way that is not read; write it uncompressed"
            ) from None
        shape = (len(self.frames), *self.frames[0].size)
        if array.size != np.prod(shape):
            raise DamagedFileError(f"{self.path}: its pixels are not those that its header states; copy it again")
        return array.reshape(shape)


def _voxels(inside: np.ndarray, frame: Frame, grid: Geometry, what: str) -> np.ndarray:
    """Voxels (n, 3) of the image's file in which the pixels of a frame lie.

    Raises:
        UserError: they do not lie in the middle of voxels, or beyond the image.
    """
    height, width = frame.spacing
    row, column = np.reshape(frame.directions, (2, 3))
    inverse = np.linalg.inv(grid.affine[:3, :3])
    steps = np.stack([column * height, row * width]) @ (inverse @ LPS_TO_RAS).T
    start = inverse @ (LPS_TO_RAS @ np.array(frame.position) - grid.affine[:3, 3])
    exact = start + np.argwhere(inside) @ steps
    voxels = np.round(exact).astype(np.int64)
    away = np.abs(exact - voxels).max()
    is_other = np.abs(np.sort(np.abs(steps)) - [0, 0, 1]).max() > STEP_TOLERANCE
    if is_other or away > AFFINE_TOLERANCE:
        raise UserError(
            f"{what} does not lie on the image's voxels: its pixels are {height:g} x {width:g} mm, and up to "
            f"{away:.2g} voxels away from their middle; resample it to the image's grid"
        )
    if (voxels < 0).any() or (voxels >= grid.shape).any():
        raise UserError(f"{what} reaches beyond the image; slices of the image are missing, or it is of another scan")
    return voxels
