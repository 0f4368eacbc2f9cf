"""Formats that SimpleITK reads: NRRD and MetaImage.

ITK's world is LPS+, that of `Geometry` RAS+: the first two axes change their sign.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from megavoxel.errors import UserError
from megavoxel.memory import free_memory
from megavoxel.volumes.formats.itk_headers import Header, read_header
from megavoxel.volumes.formats.packed import require_unpacked, require_whole_gzip
from megavoxel.volumes.grid import assumed_affine, geometry_of, require_right_angles
from megavoxel.volumes.volume import DamagedFileError, Format, Hints, Planes, Volume

if TYPE_CHECKING:
    from SimpleITK import Image, ImageFileReader

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
DETACHED = (".nhdr", ".mhd")
"""Endings of headers whose voxels lie in files beside them."""
SPACES = (
    "las", "last", "left-anterior-superior", "left-anterior-superior-time", "left-posterior-superior",
    "left-posterior-superior-time", "lps", "lpst", "ras", "rast", "right-anterior-superior",
    "right-anterior-superior-time",
)  # fmt: skip
"""What the field `space` of an NRRD file says of the patient (teem.sourceforge.net/nrrd/format.html)."""
META_KEYS = ("transformmatrix", "rotation", "orientation")
"""One of these begins a line of a MetaImage header that says how the axes lie (ITK's MetaIO)."""


def simpleitk() -> ModuleType:
    """The package SimpleITK, whose warnings are left out: what matters of them is said by `UserError`s."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def itk_result(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; ITK's fault in one line where it fails.

    Raises:
        DamagedFileError: it failed.
    """
    try:
        return read()
    except RuntimeError as fault:
        lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
        detail = " ".join(lines[1:])[:200] if len(lines) > 1 else str(fault)[:200]
        raise DamagedFileError(
            f"{path}: cannot be read to its end ({detail}); the file is damaged or truncated: copy it again"
        ) from None


def affine_of(image: Image | ImageFileReader) -> np.ndarray:
    """4 x 4, voxel index (i, j, k) to mm in RAS+."""
    axes = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ direction @ np.diag(image.GetSpacing()[:3])
    affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin()[:3])
    return affine


def volume_of(
    path: Path, size: Sequence[int], components: int, affine: np.ndarray, take: Callable[[], Image], **known: Any
) -> Volume:
    """The volume of an image of ITK's.

    Args:
        size: voxels along x, y, z and, where there is a fourth axis, the number of channels.
        components: numbers per voxel, which are channels.
        affine: 4 x 4, voxel index (i, j, k) to mm in RAS+.
        take: reads the image.
        known: what else the volume says of itself.
    """
    return Volume(
        path=path,
        geometry=geometry_of(size[:3], affine, path),
        channels=components * math.prod(size[3:]),
        voxels=partial(_voxels, take),
        begin=partial(_begin, take),
        has_channel_axis=components > 1 or len(size) == 4,
        **known,
    )


def _open(path: Path, hints: Hints) -> Volume:
    text = read_header(path)
    header = _header_of(path)
    size, numbers = header.GetSize(), simpleitk().GetPixelIDValueAsString(header.GetPixelID())
    if len(size) not in (3, 4) or "complex" in numbers or (len(size) == 4 and header.GetNumberOfComponents() > 1):
        raise UserError(
            f"{path}: expected a volume of real numbers with three axes, or four with the channels last; the file has "
            f"{len(size)} axes of {numbers}"
        )
    _require_room(path, text, header)
    _require_millimetres(path, text)
    is_oriented, how = _orientation(text.kind, text.lower)
    affine, sides = affine_of(header), header.GetSpacing()[:3]
    require_right_angles(affine, path)
    if not text.states_sides and (is_oriented or hints.orientation is not None):
        sides = _assumed_sides(path, hints)
        affine[:3, :3] *= np.divide(sides, header.GetSpacing()[:3])
    if not is_oriented:
        affine = assumed_affine(path, sides, hints.orientation, how)
    stated = header.GetMetaData("Modality").removeprefix("MET_MOD_") if header.HasMetaDataKey("Modality") else ""
    return volume_of(
        path,
        size,
        header.GetNumberOfComponents(),
        affine,
        partial(_read, path, text),
        is_oriented=is_oriented,
        modality=stated or None,
        cut=partial(_cut, path, text),
        write_labels=partial(_write_labels, path),
    )


def _header_of(path: Path) -> ImageFileReader:
    """A reader that has read a file's header, and no voxels."""
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(_own_path(path))
    itk_result(path, reader.ReadImageInformation)
    return reader


def _own_path(path: Path) -> str:
    """Where a file lies itself: the voxels of a detached header are beside it, and not beside a link to it."""
    return str(path.resolve() if path.suffix.lower() in DETACHED else path)


