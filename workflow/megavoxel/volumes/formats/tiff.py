"""TIFF stacks: the planes of one volume in a file, with voxel sizes as OME-TIFF or ImageJ state them.

Axes x, y and z of a stack are taken for i, j and k of a grid in RAS+: microscopes know no patient.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import tifffile

from megavoxel.errors import UserError
from megavoxel.volumes.formats.nifti import write_on_grid
from megavoxel.volumes.grid import geometry_of
from megavoxel.volumes.volume import Format, Hints, Planes, Volume, unreadable

DAMAGED = (
    ArithmeticError, AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, RecursionError, RuntimeError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What tifffile raises for bytes that make no sense."""
NUMBERS = "biuf"
MOST_RATIO = 1032
"""Bytes of voxels that a byte of a file can stand for: the most that deflate can do."""
DEPTH = "ZIQ"
"""Names of the axis across the planes: z, or, in files that say nothing of their axes, one of unknown meaning."""
UNITS = {
    "nm": 1e-6, "nanometer": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3,
    "microns": 1e-3, "micrometer": 1e-3, "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1e3,
}  # fmt: skip
"""Millimetres of the units of OME-TIFF and ImageJ."""
MICRON = 1e-3
LOGGER = logging.getLogger("tifffile")
LOGGER.propagate = False  # its lines do not name the file; what matters of them is told as an error of the file


def _open(path: Path, hints: Hints) -> Volume:
    with _read(path) as file:
        series = _only_series(file, path)
        channels, depth, height, width = _sizes(series, path)
        _require_voxels(series, path)
        sides, unit = _sides(file, path, hints)
    geometry = geometry_of((width, height, depth), np.diag([*sides, 1.0]), path, unit)
    return Volume(
        path=path,
        geometry=geometry,
        channels=channels,
        voxels=partial(_voxels, path),
        begin=partial(_begin, path),
        has_channel_axis=channels > 1,
        write_labels=None if unit == "mm" else partial(write_on_grid, geometry, is_oriented=True),
    )


class _Faults(logging.Handler):
    """Gathers what tifffile only logs: where the list of planes breaks off, it goes on with those before."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@contextmanager
def _read(path: Path) -> Iterator[tifffile.TiffFile]:
    """An open file; what tifffile cannot make sense of within the block is an error of the file."""
    faults = _Faults()
    LOGGER.addHandler(faults)
    try:
        # A file of its own: OME's description may name others, which nobody has asked for.
        with tifffile.TiffFile(path, _multifile=False) as file:
            file.pages[-1]  # which goes through the list of planes
            _require_no(faults)
            yield file
            _require_no(faults)
    except UserError:
        raise
    except DAMAGED as fault:
        raise unreadable(path, fault) from None
    finally:
        LOGGER.removeHandler(faults)


def _require_no(faults: _Faults) -> None:
    if faults.told:
        raise ValueError(faults.told[0])


def _only_series(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    if len(file.series) != 1:
        raise UserError(f"{path}: holds {len(file.series)} images; write a file with one volume")
    return file.series[0]


def _sizes(series: tifffile.TiffPageSeries, path: Path) -> tuple[int, int, int, int]:
    """Channels, and voxels along z, y and x."""
    axes, shape = _axes(series)
    if axes not in {"ZYX", "CZYX", "ZCYX"} or series.dtype.kind not in NUMBERS:
        what = " × ".join(f"{size} {axis}" for axis, size in zip(series.axes, series.shape, strict=True))
        raise UserError(
            f"{path}: its axes are {what}, of type {series.dtype}; expected planes (z, y, x) of one volume, with one "
            "real number per voxel, and at most one more axis, of channels (C)"
        )
    sizes = dict(zip(axes, shape, strict=True))
    return sizes.get("C", 1), sizes["Z"], sizes["Y"], sizes["X"]


def _axes(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Names and sizes of the axes, without those of one place that no volume has; planes lie along Z."""
    named = [
        ("Z" if axis in DEPTH else axis, size)
        for axis, size in zip(series.axes, series.shape, strict=True)
        if size > 1 or axis in f"{DEPTH}YX"
    ]
    return "".join(axis for axis, _ in named), tuple(size for _, size in named)


