"""Which parts of a study were scored: all that a report compares, or what there is of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import pandas as pd

from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.evaluation.choice import Choice
from megavoxel.evaluation.tidy import COLUMNS, read_scores
from megavoxel.reporting.definition import Definition
from megavoxel.tasks.classification.cases import ImageCases

CASES_NAMED = 8
"""Cases that an error names; the others are counted."""
Expected = Mapping[tuple[str, str], Set[tuple[str, ...]]]
"""By split and fold, the cases, and labels in them, that scores have."""
REMEDY = "run 'megavoxel evaluate' for it, then 'megavoxel evaluate --collect'"


def check_complete(
    scores: pd.DataFrame, *, source: Path, folds: Mapping[str, Sequence[int]], expected: Set[str]
) -> pd.DataFrame:
    """Lines of the given models: `validation` of their folds and `test` of fold `all`, as far as they are expected.

    Args:
        folds: folds by model.
        expected: splits that every model must have.

    Raises:
        UserError: scores of a model, fold, case or label are missing, or a case is scored in two folds.
    """
    parts = {
        (model, split, fold)
        for split in expected
        for model, own in folds.items()
        for fold in (("all",) if split == "test" else map(str, own))
    }
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


def rows_missing(scores: pd.DataFrame, expected: Expected, choice: Choice | None = None) -> list[str]:
    """A line about each model, split and fold whose scores lack rows that they should have.

    Args:
        scores: as `check_complete` returns them.
        expected: the rows of each split and fold; splits and folds that are not named are not looked at.
        choice: the metrics of each label; None: all that a split has.
    """
    lines = []
    metrics = {split: set(part) for split, part in scores.groupby("split")["metric"]}
    for (model, split, fold), part in scores.groupby(["setting", "split", "fold"]):
        wanted = expected.get((split, fold), set())
        names = ["case", "label"][: len(next(iter(wanted), ()))]
        found = set(part[[*names, "metric"]].itertuples(index=False, name=None))
        lacking = sorted(
            {(*row, metric) for row in wanted for metric in _names_of(choice, row[1:]) or metrics[split]} - found
        )
        if lacking:
            case, *label, metric = lacking[0]
            what = f"{metric} of {label[0]}" if label else metric
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            lines.append(f"{model}, {split}, fold {fold}: case {case} has no {what}{more}")
    return lines


def _names_of(choice: Choice | None, label: tuple[str, ...]) -> list[str]:
    return [metric.name for metric in choice.of(*label)] if choice is not None and label else []


def require_all_rows(scores: pd.DataFrame, expected: Expected, choice: Choice | None = None, *, source: Path) -> None:
    """Refuses scores that are fewer than the study's cases and labels, as in a file that was cut.

    Raises:
        UserError: names the first case and label without a score.
    """
    for line in rows_missing(scores, expected, choice):
        raise UserError(f"{source}: {line}; {REMEDY}")


def known_cases(
    scores: pd.DataFrame, cases: Cases | ImageCases | None, *, source: Path, allow_extra: bool
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of the study's own cases, each in its own split, and a line that names the others.

    Args:
        cases: None: they are not known, and all scores are taken.
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


def stored_scores(results: Path, definition: Definition) -> pd.DataFrame:
    """The scores of all parts of a study that were scored, as `read_scores` gives them.

    They are read from the parts themselves, since scores.csv of the study may be older or absent.

    Raises:
        UserError: a file is wrong, or there is none.
    """
    folders = [
        results / "ensembles" / model if model in definition.ensembles else results / model
        for model in definition.models
    ]
    parts = [
        path for folder in folders for path in (*sorted(folder.glob("fold-*/scores.csv")), folder / "scores-test.csv")
    ]
    found = [read_scores(path) for path in parts if path.exists()]
    if (results / "scores.csv").exists() and not found:
        found = [read_scores(results / "scores.csv")]
    if not found:
        raise UserError(f"{results}: nothing of this study was scored yet; there is nothing to report")
    return pd.concat(found, ignore_index=True)[COLUMNS]


def existing_part(
    definition: Definition, results: Path, scores: pd.DataFrame, *, expected: Set[str]
) -> tuple[Definition, pd.DataFrame, list[str]]:
    """The part of a definition that can be reported, its scores, and a line about each thing that is missing.

    A fold counts where it was trained and scored, a model where it has a fold and, if test cases are expected, their
    scores; an ensemble where its members do, a cell where one of its settings does.
    Cases that a model lacks in a fold are left out there for all models.

    Raises:
        UserError: nothing is left.
    """
    lines: list[str] = []
    scored = set(scores[["setting", "split", "fold"]].drop_duplicates().itertuples(index=False, name=None))
    folds = {}
    for model in definition.models:
        absent = _absent(definition, results, scored, model, needs_validation="validation" in expected)
        lines += [f"{model}, fold {fold}: {what}" for fold, what in absent.items()]
        folds[model] = tuple(fold for fold in definition.folds[model] if fold not in absent)
        if folds[model] and "test" in expected and (model, "test", "all") not in scored:
            lines.append(f"{model}: its test cases were not scored, so that it is left out as a whole")
            folds[model] = ()
    remaining = _reduced(definition, folds, lines)
    if not remaining.settings:
        raise UserError(f"{results}: no setting has a fold that was trained and scored; there is nothing to report")
    kept, left_out = shared_cases(scores[scores["setting"].isin(remaining.models)])
    return remaining, kept, lines + left_out


def shared_cases(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Scores of the cases that all models of a split and fold have in full, and a line about each of the others."""
    lines, unshared = [], pd.Series(False, index=scores.index)
    for (split, fold), part in scores.groupby(["split", "fold"]):
        counts = part.pivot_table(index="case", columns="setting", values="metric", aggfunc="size", fill_value=0)
        for case, row in counts[counts.ne(counts.max(axis=1), axis=0).any(axis=1)].iterrows():
            lacking = ", ".join(row.index[row < row.max()])
            lines.append(
                f"case {case} ({split}, fold {fold}): not scored in full for {lacking}; left out for all models"
            )
            unshared |= (scores["split"] == split) & (scores["fold"] == fold) & (scores["case"] == case)
    return scores[~unshared].reset_index(drop=True), lines


