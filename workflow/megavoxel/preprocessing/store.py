"""Preprocessed cases on disk: blosc2 arrays from which a patch is read without reading the case.

Per case, in one folder: `CASE.image.b2nd` (float32, channels × network grid), `CASE.labels.b2nd` (uint8 or uint16
classes), `CASE.foreground.npz` (sampled coordinates per class), `CASE.json` (the way back to the file's grid) and
`CASE.sha256` (the checksums of these files).
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.config.records import from_plain, to_plain
from megavoxel.errors import UserError, expect
from megavoxel.files import atomic_path, json_text, read_json, write_text, writing
from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.preprocessing.checksums import REMEDY, require_as_written, write_checksums
from megavoxel.volumes.grid import AXES, MILLIMETRES, Geometry, resampled_shape, rounded_spacing

MOST_FOLD = 1000
"""Voxels that resampling may make of one; CT of 5 mm slices brought to 1 mm becomes 5."""
CHUNK_BYTES = 6 * 2**20
BLOCK_BYTES = 128 * 2**10


@dataclass(frozen=True, kw_only=True)
class CaseProperties:
    """The way back from the network's grid to the file's. Axes in network order, but for `file_shape`."""

    case: str
    file_shape: tuple[int, ...]
    """Voxels per axis in the file's own order."""
    affine: tuple[tuple[float, ...], ...]
    """4 x 4, the file's voxel index to mm, or to the unit that the file states."""
    full_shape: tuple[int, ...]
    """Voxels before cropping."""
    box: tuple[tuple[int, ...], ...]
    """Per axis: first voxel kept and first voxel no longer kept."""
    spacing: tuple[float, ...]
    """Spacing of the file in mm."""
    shape: tuple[int, ...]
    """Voxels after cropping and resampling."""
    plan: str = ""
    """Hash of the preprocessing plan that the case was made under."""
    class_voxels: tuple[int, ...] = ()
    """Voxels of each class of the preprocessed label map, background first; empty where there is none."""
    unit: str | None = None
    """Unit of the affine, as in `Geometry`."""
    axes: str = "RAS"
    """Where the canonical axes run, as in `Geometry`."""

    @property
    def geometry(self) -> Geometry:
        """The grid of the file."""
        return Geometry(shape=self.file_shape, affine=np.array(self.affine), unit=self.unit, axes=self.axes)

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """Voxels after cropping, before resampling."""
        return tuple(stop - start for start, stop in self.box)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box of voxels, which may reach outside of the array."""

    start: tuple[int, ...]
    """First voxel per axis; may be negative."""
    shape: tuple[int, ...]
    """Voxels per axis."""


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """A preprocessed case; indexing `image` or `labels` reads the blocks that the index touches and no others."""

    properties: CaseProperties
    image: blosc2.NDArray
    """float32, (channels, network grid)."""
    labels: blosc2.NDArray | None
    """Classes 0 to n, and n + 1 where nobody annotated the voxel, (network grid)."""
    foreground: dict[int, np.ndarray]
    """Per class that is present: int32 coordinates (n, 3) of voxels of it; of the background only where the dataset has
    an ignore label."""
    unannotated: tuple[int, ...] = ()
    """Classes that training must not see in this case, whatever its labels hold; it is training that sets them."""
    structures: tuple[tuple[int, ...], ...] | None = None
    """Classes of each structure whose voxels patches are centred on; None: each class is one. Training sets them."""
    ignored: int | None = None
    """Class of voxels that nobody annotated; None: all are. It is training that sets it."""

    @property
    def present(self) -> list[tuple[int, ...]]:
        """Classes of each structure that is annotated in the case."""
        drawn = set(self.foreground) - {0, *self.unannotated}
        if self.structures is None:
            return [(number,) for number in sorted(drawn)]
        found = (tuple(number for number in own if number in drawn) for own in self.structures)
        return [own for own in found if own]


def case_properties(
    full_shape: Sequence[int],
    box: Sequence[tuple[int, int]],
    geometry: Geometry,
    plan: PreprocessingPlan,
    case_id: str,
    modality: str | None,
) -> CaseProperties:
    """The properties of a case without labels.

    Args:
        full_shape: voxels per axis, network order.
        box: what is kept of them.
        plan: what the case is preprocessed under.

    Raises:
        UserError: the case would grow beyond all measure.
    """
    canonical = rounded_spacing(geometry.spacing)
    spacing = tuple(canonical[axis] for axis in plan.transpose)
    target = plan.spacing_for(spacing)
    shape = resampled_shape([stop - start for start, stop in box], spacing, target)
    if math.prod(shape) > MOST_FOLD * math.prod(full_shape):
        raise UserError(
            f"case {case_id}: brought from a spacing of {_millimetres(spacing)} to {_millimetres(target)} it has "
            f"more than {MOST_FOLD} times as many voxels; correct the spacing in its header (it may not be in mm), or "
            "preprocessing.spacing of the study"
        )
    return CaseProperties(
        case=case_id,
        plan=made_under(plan, modality),
        file_shape=geometry.shape,
        affine=tuple(tuple(float(value) for value in row) for row in geometry.affine),
        full_shape=tuple(full_shape),
        box=tuple(box),
        spacing=spacing,
        shape=shape,
        unit=geometry.unit,
        axes=geometry.axes,
    )


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in spacing) + " mm"


def made_under(plan: PreprocessingPlan, modality: str | None) -> str:
    """What a stored case keeps of its plan: the hash, and the modality where the plan treats them differently."""
    return f"{plan.hash}-{modality}" if plan.normalisation_by_modality else plan.hash


def save_array(path: Path, array: np.ndarray, patch: Sequence[int]) -> None:
    """Writes an array with chunks and blocks that suit reading patches of `patch` voxels (its last three axes).

    LZ4 and not LZ4HC, which nnU-Net takes: it writes many times as fast, reads as fast, and its files are about a tenth
    larger.
    """
    chunks, blocks = chunking(array.shape, array.dtype.itemsize, patch)
    with atomic_path(path) as partial, writing(path):
        blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=chunks,
            blocks=blocks,
            urlpath=str(partial),
            mode="w",
            cparams=_compression(),
        )


@contextmanager
def new_array(path: Path, shape: Sequence[int], kind: type, patch: Sequence[int]) -> Iterator[blosc2.NDArray]:
    """Yields an array of zeros on disk, laid out as `save_array` does it, to be filled part by part.

    It appears as `path` on a clean exit; an exception removes it.
    """
    chunks, blocks = chunking(shape, np.dtype(kind).itemsize, patch)
    with atomic_path(path) as partial:
        yield blosc2.zeros(
            tuple(shape),
            dtype=kind,
            chunks=chunks,
            blocks=blocks,
            urlpath=str(partial),
            mode="w",
            cparams=_compression(),
        )


def open_array(path: Path) -> blosc2.NDArray:
    """Opens an array for reading.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such preprocessed array; run 'megavoxel preprocess'")
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
    except (RuntimeError, ValueError, OSError) as fault:
        raise UserError(f"{path}: damaged ({fault}); {REMEDY}") from None


