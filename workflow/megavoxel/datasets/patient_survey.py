"""What folders of patients hold: an image, and masks, structures or a label map."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from megavoxel.config.regions import LabelScheme
from megavoxel.config.source import Patients
from megavoxel.datasets.cases import Case
from megavoxel.datasets.folder import unused_files
from megavoxel.datasets.pairs import listed
from megavoxel.datasets.patient_naming import PatientNames
from megavoxel.datasets.patients import Patient, label_map_of, merge, open_patient, patients_below
from megavoxel.datasets.surveyed import Asked, Survey, channel_names, made_up, refuse_images, refuse_unnamed, sizes_of
from megavoxel.errors import UserError, closest, faults_listed
from megavoxel.parallel import map_cases
from megavoxel.volumes.checks import values_of


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a patient's files say."""

    shape: tuple[int, ...] = ()
    """Voxels along z, y, x; empty: the image cannot be read."""
    spacing: tuple[float, ...] = ()
    modality: str | None = None
    """What a DICOM series says it is."""
    volumes: tuple[tuple[str, float], ...] = ()
    """Label and volume in mm³ of each mask."""
    values: frozenset[int] = frozenset()
    """Those of a label map, but 0."""
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
    keys = _keys(names, labels)
    patients = patients_below(folder, keys, str(folder))
    look = partial(_look, labels, keys)
    looked = map_cases(look, patients, processes=processes, title="reading images and masks", unit="patient")
    seen = {patient.name: one for patient, one in zip(patients, _without_odd_modalities(looked), strict=True)}
    faults = [*names.faults, *(f"{name}: {fault}" for name, one in seen.items() for fault in one.faults)]
    faults += [] if asked.labels else _single(names)
    sound = [patient for patient in patients if not seen[patient.name].faults]
    if faults and not (asked.leave_out and sound):
        raise faults_listed(str(folder), sorted(faults), "mend these, or go on without them by --leave-out")
    kept = {patient.name: seen[patient.name] for patient in sound}
    found = _mapped(folder, keys, asked, kept) if names.label_map else _masked(folder, keys, labels, asked, kept)
    used = _channels(keys, asked, sound, kept)
    return replace(
        found,
        channels=used,
        single=() if asked.labels else tuple(names.single),
        excluded=tuple(sorted(set(seen) - set(kept))),
        unused=_unused(folder, sound, keys),
    )


def _chosen(folder: Path, names: PatientNames, asked: Asked) -> dict[str, int]:
    """Values by label: those that the user names, or else of all labels in order of the alphabet."""
    unknown = [label for label in asked.labels if names.labels and label not in names.labels]
    if unknown:
        raise UserError(
            f"{folder}: --labels: no mask is called '{unknown[0]}'{closest(unknown[0], names.labels)}; there are "
            f"{listed(names.labels)}"
        )
    left = [label for label in names.labels if not (asked.leave_out and label in names.single)]
    return asked.labels or {label: value for value, label in enumerate(left, start=1)}


def _keys(names: PatientNames, labels: dict[str, int]) -> Patients:
    if names.label_map:
        return Patients(image=names.image, label_map=names.label_map)
    drawn = {label: _one_or_more(names.labels[label]) for label in labels}
    return Patients(image=names.image, **{"masks" if names.masks else "structures": drawn})


def _look(labels: dict[str, int], keys: Patients, patient: Patient) -> _Seen:
    try:
        opened = open_patient(patient, keys)
        grid = opened.image.geometry
        seen = _Seen(shape=grid.canonical_shape, spacing=grid.spacing, modality=opened.image.modality)
        if keys.label_map is not None:
            return replace(seen, values=frozenset(values_of(label_map_of(opened, keys)) - {0}))
        _, merged = merge(opened, labels, keys)
    except UserError as fault:
        return _Seen(faults=(str(fault),))
    voxel = math.prod(grid.spacing)
    volumes = tuple((label, voxels * voxel) for label, voxels in merged.voxels.items())
    return replace(seen, volumes=volumes, overlap=merged.overlap, faults=merged.faults)


