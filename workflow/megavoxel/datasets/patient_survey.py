"""What folders of patients hold: a mask per label, beside an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from megavoxel.config.dataset import Patients
from megavoxel.datasets.cases import Case
from megavoxel.datasets.folder import unused_files
from megavoxel.datasets.pairs import listed
from megavoxel.datasets.patient_naming import PatientNames
from megavoxel.datasets.patients import Patient, merge, opened_image, patients_below
from megavoxel.datasets.surveyed import Asked, Survey, channel_names, sizes_of
from megavoxel.errors import UserError, closest, faults_listed
from megavoxel.parallel import map_cases


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a patient's files say."""

    shape: tuple[int, ...] = ()
    """Voxels along z, y, x; empty: the image cannot be read."""
    spacing: tuple[float, ...] = ()
    volumes: tuple[tuple[str, float], ...] = ()
    """Label and volume in mm³ of each mask."""
    overlap: int = 0
    faults: tuple[str, ...] = ()


def survey_patients(folder: Path, names: PatientNames, asked: Asked, *, processes: int = 1) -> Survey:
    """Looks at every image and mask of a folder's patients.

    Masks are ordered by size, the largest first, so that of two that overlap the smaller one counts.

    Args:
        folder: nothing in it is changed.
        names: what images and masks are called.
        asked: what the user says of the folder.

    Raises:
        UserError: patients lack a file, or have a faulty one, or a mask that no other patient has; lists all of these.
    """
    labels = _chosen(folder, names, asked)
    keys = Patients(image=names.image, masks={label: _one_or_more(names.masks[label]) for label in labels})
    patients = patients_below(folder, keys, str(folder))
    look = partial(_look, labels, keys)
    looked = map_cases(look, patients, processes=processes, title="reading images and masks", unit="patient")
    seen = {patient.name: one for patient, one in zip(patients, looked, strict=True)}
    faults = [*names.faults, *(f"{name}: {fault}" for name, one in seen.items() for fault in one.faults)]
    faults += [] if asked.labels else _single(names)
    sound = [patient for patient in patients if not seen[patient.name].faults]
    if faults and not (asked.leave_out and sound):
        raise faults_listed(str(folder), sorted(faults), "mend these, or go on without them by --leave-out")
    found = _found(folder, keys, labels, asked, sound, seen)
    return found if asked.labels else replace(found, single=tuple(names.single))


def _chosen(folder: Path, names: PatientNames, asked: Asked) -> dict[str, int]:
    """Values by label: those that the user names, or else of all labels in order of the alphabet."""
    unknown = [label for label in asked.labels if label not in names.masks]
    if unknown:
        raise UserError(
            f"{folder}: --labels: no mask is called '{unknown[0]}'{closest(unknown[0], names.masks)}; there are "
            f"{listed(names.masks)}"
        )
    left = [label for label in names.masks if not (asked.leave_out and label in names.single)]
    return asked.labels or {label: value for value, label in enumerate(left, start=1)}


def _look(labels: dict[str, int], keys: Patients, patient: Patient) -> _Seen:
    try:
        volume = opened_image(patient, keys)
        grid = volume.geometry
        _, merged = merge(patient, grid, labels, keys)
    except UserError as fault:
        return _Seen(faults=(str(fault),))
    voxel = math.prod(grid.spacing)
    return _Seen(
        shape=grid.canonical_shape,
        spacing=grid.spacing,
        volumes=tuple((label, voxels * voxel) for label, voxels in merged.voxels.items()),
        overlap=merged.overlap,
        faults=merged.faults,
    )


def _faulty(seen: dict[str, _Seen]) -> set[str]:
    return {name for name, one in seen.items() if one.faults}


def _single(names: PatientNames) -> list[str]:
    others = [label for label in names.masks if label not in names.single]
    return [
        f"{patient}: no other patient has a mask '{label}'{closest(label, others)}; rename it, or name the labels to "
        "take by --labels NAME=VALUE ..."
        for label, patient in names.single.items()
    ]


def _found(
    folder: Path,
    keys: Patients,
    labels: dict[str, int],
    asked: Asked,
    patients: Sequence[Patient],
    seen: dict[str, _Seen],
) -> Survey:
    sound = [seen[patient.name] for patient in patients]
    volumes = {label: [dict(one.volumes)[label] for one in sound if label in dict(one.volumes)] for label in labels}
    empty = () if asked.labels else tuple(label for label, sizes in volumes.items() if not any(sizes))
    kept = [label for label in labels if label not in empty]
    if not kept:
        raise UserError(f"{folder}: all masks are empty, so that there is nothing to segment")
    ordered = sorted(kept, key=lambda label: -float(np.median(volumes[label] or [0])))
    values = labels if asked.labels else {label: value for value, label in enumerate(kept, start=1)}
    image = patients[0].file(keys.image)
    return Survey(
        root=folder.resolve(),
        layout="a folder per patient, with a mask per label",
        files=None,
        patients=replace(keys, masks={label: keys.masks[label] for label in ordered}),
        channels=asked.channels or channel_names([(keys.image, image)]),
        labels=dict(sorted(values.items(), key=lambda item: item[1])),
        unnamed=False,
        excluded=tuple(sorted(_faulty(seen))),
        unused=_unused(folder, patients, keys),
        training_cases=len(patients),
        test_cases=0,
        overlap=sum(one.overlap for one in sound),
        empty=empty,
        **sizes_of([(one.shape, one.spacing) for one in sound]),
    )


def _unused(folder: Path, patients: Sequence[Patient], keys: Patients) -> tuple[str, ...]:
    """Volumes beside the images and masks."""
    cases = []
    for patient in patients:
        used = [patient.file(keys.image), *(patient.file(patterns) for patterns in keys.masks.values())]
        files = tuple(path.relative_to(folder).as_posix() for path in used if path is not None)
        cases.append(Case(id=patient.name, images=files))
    return unused_files(folder, cases)


def _one_or_more(patterns: tuple[str, ...]) -> str | tuple[str, ...]:
    return patterns[0] if len(patterns) == 1 else patterns
