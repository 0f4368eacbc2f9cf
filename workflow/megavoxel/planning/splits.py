"""Folds of cross-validation: `splits.json`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megavoxel.config.records import read_record, record, to_plain
from megavoxel.config.setting import ALL
from megavoxel.datasets.cases import Cases, together
from megavoxel.errors import UserError, expect
from megavoxel.files import read_json, require_file_name, write_json


@record
class Fold:
    """One division of the training cases."""

    training: tuple[str, ...]
    """Ids of the cases that the network learns from."""
    validation: tuple[str, ...]
    """Ids of the cases that it is scored on."""


@record
class Splits:
    """All folds of a study."""

    folds: tuple[Fold, ...]
    test: tuple[str, ...] = ()
    """Ids of the cases that no fold sees."""


def make_splits(cases: Cases, folds: int, seed: int) -> Splits:
    """Random folds of equal size over the training cases in order of their ids, as nnU-Net makes them.

    They come from scikit-learn's `KFold`; where the dataset has modalities, from `StratifiedKFold`, so that each fold
    has its share of every modality. Where it has groups, these are divided in place of cases, in order of their names;
    the modality of a group is all that its cases have.

    One fold is no cross-validation: all training cases train, none is validated.

    Raises:
        UserError: there are fewer training cases, or groups of them, than folds; or one fold and no label map of a test
            case, so that nothing would be scored.
    """
    if folds < 1:
        raise UserError(f"folds is {folds}; expected 1 or more")
    if folds == 1:
        return _without_validation(cases)
    units = together(cases.of_split("training"))
    what = "training cases" if all(len(unit) == 1 for unit in units) else "groups of training cases"
    if len(units) < folds:
        raise UserError(
            f"dataset {cases.dataset}: {len(units)} {what} cannot be divided into {folds} folds; "
            f"set 'folds' of the study to at most {len(units)}"
        )
    modalities = ["+".join(sorted({str(case.modality) for case in unit})) for unit in units]
    found = _folds(len(units), folds, seed, modalities if cases.modalities else None)
    fold_of = {case.id: fold for unit, fold in zip(units, found, strict=True) for case in unit}
    return Splits(
        folds=tuple(
            Fold(
                training=tuple(sorted(name for name, fold in fold_of.items() if fold != number)),
                validation=tuple(sorted(name for name, fold in fold_of.items() if fold == number)),
            )
            for number in range(folds)
        ),
        test=_test_ids(cases),
    )


def _without_validation(cases: Cases) -> Splits:
    names = tuple(sorted(case.id for case in cases.of_split("training")))
    if not any(case.label is not None for case in cases.of_split("test")):
        raise UserError(
            f"dataset {cases.dataset}: it has no labelled test cases, and with one fold nothing is validated: no case "
            "would be scored; give the study 'folds' of 2 or more, or the dataset file 'test_cases' or 'test_count'"
        )
    if not names:
        raise UserError(f"dataset {cases.dataset}: no case is left for training")
    return Splits(folds=(Fold(training=names, validation=()),), test=_test_ids(cases))


def _folds(count: int, folds: int, seed: int, modalities: Sequence[str] | None) -> np.ndarray:
    """The number of the fold in which each of `count` cases is validated."""
    from sklearn.model_selection import KFold, StratifiedKFold

    fold_of = np.empty(count, dtype=int)
    if modalities is None:
        parts = KFold(folds, shuffle=True, random_state=seed).split(fold_of)
    else:
        known = list(dict.fromkeys(modalities))
        # StratifiedKFold refuses data in which every class has fewer cases than there are folds. One more class
        # behind the others satisfies it and does not change how they are divided.
        classes = [*(known.index(modality) for modality in modalities), *[len(known)] * folds]
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(classes, classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, validated) in enumerate(parts):
            fold_of[validated[validated < count]] = number
    return fold_of


def import_splits(path: Path, cases: Cases, folds: int) -> Splits:
    """Folds from a ready-made file: nnU-Net's `splits_final.json` or one of our own.

    Args:
        folds: how many folds the study has.

    Raises:
        UserError: the file has another form or number of folds, a fold names cases that are not among the training
            cases, is empty, or has a case, or cases of one group, on both sides.
    """
    written = _written_folds(path)
    if len(written) != folds:
        raise UserError(f"{path}: it has {len(written)} folds, the study has {folds}; give both the same number")
    known = {case.id: case.group for case in cases.of_split("training")}
    return Splits(
        folds=tuple(_import_fold(fold, f"{path}: fold {number}", known) for number, fold in enumerate(written)),
        test=_test_ids(cases),
    )


def count_folds(path: Path) -> int:
    """How many folds a ready-made file has.

    Raises:
        UserError: the file has another form.
    """
    return len(_written_folds(path))


def _written_folds(path: Path) -> list[Any]:
    content = read_json(path, what="file of splits")
    written = content.get("folds") if isinstance(content, dict) else content
    if not isinstance(written, list):
        raise UserError(f"{path}: expected nnU-Net's list of train/val or a mapping with 'folds', found something else")
    return written


def save_splits(path: Path, splits: Splits) -> None:
    """Writes `splits.json`."""
    write_json(path, to_plain(splits))


def load_splits(path: Path) -> Splits:
    """Reads `splits.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel split` writes; a case's name leads to another folder.
    """
    splits = read_record(Splits, path, what="file of splits")
    for names in (splits.test, *(side for fold in splits.folds for side in (fold.training, fold.validation))):
        expect(len(set(names)) == len(names), str(path), "each case once in a list")
    for name in {*splits.test, *(name for fold in splits.folds for name in (*fold.training, *fold.validation))}:
        require_file_name(name, str(path))
    return splits


def fold_of(splits: Splits, number: int | Literal["all"], *, source: Path) -> Fold:
    """One fold; of `all`, all cases of the folds train, and none is left to validate.

    Raises:
        UserError: there is no such fold.
    """
    if number == ALL:
        every = {name for fold in splits.folds for name in (*fold.training, *fold.validation)}
        return Fold(training=tuple(sorted(every)), validation=())
    if not 0 <= number < len(splits.folds):
        raise UserError(f"--fold {number}: {source} has the folds 0 to {len(splits.folds) - 1}")
    return splits.folds[number]


def cases_of(splits: Splits, split: str, fold: int | None) -> tuple[str, ...]:
    """Ids of the cases that are predicted together: those of `test`, or those of `validation` in a fold.

    Raises:
        UserError: `validation`, and no fold of the study.
    """
    if split == "test":
        return splits.test
    if fold is None or not 0 <= fold < len(splits.folds):
        raise UserError(f"--fold {fold}: --split validation needs one of the folds 0 to {len(splits.folds) - 1}")
    return splits.folds[fold].validation


def _test_ids(cases: Cases) -> tuple[str, ...]:
    return tuple(case.id for case in cases.of_split("test"))


def _import_fold(written: Any, where: str, known: Mapping[str, str | None]) -> Fold:
    """A fold of a ready-made file; `known` has the group of each training case."""
    training, validation = _side(written, ("training", "train"), where), _side(written, ("validation", "val"), where)
    unknown = sorted(set(training + validation) - known.keys())
    if unknown:
        raise UserError(
            f"{where}: '{unknown[0]}' is not among the {len(known)} training cases (and {len(unknown) - 1} more)"
        )
    both = sorted(set(training) & set(validation))
    if both:
        raise UserError(f"{where}: '{both[0]}' is in training and in validation; a case may be on one side only")
    divided = sorted({known[name] for name in training} & {known[name] for name in validation} - {None})
    if divided:
        raise UserError(
            f"{where}: the group '{divided[0]}' has cases in training and in validation; they belong on one side"
        )
    return Fold(training=tuple(sorted(training)), validation=tuple(sorted(validation)))


def _side(written: Any, names: Sequence[str], where: str) -> list[str]:
    found = [written[name] for name in names if isinstance(written, dict) and name in written]
    if not found or not isinstance(found[0], list) or not all(isinstance(name, str) for name in found[0]):
        raise UserError(f"{where}: expected a list of case ids under '{names[0]}' or '{names[1]}'")
    if not found[0] or len(set(found[0])) < len(found[0]):
        raise UserError(f"{where}: the list '{names[0]}' is empty or names a case twice")
    return found[0]
