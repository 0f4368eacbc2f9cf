"""What a dataset file changes in the list of cases: who is left out or tested on, the modality and annotation of each.

Labels without annotation in a case are those that nobody drew, and those that are hidden from training.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from megavoxel.config.dataset import Dataset, Hidden
from megavoxel.config.regions import LabelScheme
from megavoxel.datasets.cases import Case, together
from megavoxel.datasets.groups import require_undivided, with_groups, with_pictures, with_subgroups
from megavoxel.errors import UserError, closest

LISTED_CASES = 10


def adjusted_cases(cases: Sequence[Case], dataset: Dataset, root: Path) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Applies `include`, `exclude`, `groups`, `test_cases`, `test_count` and `modalities` of a dataset file.

    Args:
        root: the folder, for error messages.

    Returns:
        The cases that are kept, in the same order, and the sorted ids of those left out.

    Raises:
        UserError: the dataset file names a case that does not exist, a pattern of `include` matches nothing, no case is
            left, more test cases are to be drawn than leave one to train on, a case has no modality or several or no
            group, a group has training and test cases, or the table of pictures or subgroups is not as it should
            be.
    """
    known = {case.id for case in cases}
    _require(dataset.exclude, known, f"dataset {dataset.name}: exclude", root)
    _require(dataset.test_cases, known, f"dataset {dataset.name}: test_cases", root)
    excluded = {*dataset.exclude, *_not_included(known, dataset, root)}
    kept = [case for case in cases if case.id not in excluded]
    if not kept:
        raise UserError(f"dataset {dataset.name}: exclude: all {len(known)} cases are left out; keep some")
    kept = with_groups(kept, dataset)
    tested = {*dataset.test_cases, *_drawn(kept, dataset)}
    kept = [replace(case, split="test") if case.id in tested else case for case in kept]
    require_undivided(kept, dataset)
    if dataset.modalities is not None:
        kept = _with_modality(kept, dataset.modalities, f"dataset {dataset.name}: modalities")
    return tuple(with_subgroups(with_pictures(kept, dataset), dataset)), tuple(sorted(excluded))


def _require(names: tuple[str, ...], known: set[str], where: str, root: Path) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        near = {name: difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5) for name in unknown}
        listing = "; ".join(
            f"'{name}'" + (f" (nearest: {', '.join(near[name])})" if near[name] else "") for name in near
        )
        raise UserError(f"{where}: {root} has no such case: {listing}")


def _not_included(known: set[str], dataset: Dataset, root: Path) -> set[str]:
    """The cases that no pattern of `include` keeps."""
    for pattern in dataset.include:
        if not any(fnmatchcase(case, pattern) for case in known):
            raise UserError(
                f"dataset {dataset.name}: include: '{pattern}' matches none of the {len(known)} cases of {root}, the "
                f"first of which is '{min(known)}'; correct or remove the pattern"
            )
    return {case for case in known if dataset.include and not matches_one(case, dataset.include)}


def _drawn(cases: Sequence[Case], dataset: Dataset) -> list[str]:
    """The labelled cases that `test_count` and `test_seed` make test cases."""
    if dataset.test_count is None:
        return []
    labelled = [case for case in cases if case.split == "training" and case.label is not None]
    units = together(labelled)
    order = np.random.RandomState(dataset.test_seed).permutation(len(units))
    drawn: list[str] = []
    for number in order:
        if len(drawn) < dataset.test_count:
            drawn += [case.id for case in units[number]]
    if len(drawn) == len(labelled):
        raise UserError(
            f"dataset {dataset.name}: test_count: {dataset.test_count} test cases cannot be drawn from {len(labelled)} "
            "labelled ones, because some must be left to train on; lower it"
        )
    return drawn


def _with_modality(cases: Sequence[Case], modalities: dict[str, tuple[str, ...]], where: str) -> list[Case]:
    """Each case with the one modality that has a pattern for it."""
    matching = {
        case.id: [name for name, patterns in modalities.items() if matches_one(case.id, patterns)] for case in cases
    }
    faults = [f"'{case}' ({' and '.join(names) or 'none'})" for case, names in matching.items() if len(names) != 1]
    if faults:
        more = f" and {len(faults) - LISTED_CASES} more" if len(faults) > LISTED_CASES else ""
        raise UserError(
            f"{where}: each case must match the patterns of exactly one of {', '.join(modalities)}; these do not: "
            f"{', '.join(faults[:LISTED_CASES])}{more}; correct the patterns, or list the cases under 'exclude'"
        )
    return [replace(case, modality=matching[case.id][0]) for case in cases]