def read_box(array: np.ndarray | blosc2.NDArray, box: Box) -> np.ndarray:
    """The voxels of a box from an array (…, z, y, x), and zero where the box reaches outside of it."""
    lead = (slice(None),) * (array.ndim - len(box.shape))
    sides = list(zip(box.start, box.shape, array.shape[len(lead) :], strict=True))
    inside = [slice(min(max(start, 0), size), min(max(start + extent, 0), size)) for start, extent, size in sides]
    voxels = np.asarray(array[(*lead, *inside)])
    if voxels.shape[len(lead) :] == tuple(box.shape):
        return voxels
    whole = np.zeros((*voxels.shape[: len(lead)], *box.shape), dtype=voxels.dtype)
    if voxels.size:
        target = [
            slice(part.start - start, part.stop - start) for part, (start, _, _) in zip(inside, sides, strict=True)
        ]
        whole[(*lead, *target)] = voxels
    return whole


def chunking(shape: Sequence[int], item_bytes: int, patch: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and block shape: a chunk is at most 6 MiB and 1.5 patches per axis, a block at most 128 KiB.

    Leading axes (channels) are 1 in a chunk and in a block. Limits as in nnU-Net v2's blosc2 storage.
    """
    space = tuple(shape[-3:])
    lead = (1,) * (len(shape) - 3)
    chunk = [max(1, min(size, int(1.5 * extent))) for size, extent in zip(space, patch, strict=True)]
    chunk = _halve_until(chunk, CHUNK_BYTES // item_bytes)
    block = _halve_until(
        [min(size, max(8, extent // 4)) for size, extent in zip(chunk, patch, strict=True)], BLOCK_BYTES // item_bytes
    )
    return (*lead, *chunk), (*lead, *block)


def save_case(
    folder: Path,
    properties: CaseProperties,
    image: np.ndarray,
    labels: np.ndarray | None,
    foreground: dict[int, np.ndarray],
    patch: Sequence[int],
) -> None:
    """Writes a preprocessed case; `CASE.json` comes last, so that a case with that file is whole."""
    begin_case(folder, properties.case)
    save_array(image_path(folder, properties.case), image, patch)
    if labels is not None:
        save_array(labels_path(folder, properties.case), labels, patch)
    finish_case(folder, properties, foreground)


def image_path(folder: Path, case: str) -> Path:
    """The file of a preprocessed image."""
    return Path(folder) / f"{case}.image.b2nd"


def labels_path(folder: Path, case: str) -> Path:
    """The file of a preprocessed label map."""
    return Path(folder) / f"{case}.labels.b2nd"


def begin_case(folder: Path, case: str) -> None:
    """Makes the folder, and removes what would make a case look whole before it is, or look labelled."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for stale in (Path(folder) / f"{case}.json", labels_path(folder, case)):
        stale.unlink(missing_ok=True)


def finish_case(folder: Path, properties: CaseProperties, foreground: dict[int, np.ndarray]) -> None:
    """Writes what a case has besides its arrays, `CASE.json` last."""
    folder, case = Path(folder), properties.case
    points, text = folder / f"{case}.foreground.npz", json_text(to_plain(properties))
    with atomic_path(points) as partial:
        np.savez(partial, **{str(label): voxels.astype(np.int32) for label, voxels in foreground.items()})
    arrays = [path for path in (image_path(folder, case), labels_path(folder, case)) if path.exists()]
    write_checksums(folder / f"{case}.sha256", [*arrays, points], {f"{case}.json": text})
    write_text(folder / f"{case}.json", text)


def open_case(folder: Path, case: str) -> StoredCase:
    """Opens a preprocessed case, after its files were compared with their checksums, once in a process.

    Raises:
        UserError: the case is missing or damaged.
    """
    folder = Path(folder)
    where = folder / f"{case}.json"
    properties = from_plain(CaseProperties, read_json(where, what="preprocessed case"), where=str(where))
    check_properties(properties, case, str(where))
    names = require_as_written(folder / f"{case}.sha256", case=case)
    image, labels = open_array(image_path(folder, case)), labels_path(folder, case)
    expect(image.shape[1:] == properties.shape, f"{where}: shape", "that of the stored image")
    return StoredCase(
        properties=properties,
        image=image,
        labels=open_array(labels) if labels.name in names else None,
        foreground=_read_foreground(folder / f"{case}.foreground.npz"),
    )


def check_properties(properties: CaseProperties, case: str, where: str) -> None:
    """Refuses properties that no preprocessing writes.

    Raises:
        UserError: they are of another case, or a shape, box, spacing or affine is none.
    """
    expect(properties.case == case, f"{where}: case", f"'{case}'")
    for key in ("file_shape", "full_shape", "spacing", "shape"):
        sizes = getattr(properties, key)
        expect(len(sizes) == 3 and min(sizes) > 0, f"{where}: {key}", "three numbers above 0")
    expect(sorted(properties.file_shape) == sorted(properties.full_shape), f"{where}: full_shape", "that of the file")
    box, affine = properties.box, np.array(properties.affine, dtype=object)
    is_box = len(box) == 3 and all(len(side) == 2 for side in box)
    is_inside = is_box and all(0 <= a < b <= size for (a, b), size in zip(box, properties.full_shape, strict=True))
    expect(is_inside, f"{where}: box", "two ends per axis inside of full_shape")
    expect(properties.unit in (None, *MILLIMETRES), f"{where}: unit", f"null or one of {', '.join(MILLIMETRES)}")
    expect(re.fullmatch(AXES, properties.axes), f"{where}: axes", "L or R, A or P, and I or S")
    is_affine = affine.shape == (4, 4) and abs(np.linalg.det(affine.astype(float)[:3, :3])) > 0
    expect(is_affine, f"{where}: affine", "4 x 4 numbers that can be inverted")


def stored_classes(folder: Path, case: str) -> set[int]:
    """Classes that a preprocessed case has, background left out; their voxels are not read, nor checksums compared.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _opened_foreground(Path(folder) / f"{case}.foreground.npz") as stored:
        return {int(label) for label in stored.files} - {0}


def _read_foreground(path: Path) -> dict[int, np.ndarray]:
    with _opened_foreground(path) as stored:
        return {int(label): stored[label] for label in stored.files}


@contextmanager
def _opened_foreground(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as fault:
        raise UserError(f"{path}: missing or damaged ({fault}); {REMEDY}") from None


def _compression() -> blosc2.CParams:
    return blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, nthreads=1)


def _halve_until(extent: list[int], most: int) -> list[int]:
    extent = list(extent)
    while np.prod(extent) > most:
        longest = int(np.argmax(extent))
        extent[longest] = max(1, (extent[longest] + 1) // 2)
    return extent
