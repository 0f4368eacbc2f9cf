"""The images of a dataset's folder and their classes, from a folder per class or a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas

from megavoxel.config.dataset import Dataset
from megavoxel.config.source import Classification
from megavoxel.datasets.check import Finding
from megavoxel.datasets.folder import visible_files
from megavoxel.errors import UserError
from megavoxel.tasks.classification.cases import ImageCase
from megavoxel.tasks.classification.scores import CASE

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = {"training": "training", "train": "training", "test": "test"}
"""What a column `split` may say, and what it means."""
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """What a folder holds, before any image is opened."""

    classes: tuple[str, ...]
    cases: tuple[ImageCase, ...]
    findings: tuple[Finding, ...] = ()
    """What is wrong or left out."""


def read_image_layout(root: Path, dataset: Dataset) -> ImageLayout:
    """Finds the images of a dataset with classes, splits and patients.

    Raises:
        UserError: a folder, table or column is missing, or there are too few classes.
    """
    keys = dataset.classification
    found, findings = _from_table(root, keys) if keys.table else (_from_folders(root, keys), [])
    kept = [case for case in found if case.id not in dataset.exclude]
    unknown = sorted(set(dataset.exclude) - {case.id for case in found})
    if unknown:
        raise UserError(f"dataset {dataset.name}: exclude: there is no image '{unknown[0]}' in {root}")
    classes = _chosen_classes(kept, keys, root)
    of_classes = [case for case in kept if case.label in classes]
    if len(of_classes) < len(kept):
        findings.append(_left_out(len(kept) - len(of_classes), "class", "of other classes"))
    if len(kept) < len(found):
        findings.append(_left_out(len(found) - len(kept), "exclude", "named under 'exclude'"))
    of_classes, misnamed = _with_splits(root, keys, of_classes)
    faults = [*_doubled(of_classes), *_straddling(of_classes), *misnamed]
    return ImageLayout(classes=classes, cases=tuple(of_classes), findings=(*findings, *faults))


def draw_test(cases: Sequence[ImageCase], per_class: int, seed: int) -> tuple[ImageCase, ...]:
    """The cases, with so many images of each class in the test split, by whole patients.

    Patients come in random order; one is taken while a class of theirs still lacks images, so that patients with
    several images may bring a few too many.
    """
    patients = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.id):
        patients[case.owner].append(case)
    taken, chosen = Counter(), set()
    for number in np.random.default_rng((seed, 0)).permutation(len(patients)):
        owner = list(patients)[number]
        if any(taken[case.label] < per_class for case in patients[owner]):
            taken.update(case.label for case in patients[owner])
            chosen.add(owner)
    return tuple(replace(case, split="test" if case.owner in chosen else "training") for case in cases)


def _from_folders(root: Path, keys: Classification) -> list[ImageCase]:
    folder = root / keys.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold a folder of images for each class")
    named = () if isinstance(keys.classes, int) else keys.classes
    lacking = [name for name in named if not (folder / name).is_dir()]
    if lacking:
        raise UserError(f"{folder}: there is no folder for the class '{lacking[0]}'")
    cases = []
    for name in visible_files(folder):
        if name.suffix.lower() in SUFFIXES and len(name.parts) > 1:
            place = PurePosixPath((folder / name).relative_to(root).as_posix())
            cases.append(ImageCase(id=str(place), label=name.parts[0]))
    return cases


def _from_table(root: Path, keys: Classification) -> tuple[list[ImageCase], list[Finding]]:
    """The cases of a table, and lines whose file is not there."""
    path, columns = root / keys.table, keys.columns
    table = _read_table(path)
    missing = [name for name in (columns.file, columns.label) if name not in table]
    if missing:
        raise UserError(f"{path}: the column '{missing[0]}' is missing; it has {', '.join(table.columns)}")
    if not isinstance(keys.classes, int):
        other = ~table[columns.label].isin(keys.classes)
        findings = [_left_out(int(other.sum()), "class", "of other classes")] if other.any() else []
        table = table[~other]
    else:
        findings = []
    places = _places(root)
    cases = []
    for row in table.to_dict("records"):
        name = row[columns.file]
        found = places.get(name, [])
        if len(found) != 1:
            reason = "there is no such file" if not found else f"there are {len(found)} files of this name"
            findings.append(Finding(case=name, check="file", severity="error", message=f"{keys.table}: {reason}"))
            continue
        patient = row.get(columns.patient) or None
        # What the column says is looked at once the classes are chosen.
        cases.append(
            ImageCase(
                id=found[0], label=row[columns.label], split=row.get(columns.split) or "training", patient=patient
            )
        )
    return cases, findings


def _read_table(path: Path) -> pandas.DataFrame:
    try:
        return pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such table; 'classification.table' of the dataset file names it") from None
    except (OSError, UnicodeDecodeError, pandas.errors.ParserError, pandas.errors.EmptyDataError) as fault:
        raise UserError(f"{path}: cannot be read as CSV ({fault})") from None


def _places(root: Path) -> dict[str, list[str]]:
    """Paths of the images by what a table may call them: the path itself, or the bare name."""
    places: dict[str, list[str]] = defaultdict(list)
    for name in visible_files(root):
        if name.suffix.lower() in SUFFIXES:
            for call in {name.as_posix(), name.name}:
                places[call].append(name.as_posix())
    return places


def _chosen_classes(cases: Iterable[ImageCase], keys: Classification, root: Path) -> tuple[str, ...]:
    counts = Counter(case.label for case in cases)
    if CASE in counts:
        raise UserError(f"{root}: no class can be called '{CASE}', which heads a column of every table; rename it")
    if not isinstance(keys.classes, int):
        empty = [name for name in keys.classes if not counts[name]]
        if empty:
            raise UserError(f"{root}: there is no image of the class '{empty[0]}'")
        return keys.classes
    if len(counts) < keys.classes:
        raise UserError(f"{root}: it has {len(counts)} classes, 'classification.classes' asks for {keys.classes}")
    return tuple(sorted(sorted(counts, key=lambda name: (-counts[name], name))[: keys.classes]))


def _with_splits(root: Path, keys: Classification, cases: Sequence[ImageCase]) -> tuple[list[ImageCase], list[Finding]]:
    """The cases with `training` or `test`, and those whose split is called something else."""
    wrong = [
        Finding(
            case=case.id,
            check="split",
            severity="error",
            message=f"'{case.split}' is no split; allowed: {', '.join(SPLITS)}",
        )
        for case in cases
        if case.split not in SPLITS
    ]
    named = [replace(case, split=SPLITS.get(case.split, "training")) for case in cases]
    if keys.test_per_class is not None:
        return list(draw_test(named, keys.test_per_class, keys.test_seed)), wrong
    if keys.test_list is None:
        return named, wrong
    listed, unmatched = _listed(root / keys.test_list, named)
    found = [replace(case, split="test" if case.id in listed else "training") for case in named]
    return found, [*wrong, *unmatched]


def _listed(path: Path, cases: Iterable[ImageCase]) -> tuple[set[str], list[Finding]]:
    """Ids of the cases that a list names, by path or bare name, and how many of its lines name none of them."""
    try:
        lines = {line.strip() for line in path.read_text().splitlines()} - {""}
    except FileNotFoundError:
        raise UserError(f"{path}: no such list; 'classification.test_list' of the dataset file names it") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}: cannot be read as a list of images ({fault})") from None
    calls = {case.id: {case.id, PurePosixPath(case.id).name} & lines for case in cases}
    unmatched = lines - {call for own in calls.values() for call in own}
    if len(unmatched) == len(lines):
        raise UserError(
            f"{path}: none of its {len(lines)} lines names an image of the dataset's classes; expected the path or the "
            "name of a test image on each line"
        )
    message = f"{path.name}: {len(unmatched)} of {len(lines)} lines name no image of the dataset's classes"
    odd = [Finding(case=ALL, check="split", severity="excluded", message=message)] if unmatched else []
    return {name for name, own in calls.items() if own}, odd


def _doubled(cases: Iterable[ImageCase]) -> list[Finding]:
    counts = Counter(case.id for case in cases)
    return [
        Finding(case=name, check="file", severity="error", message=f"the table has {count} lines of it; keep one")
        for name, count in counts.items()
        if count > 1
    ]


def _straddling(cases: Iterable[ImageCase]) -> list[Finding]:
    """Patients whose images lie on both sides."""
    splits = defaultdict(set)
    for case in cases:
        splits[case.owner].add(case.split)
    return [
        Finding(
            case=owner,
            check="patient",
            severity="error",
            message="has images in training and in test; all images of a patient belong to one of them",
        )
        for owner, own in splits.items()
        if len(own) > 1
    ]


def _left_out(count: int, check: str, which: str) -> Finding:
    return Finding(case=ALL, check=check, severity="excluded", message=f"{count} images {which} are left out")