def _absent(
    definition: Definition, results: Path, scored: set[tuple[str, str, str]], model: str, *, needs_validation: bool
) -> dict[int, str]:
    """Why folds of a model cannot be reported, by fold."""
    absent = {}
    for fold in definition.folds[model]:
        folder = results / model
        if model in definition.settings and not (folder / "plan.json").exists():
            absent[fold] = "not planned (no plan.json)"
        elif model in definition.settings and not (folder / f"fold-{fold}" / "history.csv").exists():
            absent[fold] = "not trained to its end (no history.csv)"
        elif needs_validation and (model, "validation", str(fold)) not in scored:
            absent[fold] = "not scored"
    return absent


def _reduced(definition: Definition, folds: dict[str, tuple[int, ...]], lines: list[str]) -> Definition:
    """The definition with models that have folds; adds lines about what goes with the others."""
    settings = tuple(setting for setting in definition.settings if folds[setting])
    ensembles = {}
    for name, members in definition.ensembles.items():
        lacking = [member for member in members if member not in settings]
        if folds[name] and not lacking:
            ensembles[name] = members
        elif folds[name]:
            lines.append(f"{name}: left out, for its member {lacking[0]} is missing")
    models = {*settings, *ensembles}
    cells = {cell: tuple(name for name in own if name in settings) for cell, own in definition.cells.items()}
    cells = {cell: own for cell, own in cells.items() if own}
    baseline = definition.baseline if definition.baseline in {*models, *cells} else None
    if baseline != definition.baseline:
        lines.append(f"{definition.baseline}: it is the baseline, so that there are no differences and no tests")
    sweeps = []
    for sweep in definition.sweeps:
        points = {name: own for name, own in sweep.points.items() if models.issuperset(own)}
        lines += [f"sweep {sweep.name}: point {name} is left out" for name in sweep.points if name not in points]
        sweeps += [replace(sweep, points=points)] if points else []
    return replace(
        definition,
        baseline=baseline,
        settings=settings,
        ensembles=ensembles,
        folds={model: folds[model] for model in (*settings, *ensembles)},
        sweeps=tuple(sweeps),
        cells=cells,
    )


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
