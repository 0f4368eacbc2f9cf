"""Which labels a case has no annotation of: those that nobody drew, and those that are hidden from training."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megavoxel.config.dataset import Dataset, Hidden
from megavoxel.datasets.adjustments import matches_one
from megavoxel.datasets.cases import Case
from megavoxel.errors import UserError, closest


def annotated_cases(
    cases: Sequence[Case], dataset: Dataset, labels: Sequence[str], known: set[str]
) -> tuple[Case, ...]:
    """Applies `unannotated` and `hidden` of a dataset file.

    Args:
        cases: those that are kept, training and test cases told apart.
        dataset: the dataset file.
        labels: names of the labels.
        known: ids of all cases, those left out included, which patterns may match.

    Raises:
        UserError: `unannotated` names no label, a pattern matches no case, or no training case is left that teaches a
            label.
    """
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
    chosen = {label: _drawn(_teaching(cases, label), hidden, label) for label in labels}
    return [replace(case, hidden=tuple(label for label in labels if case.id in chosen[label])) for case in cases]


def _drawn(ids: Sequence[str], hidden: Hidden, label: str) -> set[str]:
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
