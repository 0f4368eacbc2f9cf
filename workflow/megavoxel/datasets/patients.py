"""A folder per patient, with an image and a mask per label: merged into a dataset with one label map per case.

So lie PDDCA (the MICCAI 2015 head-and-neck challenge; Raudaschl et al., Med. Phys. 44:2020, 2017), the arrays of
AnatomyNet (Zhu et al., Med. Phys. 46:576, 2019) and TotalSegmentator on disk. The image may be a DICOM series, and
masks the structures that were drawn in it.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from megavoxel.config.dataset import Dataset
from megavoxel.config.source import Patients
from megavoxel.datasets.dicom_patients import drawn_series, scans_of, with_structures
from megavoxel.datasets.folder import visible_files
from megavoxel.datasets.pairs import CASE
from megavoxel.errors import UserError
from megavoxel.files import require_file_name, write_json
from megavoxel.progress import progress
from megavoxel.volumes.checks import require_sound, undeclared_faults, values_in
from megavoxel.volumes.formats.dicom import dicom_folders, volume_of_series
from megavoxel.volumes.grid import Geometry, compare_grids
from megavoxel.volumes.open import SUFFIXES_WITH_SPACING, open_volume, suffix_of
from megavoxel.volumes.structures import Structures
from megavoxel.volumes.volume import Hints, Volume, label_type, whole_numbers
from megavoxel.volumes.write import write_nifti

LISTED_FAULTS, LISTED_MASKS = 20, 5
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

    def file(self, patterns: str | Sequence[str]) -> Path | None:
        """The file that one of some shell patterns below the folder matches; None where there is none.

        Raises:
            UserError: they match several.
        """
        names = {path.relative_to(self.folder).as_posix(): path for path in self.files}
        several = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        wanted = [for_case(pattern, self.name) for pattern in several]
        matching = [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
        if len(matching) > 1:
            shown = " or ".join(f"'{pattern}'" for pattern in several)
            raise UserError(f"{shown} matches {' and '.join(matching[:2])}; make the pattern narrower")
        return names[matching[0]] if matching else None


@dataclass(frozen=True, kw_only=True)
class OpenedPatient:
    """A patient whose files were opened by their headers."""

    patient: Patient
    image: Volume
    structures: tuple[Structures, ...] = ()
    """What was drawn in the image, where that is asked for."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of a patient's masks."""

    voxels: dict[str, int]
    """By label, voxels of the masks that are there and sound, before any overlap."""
    missing: tuple[str, ...]
    """Labels without a mask."""
    overlap: int
    """Voxels that lie in several masks."""
    faults: tuple[str, ...]
    """What is wrong with masks."""


def for_case(pattern: str, name: str) -> str:
    """A shell pattern in which `{case}` became a patient's name."""
    return pattern.replace(CASE, glob.escape(name))


def write_patients(origin: Path, folder: Path, dataset: Dataset) -> str:
    """Writes all patients of a folder as imagesTr, labelsTr and dataset.json.

    Labels without a mask are listed by case under `unannotated` of dataset.json. Voxels, affine and, where NIfTI knows
    it, type of the images stay. Patients under `exclude` are listed and not read.

    Args:
        origin: the folder; patients may lie at any depth of it.
        folder: the existing folder to write to.
        dataset: its `patients`, `labels`, `channels` and `exclude` count.

    Returns:
        What was merged, for the reader.

    Raises:
        UserError: there are no patients, two have the same name, or files of some cannot be merged; lists all faults.
        OSError: the disk is full.
    """
    found = patients_below(origin, dataset.patients, f"dataset {dataset.name}: patients")
    kept = [patient for patient in found if patient.name not in dataset.exclude]
    merged, faults = {}, {}
    with progress("merging masks", len(kept), unit="patient") as shown:
        for patient in kept:
            try:
                merged[patient.name] = _write_patient(patient, folder, dataset)
                faults[patient.name] = merged[patient.name].faults
            except UserError as fault:
                faults[patient.name] = (str(fault),)
            shown.advance()
    lines = [f"  {name}: {fault}" for name, several in faults.items() for fault in several]
    if lines:
        more = [f"  ... and {len(lines) - LISTED_FAULTS} more"] if len(lines) > LISTED_FAULTS else []
        wrong = sum(map(bool, faults.values()))
        head = f"dataset {dataset.name}: {wrong} of {len(kept)} patients in {origin} cannot be merged:"
        remedy = "mend the files, or name these patients under 'exclude' in the dataset file"
        raise UserError("\n".join([head, *lines[:LISTED_FAULTS], *more, remedy]))
    _describe(folder, [patient.name for patient in found], merged, dataset)
    return _summary(merged, dataset)


