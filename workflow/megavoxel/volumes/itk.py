"""Scans that ITK reads, as NIfTI files for everything else here: MetaImage, NRRD and series of DICOM slices.

ITK's world is LPS+, that of NIfTI RAS+: the first two axes change their sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np

from megavoxel.errors import UserError
from megavoxel.volumes.nifti import MOST_RATIO, DamagedFileError

if TYPE_CHECKING:
    from SimpleITK import Image, ImageFileReader

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
HEADER_BYTES = 2**16
"""Where the text of a header ends at the latest."""
ORIENTATION_KEYS = {"nrrd": ("space:", "space dimension:"), "meta": ("transformmatrix", "rotation", "orientation")}
"""One of these begins a line of a header that says how the axes lie (teem.sourceforge.net/nrrd/format.html; ITK's
MetaIO)."""


def simpleitk(path: Path) -> ModuleType:
    """The package SimpleITK, whose warnings are left out: what matters of them is said by `UserError`s.

    Raises:
        UserError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise UserError(
            f"{path}: reading this format needs the package SimpleITK: pip install 'megavoxel[formats]', or pip "
            "install SimpleITK; NIfTI is read without it"
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def read_itk(path: Path) -> Image:
    """A MetaImage or NRRD file.

    Raises:
        UserError: it is missing or damaged, or has not three axes (or four, the last of which counts channels).
    """
    itk = simpleitk(path)
    if not Path(path).is_file():
        raise DamagedFileError(f"{path}: no such file")
    _require_room(path)
    image = itk_result(path, lambda: itk.ReadImage(str(path)))
    if image.GetDimension() not in (3, 4) or "complex" in image.GetPixelIDTypeAsString():
        raise UserError(
            f"{path}: expected a volume of real numbers with three axes, or four with the channels last; the file has "
            f"{image.GetDimension()} axes of {image.GetPixelIDTypeAsString()}"
        )
    return image


def _require_room(path: Path) -> None:
    """Refuses a header that claims more voxels than there are bytes for, before anybody makes room for them."""
    header = _header_of(path)
    voxels = math.prod(header.GetSize()) * header.GetNumberOfComponents()
    beside = path.parent.iterdir() if path.suffix.lower() in (".mhd", ".nhdr") else [path]
    room = sum(file.stat().st_size for file in beside if file.is_file()) * MOST_RATIO[".nii.gz"]
    if voxels > room:
        raise DamagedFileError(
            f"{path}: its header claims {voxels} voxels, which is more than the file can hold; the file is damaged: "
            "copy it again"
        )


def _header_of(path: Path) -> ImageFileReader:
    """A reader that has read a file's header, and no voxels."""
    reader = simpleitk(path).ImageFileReader()
    reader.SetFileName(str(path))
    itk_result(path, reader.ReadImageInformation)
    return reader


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


def says_orientation(path: Path) -> bool:
    """Whether the header of a MetaImage or NRRD file says how its axes lie in the patient."""
    with Path(path).open("rb") as source:
        text = source.read(HEADER_BYTES)
    kind = "nrrd" if text.startswith(b"NRRD") else "meta"
    end = b"\n\n" if kind == "nrrd" else b"ElementDataFile"
    lines = text.split(end)[0].decode("latin-1").lower().splitlines()
    return any(line.startswith(ORIENTATION_KEYS[kind]) for line in lines)


def affine_of(image: Image) -> np.ndarray:
    """4 x 4, voxel index (i, j, k) to mm in RAS+."""
    axes = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ direction @ np.diag(image.GetSpacing()[:3])
    affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin()[:3])
    return affine


def save_as_nifti(image: Image, target: Path, affine: np.ndarray) -> None:
    """Writes an image's voxels as .nii in their own order and type; several channels become volumes of one file."""
    import SimpleITK

    array = SimpleITK.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    kind = np.float32 if array.dtype == np.float16 else np.int32 if array.dtype == np.int64 else array.dtype
    nifti = nibabel.Nifti1Image(array.T.astype(kind, copy=False), affine)
    nifti.header.set_xyzt_units("mm")
    nifti.to_filename(target)


def write_labels_like(path: Path, labels: np.ndarray, source: Path) -> None:
    """Writes a label map (i, j, k) in the format of `path`, compressed, on the grid that the file `source` states."""
    itk, reader = simpleitk(path), _header_of(source)
    axes = reader.GetDimension()
    image = itk.GetImageFromArray(np.ascontiguousarray(labels.T))
    image.SetSpacing(reader.GetSpacing()[:3])
    image.SetOrigin(reader.GetOrigin()[:3])
    image.SetDirection(np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3].ravel().tolist())
    try:
        itk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as fault:
        raise UserError(f"{path}: could not be written ({fault}); most likely no space is left on the disk") from None