def _require_voxels(series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuses a file whose pages claim more than there is.

    Raises:
        UserError: parts of it would lie beyond the file's end, or it is too short for its voxels.
    """
    length, stored, is_packed = path.stat().st_size, 0, False
    for found in series.pages:
        if found is None:
            raise ValueError("a plane of the stack is missing")
        page = found.aspage()
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if any(offset + count > length for offset, count in parts):
            raise ValueError("its planes lie beyond its end")
        stored += sum(count for _, count in parts)
        is_packed |= page.compression != 1
    if series.dataoffset is not None:  # ImageJ describes one plane of many that lie behind one another
        stored = min(length - series.dataoffset, series.nbytes)
    if series.nbytes > stored * (MOST_RATIO if is_packed else 1):
        raise ValueError(f"it has {stored} bytes for {series.nbytes} of voxels")


def _sides(file: tifffile.TiffFile, path: Path, hints: Hints) -> tuple[tuple[float, ...], str | None]:
    """Voxel size along x, y and z and its unit, as `Geometry` has them.

    Raises:
        UserError: neither the file nor the user says it, or it is none.
    """
    stated = _stated_by_ome(file) if file.is_ome else _stated_by_imagej(file)
    if stated is None and hints.spacing is not None:
        return tuple(reversed(hints.spacing)), "mm"
    if stated is None and hints.sides is not None:
        return tuple(hints.sides), "mm"
    if stated is None:
        raise UserError(
            f"{path}: does not say how large its voxels are along x, y and z; write it as OME-TIFF with PhysicalSizeX, "
            "Y and Z, or by ImageJ with its voxel depth and a unit"
        )
    sides, factors = zip(*stated, strict=True)
    if not all(math.isfinite(side) and side > 0 for side in sides):
        raise UserError(f"{path}: its voxels are {' × '.join(f'{side:g}' for side in sides)}; expected sizes above 0")
    if set(factors) == {MICRON}:
        return sides, "micron"
    return tuple(side * factor for side, factor in stated), "mm"


def _stated_by_ome(file: tifffile.TiffFile) -> list[tuple[float, float]] | None:
    """Size and millimetres of its unit along x, y and z; None where one is not there."""
    (pixels,) = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")[:1] or [""]
    found = []
    for axis in "XYZ":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', pixels)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', pixels)
        factor = UNITS.get(unit.group(1) if unit else "µm")
        if size is None or factor is None:
            return None
        found.append((float(size.group(1)), factor))
    return found


def _stated_by_imagej(file: tifffile.TiffFile) -> list[tuple[float, float]] | None:
    """As `_stated_by_ome`; ImageJ has planes' distance and unit, and TIFF itself pixels per unit."""
    said = file.imagej_metadata or {}
    factor = UNITS.get(str(said.get("unit", "")).strip().lower())
    tags = file.pages[0].tags
    if "spacing" not in said or factor is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    flat = [over / pixels for pixels, over in (tags["XResolution"].value, tags["YResolution"].value)]
    return [(side, factor) for side in (*flat, float(said["spacing"]))]


def _voxels(path: Path, kind: type | None) -> np.ndarray:
    with _read(path) as file:
        series = _only_series(file, path)
        axes, shape = _axes(series)
        array = series.asarray().reshape(shape)
        order = [axes.index(axis) for axis in "XYZC" if axis in axes]
        return np.array(array.transpose(order), dtype=kind)


@contextmanager
def _begin(path: Path) -> Iterator[Planes]:
    with _read(path) as file:
        series = _only_series(file, path)
        axes, shape = _axes(series)
        plane = _planes_of(series)
        sizes = dict(zip(axes, shape, strict=True))
        strides = {"C": sizes["Z"], "Z": 1} if axes.startswith("C") else {"C": 1, "Z": sizes.get("C", 1)}

        def planes(span: slice, channel: int) -> np.ndarray:
            numbers = [channel * strides["C"] + depth * strides["Z"] for depth in range(span.start, span.stop)]
            return np.stack([plane(number).T for number in numbers], axis=-1)

        yield planes


def _planes_of(series: tifffile.TiffPageSeries) -> Callable[[int], np.ndarray]:
    """Gives planes (y, x) by number, each read by itself."""
    height, width = series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]
    if series.dataoffset is None:
        return lambda number: series.pages[number].asarray().reshape(height, width)
    kind, path = series.dtype.newbyteorder(series.parent.byteorder), series.parent.filehandle.path
    size = height * width * kind.itemsize

    def plane(number: int) -> np.ndarray:
        start = series.dataoffset + number * size
        return np.fromfile(path, kind, height * width, offset=start).reshape(height, width)

    return plane


FORMATS = (Format(suffixes=(".ome.tif", ".ome.tiff", ".tif", ".tiff"), open=_open),)