def patients_below(origin: Path, keys: Patients, where: str) -> list[Patient]:
    """The folders below `origin` that hold an image, in order of their names.

    Args:
        where: begins the messages.

    Raises:
        UserError: there is none, two have one name, or a name cannot be a file's.
    """
    files = [path for path in visible_files(origin) if suffix_of(path.name, SUFFIXES_WITH_SPACING)]
    if keys.is_dicom:
        homes = [folder.relative_to(origin) for folder in folders_with_dicom(origin)]
        what = "folder of a patient with DICOM files"
    else:
        matching = {path.parent for path in files if fnmatchcase(path.name, for_case(keys.image, path.parent.name))}
        homes = [home for home in sorted(matching) if home.name]
        what = f"folder with an image '{keys.image}' ({', '.join(SUFFIXES_WITH_SPACING)})"
    if not homes:
        raise UserError(f"{where}: {origin} has no {what}; correct the pattern under patients.image, or the folder")
    names = [home.name for home in homes]
    for name in names:
        require_file_name(name, f"{where}: folder")
    twice = [home for home in homes if names.count(home.name) > 1]
    if twice:
        raise UserError(
            f"{where}: {' and '.join(map(str, twice[:2]))} in {origin} have the same name, "
            "which is the case's id; rename or remove one"
        )
    inside: dict[Path, list[Path]] = {home: [] for home in homes}
    for path in files:
        for home in path.parents:
            if home in inside:
                inside[home].append(origin / path)
    return [
        Patient(name=home.name, folder=origin / home, files=tuple(inside[home]))
        for home in sorted(homes, key=lambda home: home.name)
    ]


def folders_with_dicom(folder: Path) -> list[Path]:
    """The folders directly below a folder that hold DICOM files, at any depth."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if dicom_folders(path)]


def open_patient(patient: Patient, keys: Patients) -> OpenedPatient:
    """Opens a patient's image, and what was drawn in it; a spacing in the dataset file is that of arrays.

    Raises:
        UserError: there is no image or several, one is damaged or has several channels, or structures were drawn in
            another scan.
    """
    if keys.is_dicom:
        scans, structures = scans_of(patient.folder, has_structures=keys.structures is not None)
        series = drawn_series(scans, structures)
        return OpenedPatient(patient=patient, image=volume_of_series(series), structures=structures)
    path = patient.file(keys.image)
    if path is None:
        raise UserError(f"there is no image '{keys.image}'")
    structures = scans_of(patient.folder, has_structures=True)[1] if keys.structures is not None else ()
    return OpenedPatient(patient=patient, image=_opened(path, keys), structures=structures)


def merge(opened: OpenedPatient, labels: dict[str, int], keys: Patients) -> tuple[np.ndarray, Merged]:
    """One label map of all masks; where they overlap, the later one counts.

    Args:
        opened: the patient.
        labels: values by name.

    Returns:
        The label map (i, j, k) of the image's file, and what became of the masks.

    Raises:
        UserError: none of the masks is there.
    """
    grid = opened.image.geometry
    if keys.label_map is not None:
        return _from_label_map(opened, labels, keys)
    merged = np.zeros(grid.shape, label_type(max(labels.values())))
    overlap = np.zeros(grid.shape, bool)
    voxels, missing, faults = {}, [], []
    for label in keys.drawn:
        try:
            inside = _mask(opened, label, keys)
        except UserError as fault:
            faults.append(str(fault))
            continue
        if inside is None:
            missing.append(label)
            continue
        overlap |= inside & (merged != 0)
        merged[inside] = labels[label]
        voxels[label] = int(np.count_nonzero(inside))
    if len(missing) == len(keys.drawn):
        raise UserError(f"none of its masks is there: {_wanted(keys)}")
    count = int(np.count_nonzero(overlap))
    return merged, Merged(voxels=voxels, missing=tuple(missing), overlap=count, faults=tuple(faults))


def _wanted(keys: Patients) -> str:
    named = [names if isinstance(names, str) else names[0] for names in (keys.masks or keys.structures).values()]
    more = f" and {len(named) - LISTED_MASKS} more" if len(named) > LISTED_MASKS else ""
    return f"{', '.join(named[:LISTED_MASKS])}{more}"


def _mask(opened: OpenedPatient, label: str, keys: Patients) -> np.ndarray | None:
    """bool (i, j, k) on the image's grid; None: there is no mask of this label."""
    grid = opened.image.geometry
    if keys.masks is None:
        return with_structures(opened.structures, keys.structures[label], grid)
    path = opened.patient.file(keys.masks[label])
    return None if path is None else _read_mask(path, grid, keys)


