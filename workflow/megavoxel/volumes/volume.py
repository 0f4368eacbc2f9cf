"""An opened volume, and the record by which a format of files makes itself known.

A module of `volumes/formats` says how files of its format are opened. Everything else reads them through `Volume`: as a
whole, or slab by slab where memory does not hold them, always in canonical order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.slabs import FileSlab, slab_axis, slab_places

ROUNDED = 1e-5
"""How far from a whole number a value of a label map may be, from rounding, in relation to it where it is above 1."""
Planes = Callable[[slice, int], np.ndarray]
"""From planes of a file's last axis and a channel to voxels (i, j, planes)."""


class DamagedFileError(UserError):
    """A file that cannot be read at all; other faults of its content are plain `UserError`s."""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a user says of files that do not say it themselves."""

    spacing: tuple[float, ...] | None = None
    """Voxel size in mm along z, y, x, of arrays without a header."""
    orientation: str | None = None
    """Directions in which the axes i, j, k run, such as RAS, of files that do not say how they lie in the patient."""
    sides: tuple[float, ...] | None = None
    """Voxel size in mm along the axes i, j, k, of files that have axes of a size and do not state it."""
    series: tuple[str, ...] = ()
    """UIDs of the DICOM series to take where a folder has several."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """An opened file, or series of files, whose voxels have not been read."""

    path: Path
    geometry: Geometry
    """The grid of the file."""
    channels: int
    voxels: Callable[[type | None], np.ndarray]
    """Reads the file: (i, j, k), or (i, j, k, channels), in a given type or as stored."""
    begin: Callable[[], AbstractContextManager[Planes]]
    """A pass over the file, in which planes are asked for in their order; at its end the file is known to be whole."""
    has_channel_axis: bool = False
    """Whether the file has a fourth axis."""
    is_oriented: bool = True
    """Whether the file says how its axes lie in the patient."""
    doubts: tuple[str, ...] = ()
    """What speaks for parts of it that are missing; nothing that is known to be wrong."""
    modality: str | None = None
    """What the file says it is, in DICOM's terms, such as CT or MR."""
    cut: Callable[[Sequence[tuple[Sequence[slice], Path]]], None] | None = None
    """Writes boxes (i, j, k) of the file to files of the same format; None: files of this format cannot be cut."""
    write_labels: Callable[[Path, np.ndarray], None] | None = None
    """Writes labels (i, j, k) to a file of this format, on the grid that the header states; None: NIfTI does, on
    `geometry`."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, and voxels per axis in canonical order (z, y, x)."""
        return (self.channels, *self.geometry.canonical_shape)

    def image(self) -> np.ndarray:
        """The voxels as float32 (channels, z, y, x) in canonical order.

        Raises:
            UserError: the file is truncated or damaged.
        """
        array = self.geometry.to_canonical(self.voxels(np.float32))
        return array if self.has_channel_axis else array[np.newaxis]

    def labels(self) -> np.ndarray:
        """The voxels of a label map (z, y, x) in canonical order, uint8 or uint16.

        Raises:
            UserError: the file is damaged, has several channels, or holds values that are not whole numbers from 0 to
                65535.
        """
        self.require_three_axes("a label map")
        array = self.voxels(None)
        array = array[..., 0] if self.has_channel_axis else array
        return self.geometry.to_canonical(whole_numbers(array, self.path))

    def image_slabs(self) -> Iterator[FileSlab]:
        """The slabs of an image, float32, in order of the file; together they are `image`."""
        for channel, place, voxels in self._slabs():
            yield FileSlab(channel=channel, place=place, voxels=voxels.astype(np.float32, copy=False))

    def label_slabs(self) -> Iterator[FileSlab]:
        """The slabs of a label map, uint8 or uint16, in order of the file; together they are `labels`."""
        self.require_three_axes("a label map")
        for channel, place, voxels in self._slabs():
            yield FileSlab(channel=channel, place=place, voxels=whole_numbers(voxels, self.path))

    def require_three_axes(self, what: str) -> None:
        """Refuses a file with several channels.

        Raises:
            UserError: it has some; names what was expected.
        """
        if self.channels != 1:
            shape = (*self.geometry.shape, self.channels)
            raise UserError(f"{self.path}: {what} must have three axes, this file has shape {shape}")

    def _slabs(self) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray]]:
        """Channel, place and voxels (z, y, x) of each slab, in order of the file."""
        axis, flipped = slab_axis(self.geometry)
        shape = self.geometry.canonical_shape
        places = slab_places(shape, axis, flipped=flipped)
        with self.begin() as planes:
            for channel, place in product(range(self.channels), places):
                span = place[axis]
                read = slice(shape[axis] - span.stop, shape[axis] - span.start) if flipped else span
                yield channel, place, self.geometry.to_canonical(planes(read, channel))


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of files."""

    suffixes: tuple[str, ...]
    """Endings of its files' names, in lower case."""
    open: Callable[[Path, Hints], Volume]
    """Reads the header of a file. Raises UserError where the file is missing, damaged or no volume."""
    label_suffix: str = ".nii.gz"
    """Ending of the label map that is written for a scan in this format."""
    detached: tuple[str, ...] = ()
    """Suffixes, among the above, of files that hold a header alone, with the voxels in other files beside them."""
    needs_spacing: bool = False
    """Whether files say nothing of their grid, so that they are read only where a dataset file tells the spacing."""


def joined_image(volumes: Sequence[Volume]) -> np.ndarray:
    """One image, float32 (channels, z, y, x) in canonical order, of volumes that hold its channels."""
    arrays = [volume.image() for volume in volumes]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def unreadable(path: Path, fault: Exception) -> DamagedFileError:
    """The error for a file whose content breaks off or makes no sense."""
    if isinstance(fault, FileNotFoundError):
        return DamagedFileError(f"{path}: no such file")
    detail = " ".join(str(fault).split())
    return DamagedFileError(
        f"{path}: cannot be read to its end ({detail}); the file is damaged or truncated: copy it again"
    )


def label_type(largest: int) -> type:
    """The smaller of uint8 and uint16 that holds a label map whose largest value is `largest`."""
    return np.uint8 if largest < 256 else np.uint16


def whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """Values of a label map as uint8, or uint16 where needed; what is whole but for rounding becomes whole.

    Raises:
        UserError: one of them is not a whole number from 0 to 65535.
    """
    if array.size == 0:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"{path}: the label map holds NaN or infinity; labels are whole numbers from 0 to 65535")
        whole = np.round(array)
        odd = array[np.abs(array - whole) > ROUNDED * np.maximum(1, whole)]
        if odd.size:
            raise UserError(f"{path}: the label map holds {odd[0]:.7g}; labels are whole numbers from 0 to 65535")
        array = whole
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise UserError(
            f"{path}: the label map holds {low if low < 0 else high:g}; labels are whole numbers from 0 to 65535"
        )
    return array.astype(label_type(high))