def matches_one(case: str, patterns: Sequence[str]) -> bool:
    """Whether a case's id matches one of the shell patterns."""
    return any(fnmatchcase(case, pattern) for pattern in patterns)


def annotated_cases(cases: Sequence[Case], dataset: Dataset, scheme: LabelScheme, known: set[str]) -> tuple[Case, ...]:
    """Applies `unannotated` and `hidden` of a dataset file.

    Args:
        cases: those that are kept, training and test cases told apart.
        scheme: the labels of the dataset.
        known: ids of all cases, those left out included, which patterns may match.

    Raises:
        UserError: `unannotated` names no label, a pattern matches no case, or no training case is left that teaches a
            label, or the dataset has regions or an ignore label.
    """
    labels = tuple(scheme.labels)
    if (scheme.regions or scheme.ignore_value is not None) and (dataset.unannotated or dataset.hidden):
        key = "unannotated" if dataset.unannotated else "hidden"
        raise UserError(
            f"dataset {dataset.name}: {key}: not in a dataset with regions or an ignore label; leave it out, and mark "
            "voxels that nobody annotated with the ignore label"
        )
    _require_known(dataset, labels, known)
    cases = [replace(case, unannotated=_not_drawn(case, dataset, labels)) for case in cases]
    _require_annotated(
        cases,
        labels,
        f"dataset {dataset.name}: unannotated",
        "take a case off its list in the dataset file or dataset.json, or leave out the label",
    )
    if dataset.hidden is not None:
        cases = _with_hidden(cases, dataset.hidden, labels)
        where = f"dataset {dataset.name}: hidden: with share {dataset.hidden.share:g}"
        _require_annotated(cases, labels, where, "lower the share")
    return tuple(cases)


def with_recorded(dataset: Dataset, recorded: Any, source: Path) -> Dataset:
    """The dataset file with what dataset.json records under `unannotated`: case ids by label name.

    Raises:
        UserError: that is something else.
    """
    lists = recorded.values() if isinstance(recorded, dict) else [None]
    if not all(isinstance(ids, list) and all(isinstance(name, str) for name in ids) for ids in lists):
        raise UserError(f'{source}: \'unannotated\' must list case ids by label name, as in {{"liver": ["case_1"]}}')
    merged = {label: (*dataset.unannotated.get(label, ()), *map(glob.escape, ids)) for label, ids in recorded.items()}
    return replace(dataset, unannotated={**dataset.unannotated, **merged})


def _require_known(dataset: Dataset, labels: Sequence[str], known: set[str]) -> None:
    for label, patterns in dataset.unannotated.items():
        where = f"dataset {dataset.name}: unannotated"
        if label not in labels:
            raise UserError(
                f"{where}: there is no label '{label}'{closest(label, labels)}; allowed: {', '.join(labels)}"
            )
        for pattern in patterns:
            if not any(matches_one(case, [pattern]) for case in known):
                raise UserError(
                    f"{where}.{label}: '{pattern}' matches none of the {len(known)} cases, the first of which is "
                    f"'{min(known)}'; correct or remove the pattern"
                )


def _not_drawn(case: Case, dataset: Dataset, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(label for label in labels if matches_one(case.id, dataset.unannotated.get(label, ())))


def _with_hidden(cases: Sequence[Case], hidden: Hidden, labels: Sequence[str]) -> list[Case]:
    """Cases with the labels that are hidden in them, drawn for each label by the seed and the label's name alone."""
    chosen = {label: _hidden_ids(_teaching(cases, label), hidden, label) for label in labels}
    return [replace(case, hidden=tuple(label for label in labels if case.id in chosen[label])) for case in cases]


def _hidden_ids(ids: Sequence[str], hidden: Hidden, label: str) -> set[str]:
    order = np.random.default_rng([hidden.seed, *label.encode()]).permutation(len(ids))
    return {ids[number] for number in order[: round(hidden.share * len(ids))]}


def _teaching(cases: Sequence[Case], label: str) -> list[str]:
    """Sorted ids of the training cases with an annotation of a label that training may see."""
    training = (case for case in cases if case.split == "training" and case.label is not None)
    return sorted(case.id for case in training if label not in case.unseen)


def _require_annotated(cases: Sequence[Case], labels: Sequence[str], where: str, remedy: str) -> None:
    training = [case for case in cases if case.split == "training" and case.label is not None]
    nowhere = [label for label in labels if training and not _teaching(cases, label)]
    if nowhere:
        raise UserError(
            f"{where}: none of the {len(training)} training cases has an annotation of {', '.join(nowhere)} that "
            f"training may see, so nothing can be learnt of it; {remedy}"
        )