def label_map_of(opened: OpenedPatient, keys: Patients) -> Volume:
    """The label map of a patient, by its header.

    Raises:
        UserError: there is none, or several, it is damaged, or it lies on another grid than the image.
    """
    path = opened.patient.file(keys.label_map)
    if path is None:
        raise UserError(f"there is no label map '{keys.label_map}'")
    return _on_grid(path, opened.image.geometry, keys)


def _from_label_map(opened: OpenedPatient, labels: dict[str, int], keys: Patients) -> tuple[np.ndarray, Merged]:
    volume = label_map_of(opened, keys)
    array = whole_numbers(volume.voxels(None), volume.path)
    require_sound(
        undeclared_faults(values_in(array), volume.path.name, labels, {0}), "name it under 'labels', or correct it"
    )
    voxels = {label: int(np.count_nonzero(array == value)) for label, value in labels.items()}
    return array, Merged(voxels=voxels, missing=(), overlap=0, faults=())


def _write_patient(patient: Patient, folder: Path, dataset: Dataset) -> Merged:
    opened = open_patient(patient, dataset.patients)
    labels, merged = merge(opened, dataset.labels, dataset.patients)
    if not merged.faults:
        grid, image = opened.image.geometry, opened.image.voxels(None)
        kept = image if image.dtype.type in STORED else image.astype(np.float32)
        write_nifti(folder / f"imagesTr/{patient.name}.nii.gz", kept, grid.affine, grid.unit)
        write_nifti(folder / f"labelsTr/{patient.name}.nii.gz", labels, grid.affine, grid.unit)
    return merged


def _read_mask(path: Path, grid: Geometry, patients: Patients) -> np.ndarray:
    """bool (i, j, k) on the image's grid."""
    mask = _on_grid(path, grid, patients).voxels(None)
    inside = mask != 0
    values = mask[inside]
    if values.size and not (values == values[0]).all():
        raise UserError(
            f"{path.name} has several values besides 0, such as {values[0]:g} and {values.max():g}; a mask has one"
        )
    return inside


def _on_grid(path: Path, grid: Geometry, patients: Patients) -> Volume:
    """A mask or label map, which must lie on the image's grid; the axes of its file may lie in another order."""
    volume = _opened(path, patients)
    for _, message in compare_grids(grid, volume.geometry):
        raise UserError(f"the image and {path.name} lie on different grids: {message}")
    return volume


def _opened(path: Path, patients: Patients) -> Volume:
    """A file of a patient."""
    volume = open_volume(path, Hints(spacing=patients.spacing))
    volume.require_three_axes("an image or mask of a patient")
    return volume


def _describe(folder: Path, names: Sequence[str], merged: dict[str, Merged], dataset: Dataset) -> None:
    missing = {label: [name for name, one in merged.items() if label in one.missing] for label in dataset.labels}
    content = {
        "name": dataset.name,
        "modality": {"0": dataset.channels[0]},
        "labels": {"background": 0, **dataset.labels},
        "numTraining": len(merged),
        "training": [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names],
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
