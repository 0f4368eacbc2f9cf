"""The part of a study that exists, where a report is asked for before all of it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import COLUMNS, read_scores

if TYPE_CHECKING:
    from megavoxel.reporting.stored import Definition


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
    definition: Definition, results: Path, scores: pd.DataFrame, *, test_expected: bool
) -> tuple[Definition, pd.DataFrame, list[str]]:
    """What of a definition can be reported, its scores, and a line about each thing that is missing.

    A fold counts where it was trained and scored, a model where it has a fold and, if test cases are expected, their
    scores; an ensemble where its members do. Cases that a model lacks in a fold are left out there for all models.

    Raises:
        UserError: nothing is left.
    """
    lines: list[str] = []
    scored = set(scores[["setting", "split", "fold"]].drop_duplicates().itertuples(index=False, name=None))
    folds = {}
    for model in definition.models:
        absent = _absent(definition, results, scored, model)
        lines += [f"{model}, fold {fold}: {what}" for fold, what in absent.items()]
        folds[model] = tuple(fold for fold in definition.folds[model] if fold not in absent)
        if folds[model] and test_expected and (model, "test", "all") not in scored:
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


def _absent(definition: Definition, results: Path, scored: set[tuple[str, str, str]], model: str) -> dict[int, str]:
    """Why folds of a model cannot be reported, by fold."""
    absent = {}
    for fold in definition.folds[model]:
        folder = results / model
        if model in definition.settings and not (folder / "plan.json").exists():
            absent[fold] = "not planned (no plan.json)"
        elif model in definition.settings and not (folder / f"fold-{fold}" / "history.csv").exists():
            absent[fold] = "not trained to its end (no history.csv)"
        elif (model, "validation", str(fold)) not in scored:
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
    baseline = definition.baseline if definition.baseline in models else None
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
    )