def _require_room(path: Path, text: Header, header: ImageFileReader) -> None:
    """Refuses a header that claims more voxels than there are bytes for, before anybody makes room for them."""
    voxels = math.prod(header.GetSize()) * header.GetNumberOfComponents()
    if _bytes_of(header) > text.room:
        raise DamagedFileError(
            f"{path}: its header claims {voxels} voxels, which is more than the file can hold; the file is damaged: "
            "copy it again"
        )


def _bytes_of(header: ImageFileReader) -> int:
    """Bytes of the voxels in memory."""
    bits = re.search(r"(\d+)-bit", simpleitk().GetPixelIDValueAsString(header.GetPixelID()))
    return math.prod(header.GetSize()) * header.GetNumberOfComponents() * (int(bits[1]) // 8 if bits else 1)


def _orientation(kind: str, lines: Sequence[str]) -> tuple[bool, str]:
    """Whether a header says how the axes lie in the patient, and in what way such files say it."""
    if kind == "nrrd":
        spaces = [line.removeprefix("space:").strip() for line in lines if line.startswith("space:")]
        how = f", by 'space' (one of {', '.join(SPACES)}) and 'space directions'"
        return any(space in SPACES for space in spaces), how
    return any(line.startswith(META_KEYS) for line in lines), ", by 'TransformMatrix'"


def _assumed_sides(path: Path, hints: Hints) -> tuple[float, ...]:
    if hints.sides is None:
        raise UserError(
            f"{path}: its header does not state the size of its voxels; write it with that, or, to predict, give it in "
            "mm along the axes i, j, k: --assume-spacing X Y Z"
        )
    return hints.sides


def _require_millimetres(path: Path, text: Header) -> None:
    """Refuses lengths in another unit, which ITK would pass on as mm."""
    if text.other_units:
        raise UserError(f"{path}: its header states lengths in {text.other_units[0]}; write it with lengths in mm")


def _read(path: Path, text: Header) -> Image:
    itk, needed, free = simpleitk(), _bytes_of(_header_of(path)), free_memory()
    if needed > free:
        raise UserError(
            f"{path}: its voxels take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; take a "
            "machine with more, or convert it to NIfTI, which is read in parts"
        )
    image = itk_result(path, lambda: itk.ReadImage(_own_path(path)))
    for file, begin in text.gzip_streams:
        require_whole_gzip(file, begin, itk.GetArrayViewFromImage(image))
    if text.zlib_streams:
        require_unpacked(text.zlib_streams, itk.GetArrayViewFromImage(image))
    return image


def _array(image: Image) -> np.ndarray:
    """(i, j, k) or (i, j, k, channels), a view of an image's voxels that must not outlive it."""
    array = simpleitk().GetArrayViewFromImage(image)
    return (np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array).T


def _voxels(take: Callable[[], Image], kind: type | None) -> np.ndarray:
    image = take()
    return np.array(_array(image), dtype=kind)


def _begin(take: Callable[[], Image]) -> AbstractContextManager[Planes]:
    image = take()

    def planes(span: slice, channel: int) -> np.ndarray:
        array = _array(image)
        return np.array(array[..., span, channel] if array.ndim == 4 else array[..., span])

    return nullcontext(planes)


def _cut(path: Path, text: Header, boxes: Sequence[tuple[Sequence[slice], Path]]) -> None:
    itk, image = simpleitk(), _read(path, text)
    for box, target in boxes:
        start, size = [0] * image.GetDimension(), list(image.GetSize())
        for axis, side in enumerate(box):
            start[axis], size[axis] = side.start, side.stop - side.start
        _write(itk.RegionOfInterest(image, size, start), target)


def _write_labels(source: Path, path: Path, labels: np.ndarray) -> None:
    """Writes a label map (i, j, k) in the format of `path`, compressed, on the grid that the file `source` states."""
    itk, header = simpleitk(), _header_of(source)
    axes = header.GetDimension()
    image = itk.GetImageFromArray(np.ascontiguousarray(labels.T))
    image.SetSpacing(header.GetSpacing()[:3])
    image.SetOrigin(header.GetOrigin()[:3])
    image.SetDirection(np.array(header.GetDirection()).reshape(axes, axes)[:3, :3].ravel().tolist())
    _write(image, path)


def _write(image: Image, path: Path) -> None:
    try:
        simpleitk().WriteImage(image, str(path), useCompression=True)
    except RuntimeError as fault:
        raise UserError(f"{path}: could not be written ({fault}); most likely no space is left on the disk") from None


FORMATS = (
    Format(suffixes=(".nrrd", ".nhdr"), open=_open, label_suffix=".nrrd", detached=(".nhdr",)),
    Format(suffixes=(".mha", ".mhd"), open=_open, label_suffix=".mha", detached=(".mhd",)),
)
