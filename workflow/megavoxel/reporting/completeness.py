"""Whether every model, fold and case that a report compares was scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError

CASES_NAMED = 8
"""Of the cases that an error names; the others are counted."""
REMEDY = "run 'megavoxel evaluate' for it, then 'megavoxel evaluate --collect'"


def check_complete(
    scores: pd.DataFrame, *, source: Path, folds: Mapping[str, Sequence[int]], test_expected: bool
) -> pd.DataFrame:
    """Lines of the given models: `validation` of their folds and, where it is scored at all, `test` of fold `all`.

    Args:
        scores: as `megavoxel.evaluation.tidy.read_scores` gives them.
        source: names the score file in errors.
        folds: folds by model.
        test_expected: whether there are labelled test cases.

    Raises:
        UserError: scores of a model, fold, case or label are missing, or a case is scored in two folds.
    """
    parts = {(model, "validation", str(fold)) for model, own in folds.items() for fold in own}
    if test_expected or ((scores["split"] == "test") & (scores["fold"] == "all")).any():
        parts |= {(model, "test", "all") for model in folds}
    keys = pd.MultiIndex.from_frame(scores[["setting", "split", "fold"]])
    missing = sorted(parts - set(keys))
    if missing:
        model, split, fold = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{source}: no {split} scores of {model}, fold {fold}{more}; {REMEDY}")
    selected = scores[keys.isin(parts)].reset_index(drop=True)
    _check_same_cases(selected, source)
    twice = selected[selected.duplicated(["setting", "split", "case", "label", "metric"])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(f"{source}: {row['setting']}: {row['split']} case {row['case']} is scored more than once")
    return selected


def known_cases(
    scores: pd.DataFrame, cases: Cases | None, *, source: Path, allow_extra: bool
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of the study's own cases, each in its own split, and a line that names the others.

    Args:
        scores: as `megavoxel.evaluation.tidy.read_scores` gives them.
        cases: None: they are not known, and all scores are taken.
        source: names the score file in errors.
        allow_extra: whether scores of other cases are left out rather than refused.

    Raises:
        UserError: names the cases that are not in the study.
    """
    if cases is None:
        return scores, []
    splits = {"validation": "training", "test": "test"}
    own = pd.MultiIndex.from_tuples(
        [(split, case.id) for split, kind in splits.items() for case in cases.of_split(kind)]
    )
    known = pd.MultiIndex.from_frame(scores[["split", "case"]]).isin(own)
    if known.all():
        return scores, []
    extra = [
        f"{case} ({split})"
        for split, case in sorted(set(scores.loc[~known, ["split", "case"]].itertuples(index=False)))
    ]
    named = ", ".join(extra[:CASES_NAMED]) + (
        f" and {len(extra) - CASES_NAMED} more" if len(extra) > CASES_NAMED else ""
    )
    if not allow_extra:
        raise UserError(
            f"{source}: scores of {len(extra)} cases that the study does not have: {named}; score this study's cases "
            "again, or leave these out by --allow-extra"
        )
    return scores[known].reset_index(drop=True), [f"scores of cases that the study does not have: {named}"]


def _check_same_cases(scores: pd.DataFrame, source: Path) -> None:
    """Models that share a split and fold must be scored on the same cases, labels and metrics."""
    for (split, fold), part in scores.groupby(["split", "fold"]):
        expected = set(_scored(part))
        for model, own in part.groupby("setting"):
            lacking = sorted(expected - set(_scored(own)))
            if lacking:
                case, label, metric = lacking[0]
                raise UserError(
                    f"{source}: {model}, {split}, fold {fold}: case {case} has no {metric} of {label}, which another "
                    f"model has; {REMEDY}"
                )


def _scored(scores: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    return zip(scores["case"], scores["label"], scores["metric"], strict=True)
