"""Folders of patients with DICOM files, recognised by their content: what was drawn in them, and how it is called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from megavoxel.datasets.dicom_patients import scans_of
from megavoxel.datasets.folder import visible_files
from megavoxel.datasets.patient_naming import PatientNames, label_of, plain, structure_of, with_case
from megavoxel.datasets.patients import folders_with_dicom
from megavoxel.errors import UserError
from megavoxel.parallel import map_cases
from megavoxel.volumes.formats.dicom_headers import starts_dicom
from megavoxel.volumes.no_scans import is_no_scan
from megavoxel.volumes.open import suffix_of

DICOM = "DICOM"
MOST_LOOKED_AT = 50


def has_dicom(folder: Path) -> bool:
    """Whether DICOM files lie below a folder, by the first of its files that are in no other format."""
    others = (folder / path for path in visible_files(folder) if not suffix_of(path.name))
    some = [path for _, path in zip(range(MOST_LOOKED_AT), (p for p in others if not is_no_scan(p)), strict=False)]
    return any(map(starts_dicom, some))


def folder_of_patients(folder: Path) -> Path:
    """The folder whose folders are patients: this one, or the one to which a chain of single folders leads.

    Raises:
        UserError: DICOM files lie in it directly.
    """
    inside = folders_with_dicom(folder)
    if any(path.is_file() and not path.name.startswith(".") and starts_dicom(path) for path in folder.iterdir()):
        raise UserError(f"{folder}: DICOM files lie directly in it; give each patient a folder of its own")
    return folder_of_patients(inside[0]) if len(inside) == 1 else folder


def guess_dicom(folder: Path, *, label: str | None = None, processes: int = 1) -> PatientNames:
    """What was drawn in the DICOM series of a folder's patients: structures, masks, or a label map.

    Args:
        folder: its folders are patients'.
        label: the pattern of the label maps below a patient's folder, where the user gives it.

    Raises:
        UserError: there is nothing of this kind, or label maps are called by several names.
    """
    homes = folders_with_dicom(folder)
    if label is not None:
        return PatientNames(image=DICOM, label_map=label)
    looked = map_cases(_names_in, homes, processes=processes, title="reading headers", unit="patient")
    drawn = {home.name: names for home, names in zip(homes, looked, strict=True)}
    if any(drawn.values()):
        spellings, single = _spellings({name: [(one, one) for one in names] for name, names in drawn.items()})
        return PatientNames(image=DICOM, structures=spellings, single=single)
    files = {home.name: [path for path in visible_files(home) if suffix_of(path.name)] for home in homes}
    if not any(files.values()):
        raise UserError(
            f"{folder}: nothing is drawn in the DICOM series of its {len(homes)} folders: expected SEG, RTSTRUCT, or "
            "masks or label maps as NIfTI, NRRD or MHA, in each patient's folder"
        )
    return _masks(folder, files)


def _names_in(home: Path) -> tuple[str, ...]:
    """Names of a patient's structures; what cannot be read is told when the patient is looked at."""
    try:
        return tuple(name for one in scans_of(home, has_structures=True)[1] for name in one.names)
    except UserError:
        return ()


def _masks(folder: Path, files: dict[str, list[Path]]) -> PatientNames:
    """Masks, or label maps, in other formats: the name of a label map says nothing but that it is one."""
    called = {
        name: [(structure_of(PurePosixPath(path), name), with_case(path.as_posix(), name)) for path in paths]
        for name, paths in files.items()
    }
    bare = Counter(pattern for found in called.values() for structure, pattern in found if not structure)
    if len(bare) > 1:
        shown = ", ".join(f"'{pattern}' ({count})" for pattern, count in sorted(bare.items()))
        raise UserError(f"{folder}: several patterns would do for the label maps: {shown}; choose one by --label")
    if bare:
        return PatientNames(image=DICOM, label_map=next(iter(bare)))
    masks, single = _spellings(called)
    return PatientNames(image=DICOM, masks=masks, single=single)


def _spellings(called: dict[str, Sequence[tuple[str, str]]]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Names or patterns by label, and the one patient that has a label, for labels that no other has."""
    found: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    owners: dict[str, set[str]] = defaultdict(set)
    for patient, pairs in called.items():
        for structure, name in pairs:
            found[plain(structure)][structure, name] += 1
            owners[plain(structure)].add(patient)
    labels = {label_of(several): tuple(sorted({name for _, name in several})) for several in found.values()}
    single = {
        label_of(several): min(owners[key])
        for key, several in found.items()
        if len(owners[key]) == 1 and len(called) > 1
    }
    return dict(sorted(labels.items())), single
