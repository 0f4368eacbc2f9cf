"""Which cases of a study a folder of predictions must hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.evaluation.pairs import SUFFIX, Pair, case_names, check_complete
from megavoxel.evaluation.targets import Target
from megavoxel.planning.splits import Splits

ALL_FOLDS = "all"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a split is scored."""

    pairs: tuple[Pair, ...]
    """The labelled cases."""
    unlabelled: tuple[str, ...]
    """Cases without a label map: predicted, not scored."""


def select_pairs(
    cases: Cases, splits: Splits, *, split: str, fold: str, predictions: Path, allow_extra: bool
) -> Selection:
    """The labelled cases of a split with their predictions `CASE.nii.gz`; labels that are not annotated are skipped.

    Args:
        split: `validation` or `test`.
        fold: number of a fold, or `all`; validation then means the validation cases of all folds.

    Raises:
        UserError: there is no such fold, a prediction is missing, or there is one too many.
    """
    names = split_cases(splits, split=split, fold=fold)
    labelled = [name for name in names if cases.case(name).label is not None]
    if labelled:
        check_complete(predictions, labelled, known=names, allow_extra=allow_extra)
    pairs = tuple(
        _pair(cases, name, predictions / f"{name}{SUFFIX}", cases.case(name).unannotated) for name in labelled
    )
    return Selection(pairs=pairs, unlabelled=tuple(name for name in names if name not in set(labelled)))


def split_cases(splits: Splits, *, split: str, fold: str) -> list[str]:
    """Names of the cases of a split, sorted; arguments and errors as in `select_pairs`."""
    if split == "test":
        return sorted(splits.test)
    if fold == ALL_FOLDS:
        return sorted({name for part in splits.folds for name in part.validation})
    if not fold.isdecimal() or int(fold) >= len(splits.folds):
        raise UserError(f"--fold {fold}: there is no such fold; allowed: 0 to {len(splits.folds) - 1}, or {ALL_FOLDS}")
    return sorted(splits.folds[int(fold)].validation)


def predicted_pairs(cases: Cases, folders: list[Path]) -> list[Pair]:
    """All predictions of several folders with their references, in order of the cases' names, to learn from them.

    So hidden labels are skipped as well as those that are not annotated.

    Raises:
        UserError: no predictions, a case in two folders, or one that is unknown or has no label map.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for name in case_names(folder):
            if name in found:
                raise UserError(
                    f"case {name} is in {found[name].parent} and in {folder}; each case is validated in one fold only: "
                    "remove the prediction that does not belong"
                )
            found[name] = folder / f"{name}{SUFFIX}"
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: there are no *{SUFFIX} predictions; run 'megavoxel predict'")
    return [_pair(cases, name, found[name], cases.case(name).unseen) for name in sorted(found)]


def targets_of(cases: Cases) -> list[Target]:
    """The labels of a dataset, in ascending order of their values."""
    return [
        Target(name=name, value=value, tolerance=cases.nsd_tolerance_mm[name])
        for name, value in sorted(cases.labels.items(), key=lambda item: item[1])
    ]


def _pair(cases: Cases, name: str, prediction: Path, skipped: tuple[str, ...]) -> Pair:
    case = cases.case(name)
    if case.label is None:
        raise UserError(f"case {name}: {prediction} has no label map to be held against; remove it from the folder")
    return Pair(case=name, prediction=prediction, reference=Path(cases.root) / case.label, skipped=skipped)