def _without_odd_modalities(seen: Sequence[_Seen]) -> list[_Seen]:
    """Makes a fault of each scan whose modality is another one than that of most."""
    counts = Counter(one.modality for one in seen if one.shape)
    usual = max(counts, key=lambda modality: counts[modality], default=None)
    odd = [bool(one.shape) and one.modality != usual for one in seen]
    return [
        replace(one, faults=(*one.faults, f"its image is {one.modality}, that of the others {usual}"))
        if is_odd
        else one
        for one, is_odd in zip(seen, odd, strict=True)
    ]


def _single(names: PatientNames) -> list[str]:
    others = [label for label in names.labels if label not in names.single]
    kind = "mask" if names.masks else "structure"
    return [
        f"{patient}: no other patient has a {kind} '{label}'{closest(label, others)}; rename it, or name the labels to "
        "take by --labels NAME=VALUE ..."
        for label, patient in names.single.items()
    ]


def _masked(folder: Path, keys: Patients, labels: dict[str, int], asked: Asked, seen: dict[str, _Seen]) -> Survey:
    volumes: dict[str, list[float]] = {label: [] for label in labels}
    for one in seen.values():
        for label, volume in one.volumes:
            volumes[label].append(volume)
    empty = () if asked.labels else tuple(label for label, sizes in volumes.items() if not any(sizes))
    kept = [label for label in labels if label not in empty]
    if not kept:
        raise UserError(f"{folder}: all masks are empty, so that there is nothing to segment")
    ordered = sorted(kept, key=lambda label: -float(np.median(volumes[label] or [0])))
    values = labels if asked.labels else {label: value for value, label in enumerate(kept, start=1)}
    kind, drawn = ("masks", keys.masks) if keys.masks else ("structures", keys.structures)
    return Survey(
        root=folder.resolve(),
        layout=f"a folder per patient, with a {'mask' if keys.masks else 'DICOM structure'} per label",
        files=None,
        patients=replace(keys, **{kind: {label: drawn[label] for label in ordered}}),
        scheme=LabelScheme(labels=dict(sorted(values.items(), key=lambda item: item[1]))),
        unnamed=False,
        overlap=sum(one.overlap for one in seen.values()),
        empty=empty,
        **_counted(seen),
    )


def _mapped(folder: Path, keys: Patients, asked: Asked, seen: dict[str, _Seen]) -> Survey:
    values = {value: name for name, one in reversed(seen.items()) for value in one.values}
    if asked.labels:
        refuse_unnamed(values, LabelScheme(labels=asked.labels), folder)
    else:
        refuse_images(set(values), folder)
    return Survey(
        root=folder.resolve(),
        layout="a folder per patient, with a label map",
        files=None,
        patients=keys,
        scheme=LabelScheme(labels=asked.labels or made_up(values, folder)),
        unnamed=not asked.labels,
        **_counted(seen),
    )


def _counted(seen: dict[str, _Seen]) -> dict[str, object]:
    sizes = sizes_of([(one.shape, one.spacing) for one in seen.values()])
    return {"training_cases": len(seen), "test_cases": 0, **sizes}


def _channels(keys: Patients, asked: Asked, patients: Sequence[Patient], seen: dict[str, _Seen]) -> tuple[str, ...]:
    if asked.channels:
        return asked.channels
    if keys.is_dicom:
        return (next(iter(seen.values())).modality or "image",)
    return channel_names([(keys.image, patients[0].file(keys.image))])


def _unused(folder: Path, patients: Sequence[Patient], keys: Patients) -> tuple[str, ...]:
    """Volumes beside the images and masks; among DICOM files, other series are usual."""
    if keys.is_dicom:
        return ()
    cases = []
    for patient in patients:
        used = [patient.file(keys.image), *(patient.file(patterns) for patterns in (keys.masks or {}).values())]
        files = tuple(path.relative_to(folder).as_posix() for path in used if path is not None)
        cases.append(Case(id=patient.name, images=files))
    return unused_files(folder, cases)


def _one_or_more(patterns: tuple[str, ...]) -> str | tuple[str, ...]:
    return patterns[0] if len(patterns) == 1 else patterns
