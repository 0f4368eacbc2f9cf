"""A folder per patient, with an image and a mask per label: merged into a dataset with one label map per case.

So lie PDDCA (the MICCAI 2015 head-and-neck challenge; Raudaschl et al., Med. Phys. 44:2020, 2017), the arrays of
AnatomyNet (Zhu et al., Med. Phys. 46:576, 2019) and TotalSegmentator on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from megavoxel.config.dataset import Dataset, Patients
from megavoxel.datasets.folder import visible_files
from megavoxel.errors import UserError
from megavoxel.files import require_file_name, write_json
from megavoxel.volumes.grid import Geometry, compare_grids
from megavoxel.volumes.open import SUFFIXES_WITH_SPACING, open_volume, suffix_of
from megavoxel.volumes.volume import Hints, Volume, label_type
from megavoxel.volumes.write import write_nifti

LISTED_FAULTS = 20
STORED = (np.uint8, np.int16, np.uint16, np.int32, np.float32)
"""Types in which an image is kept as it is; any other becomes float32."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient's folder."""

    name: str
    """The folder's, which becomes the case's id."""
    folder: Path
    files: tuple[Path, ...]
    """Files in the folder, at any depth, that can be read."""

    def file(self, pattern: str) -> Path | None:
        """The file that a shell pattern below the folder matches; None where there is none.

        Raises:
            UserError: it matches several.
        """
        names = {path.relative_to(self.folder).as_posix(): path for path in self.files}
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if len(matching) > 1:
            raise UserError(f"'{pattern}' matches {' and '.join(matching[:2])}; make the pattern narrower")
        return names[matching[0]] if matching else None


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A patient's label map and what became of the masks."""

    labels: np.ndarray
    """(i, j, k) of the image file; 0 and the values of the labels."""
    missing: tuple[str, ...]
    """Labels without a mask."""
    overlap: int
    """Voxels that lie in several masks."""


def write_patients(origin: Path, folder: Path, dataset: Dataset) -> str:
    """Writes all patients of a folder as imagesTr, labelsTr and dataset.json.

    Labels without a mask are listed by case under `unannotated` of dataset.json. Voxels, affine and, where NIfTI knows
    it, type of the images stay.

    Args:
        origin: the folder; patients may lie at any depth of it.
        folder: the existing folder to write to.
        dataset: its `patients`, `labels` and `channels` count.

    Returns:
        What was merged, for the reader.

    Raises:
        UserError: there are no patients, two have the same name, or files of some cannot be merged; lists all faults.
        OSError: the disk is full.
    """
    found = _found(origin, dataset)
    merged, faults = {}, []
    for patient in found:
        try:
            merged[patient.name] = _write_patient(patient, folder, dataset)
        except UserError as fault:
            faults.append(f"  {patient.name}: {fault}")
    if faults:
        more = [f"  ... and {len(faults) - LISTED_FAULTS} more"] if len(faults) > LISTED_FAULTS else []
        head = f"dataset {dataset.name}: {len(faults)} of {len(found)} patients in {origin} cannot be merged:"
        remedy = "mend the files, or move the folders of these patients away"
        raise UserError("\n".join([head, *faults[:LISTED_FAULTS], *more, remedy]))
    _describe(folder, merged, dataset)
    return _summary(merged, dataset)


def _found(origin: Path, dataset: Dataset) -> list[Patient]:
    """The folders below `origin` that hold an image, in order of their names."""
    files = [path for path in visible_files(origin) if suffix_of(path.name, SUFFIXES_WITH_SPACING)]
    homes = sorted({path.parent for path in files if fnmatchcase(path.name, dataset.patients.image)})
    homes = [home for home in homes if home.name]
    if not homes:
        raise UserError(
            f"dataset {dataset.name}: patients: {origin} has no folder with an image '{dataset.patients.image}' "
            f"({', '.join(SUFFIXES_WITH_SPACING)}); correct the pattern under patients.image, or the folder"
        )
    names = [home.name for home in homes]
    for name in names:
        require_file_name(name, f"dataset {dataset.name}: patients: folder")
    twice = [home for home in homes if names.count(home.name) > 1]
    if twice:
        raise UserError(
            f"dataset {dataset.name}: patients: {' and '.join(map(str, twice[:2]))} in {origin} have the same name, "
            "which is the case's id; rename or remove one"
        )
    return [
        Patient(
            name=home.name,
            folder=origin / home,
            files=tuple(origin / path for path in files if home in path.parents),
        )
        for home in sorted(homes, key=lambda home: home.name)
    ]


