"""A new scan, in whatever format, on the network's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from megavoxel.datasets.check import compare_grids
from megavoxel.errors import UserError
from megavoxel.models.modality import check_stated_modality, check_values, modality_of_scan
from megavoxel.models.scans import NIFTI_SUFFIXES, Scan, in_order_of_channels, suffix_of
from megavoxel.planning.plan import Plan, PreprocessingPlan
from megavoxel.preprocessing.case import preprocess_image, preprocess_large_image
from megavoxel.preprocessing.large import is_large
from megavoxel.preprocessing.store import CaseProperties, open_case
from megavoxel.volumes.dicom import chosen_series, read_series
from megavoxel.volumes.itk import affine_of, read_itk, save_as_nifti, says_orientation
from megavoxel.volumes.nifti import open_nifti, read_geometry, read_image, voxels_of
from megavoxel.volumes.slabs import LARGE_VOXELS, stored_shape

AXES = ("LR", "PA", "IS")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the user says that scans are to be read."""

    modality: str | None = None
    """Of all of them; None: as their files say."""
    any_modality: bool = False
    """Whether scans of another modality than the model's are taken."""
    series: tuple[str, ...] = ()
    """UIDs of the DICOM series to take where a folder has several."""
    orientation: str | None = None
    """Directions in which the axes i, j, k run, such as RAS, for files that do not say it; None: they are refused."""
    large_voxels: int = LARGE_VOXELS
    """Voxels from which on a scan goes block by block."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A scan as NIfTI files, each of which says its orientation."""

    files: tuple[Path, ...]
    modality: str | None = None
    """As the scan's file states it, in DICOM's terms."""
    converted: bool = False
    """Whether the first file is not the scan's own."""


def prepared(scan: Scan, source: Source, plan: Plan, reading: Reading, scratch: Path) -> tuple[Any, CaseProperties]:
    """Image (channels, network grid) of a scan, in memory or in `scratch`, and the way back to the grid of its source.

    Raises:
        UserError: it has another modality or number of channels than the model, or channels on different grids.
    """
    files, rules = source.files, plan.preprocessing
    _check_channels(scan.case, files, rules)
    if not reading.any_modality:
        check_stated_modality(rules, scan.case, reading.modality or source.modality)
    modality = modality_of_scan(rules, reading.modality, source.modality)
    if is_large(files, reading.large_voxels):
        preprocess_large_image(files, rules, scan.case, modality, scratch, plan.patch)
        case = open_case(scratch, scan.case)
        return case.image, case.properties
    parts = [read_image(path) for path in files]
    image = parts[0][0] if len(parts) == 1 else np.concatenate([array for array, _ in parts])
    if not reading.any_modality:
        check_values(rules, scan.case, modality, image)
    return preprocess_image(image, parts[0][1], rules, scan.case, modality)


def source_of(scan: Scan, channels: Sequence[str], reading: Reading, scratch: Path) -> Source:
    """The scan's own NIfTI files, or others that are written to `scratch`.

    Raises:
        UserError: a file is damaged, or does not say its orientation; a folder holds several series; files cannot be
            told apart.
    """
    if scan.dicom:
        return _from_dicom(scan.dicom, reading, scratch)
    sources = [
        _from_file(path, scratch / f"channel-{number}.nii", reading)
        for number, path in enumerate(in_order_of_channels(scan.files, channels))
    ]
    files = tuple(path for source in sources for path in source.files)
    return replace(sources[0], files=files)


def check_orientation_code(code: str) -> str:
    """An orientation such as RAS or LPI, in capitals.

    Raises:
        UserError: it is none.
    """
    capitals = code.upper()
    axes = ["".join(axis for axis in AXES if letter in axis) for letter in capitals]
    if sorted(axes) != sorted(AXES):
        raise UserError(
            f"--assume-orientation {code}: expected where the axes i, j, k run to: one letter each of L or R, P or A, "
            "I or S, such as RAS or LPS"
        )
    return capitals


def _from_dicom(folder: Path, reading: Reading, scratch: Path) -> Source:
    series = chosen_series(folder, reading.series)
    image, target = read_series(series), scratch / "series.nii"
    save_as_nifti(image, target, affine_of(image))
    return Source(files=(target,), modality=series.modality, converted=True)


def _from_file(path: Path, target: Path, reading: Reading) -> Source:
    if suffix_of(path) in NIFTI_SUFFIXES:
        return _from_nifti(path, target, reading)
    image = read_itk(path)
    known = says_orientation(path)
    affine = affine_of(image) if known else _assumed_affine(path, image.GetSpacing()[:3], reading)
    save_as_nifti(image, target, affine)
    stated = image.GetMetaData("Modality").removeprefix("MET_MOD_") if image.HasMetaDataKey("Modality") else ""
    return Source(files=(target,), modality=stated or None, converted=True)


def _from_nifti(path: Path, target: Path, reading: Reading) -> Source:
    file = open_nifti(path)
    if file.header["sform_code"] or file.header["qform_code"]:
        return Source(files=(path,))
    affine = _assumed_affine(path, file.header.get_zooms()[:3], reading)
    nibabel.Nifti1Image(voxels_of(file, path, np.float32), affine).to_filename(target)
    return Source(files=(target,), converted=True)


def _assumed_affine(path: Path, spacing: Sequence[float], reading: Reading) -> np.ndarray:
    """4 x 4 of a grid whose first voxel lies at 0.

    Raises:
        UserError: nobody said which orientation to assume.
    """
    if reading.orientation is None:
        raise UserError(
            f"{path}: its header does not say how the scan lies in the patient, so left and right may be exchanged; "
            "write it with its orientation, or give the directions of its axes i, j, k, such as "
            "--assume-orientation RAS"
        )
    turn = inv_ornt_aff(axcodes2ornt(reading.orientation), (1, 1, 1))
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.inv(turn)[:3, :3] @ np.diag(np.asarray(spacing, dtype=float))
    return affine


def _check_channels(case: str, files: Sequence[Path], plan: PreprocessingPlan) -> None:
    count = sum(stored_shape(path)[0] for path in files)
    if count != len(plan.channels):
        raise UserError(
            f"case {case}: the scan has {count} channel{'s' if count > 1 else ''} in {len(files)} "
            f"file{'s' if len(files) > 1 else ''}; the model takes {len(plan.channels)} ({', '.join(plan.channels)}): "
            "give each of them as a volume of one file, or as CASE_0000, CASE_0001, …; where a number at the end of a "
            "name means nothing, --one-file-per-case"
        )
    first = read_geometry(files[0])
    for path in files[1:]:
        differences = compare_grids(first, read_geometry(path))
        if differences:
            raise UserError(
                f"case {case}: its channels lie on different grids ({differences[0][1]}); resample them to one"
            )