def _write_patient(patient: Patient, folder: Path, dataset: Dataset) -> Merged:
    volume = _opened(patient.file(dataset.patients.image), dataset.patients)
    grid, image = volume.geometry, volume.voxels(None)
    merged = _merge(patient, grid, dataset)
    kept = image if image.dtype.type in STORED else image.astype(np.float32)
    write_nifti(folder / f"imagesTr/{patient.name}.nii.gz", kept, grid.affine, grid.unit)
    write_nifti(folder / f"labelsTr/{patient.name}.nii.gz", merged.labels, grid.affine, grid.unit)
    return merged


def _merge(patient: Patient, grid: Geometry, dataset: Dataset) -> Merged:
    """One label map of all masks; where they overlap, the later one counts."""
    patterns = dataset.patients.masks
    paths = {label: patient.file(pattern) for label, pattern in patterns.items()}
    if not any(paths.values()):
        raise UserError(f"none of its masks is there: {', '.join(patterns.values())}")
    labels = np.zeros(grid.shape, label_type(max(dataset.labels.values())))
    overlap = np.zeros(grid.shape, bool)
    for label, path in paths.items():
        if path is not None:
            inside = _read_mask(path, grid, dataset.patients)
            overlap |= inside & (labels != 0)
            labels[inside] = dataset.labels[label]
    missing = tuple(label for label, path in paths.items() if path is None)
    return Merged(labels=labels, missing=missing, overlap=int(np.count_nonzero(overlap)))


def _read_mask(path: Path, grid: Geometry, patients: Patients) -> np.ndarray:
    """bool (i, j, k) on the image's grid."""
    volume = _opened(path, patients)
    for _, message in compare_grids(grid, volume.geometry):
        raise UserError(f"the image and {path.name} lie on different grids: {message}")
    mask = volume.voxels(None)
    inside = mask != 0
    values = mask[inside]
    if values.size and not (values == values[0]).all():
        raise UserError(
            f"{path.name} has several values besides 0, such as {values[0]:g} and {values.max():g}; a mask has one"
        )
    return inside


def _opened(path: Path, patients: Patients) -> Volume:
    """A file of a patient; a spacing in the dataset file is that of arrays without a header."""
    volume = open_volume(path, Hints(spacing=patients.spacing))
    volume.require_three_axes("an image or mask of a patient")
    return volume


def _describe(folder: Path, merged: dict[str, Merged], dataset: Dataset) -> None:
    missing = {label: [name for name, one in merged.items() if label in one.missing] for label in dataset.labels}
    content = {
        "name": dataset.name,
        "modality": {"0": dataset.channels[0]},
        "labels": {"background": 0, **dataset.labels},
        "numTraining": len(merged),
        "training": [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in merged],
        "test": [],
        "unannotated": {label: names for label, names in missing.items() if names},
    }
    write_json(folder / "dataset.json", content)


def _summary(merged: dict[str, Merged], dataset: Dataset) -> str:
    missing = {label: sum(label in one.missing for one in merged.values()) for label in dataset.labels}
    lacking = ", ".join(f"{label} in {count}" for label, count in missing.items() if count)
    overlapping = [one.overlap for one in merged.values() if one.overlap]
    parts = [f"{len(merged)} patients merged"]
    parts += [f"masks missing: {lacking}"] if lacking else []
    if overlapping:
        voxels = f"{sum(overlapping)} voxels of {len(overlapping)} patients lie in several masks"
        parts.append(f"{voxels} and went to the later one")
    return "; ".join(parts)
