"""Reads the results of a study from disk, and refuses what does not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.errors import UserError, expect
from megavoxel.evaluation.choice import require_ranking
from megavoxel.evaluation.metrics import METRICS, metrics_in
from megavoxel.evaluation.tidy import read_scores
from megavoxel.planning.plan import load_plan
from megavoxel.planning.splits import load_splits
from megavoxel.reporting.definition import Definition, load_definition
from megavoxel.reporting.partial import (
    REMEDY,
    Expected,
    check_complete,
    existing_part,
    known_cases,
    require_all_rows,
    rows_missing,
    stored_scores,
)
from megavoxel.reporting.run_files import HISTORY_COLUMNS, read_forecast, read_history, read_manifest
from megavoxel.reporting.stored import Predictions, Stored, StoredClassification, choice_of, shown_metrics
from megavoxel.tasks.classification.cases import ImageCases, load_image_cases
from megavoxel.tasks.classification.plan import load_classifier_plan
from megavoxel.tasks.classification.scores import ALL, PROBABILITY, TRUTH
from megavoxel.tasks.classification.splits import load_image_splits

CLASSIFICATION_COLUMNS = ("epoch", "training_loss", "training_accuracy", "seconds")
CLASSIFICATION_ENTRIES = ("parameters", "epochs", "seconds", "peak_memory_mib", "peak_memory")


def load_stored(
    results: Path, definition: str, *, need_cases: bool, partial: bool = False, allow_extra: bool = False
) -> Stored:
    """Reads scores, plans, histories and manifests of a study.

    Args:
        need_cases: whether cases.json must exist.
        partial: take what there is of the study; `Stored.missing` tells what is not there.
        allow_extra: leave out scores of cases that the study does not have.

    Raises:
        UserError: a file is missing or wrong; a model, fold or case has no scores, or a case is not in the study.
    """
    study = load_definition(definition)
    source, missing = results / "scores.csv", []
    cases = _load_cases(Path(study.cases) if study.cases else results / "cases.json", study, need_cases)
    scores = stored_scores(results, study) if partial else read_scores(source)
    others = _of_other_models(scores, study)
    scores = scores[scores["setting"].isin(study.models)]
    if study.classifies:  # metrics of all images of a fold are worked out again, for repeats and folds together
        scores = scores[scores["case"] != ALL]
    scores, extra = known_cases(scores, cases, source=source, allow_extra=allow_extra)
    expected = _expected_splits(study, cases, scores)
    if partial:
        study, scores, missing = existing_part(study, results, scores, expected=expected)
    _check_metrics(scores, study, source, cases)
    scores = check_complete(
        scores, source=source, folds={model: study.folds[model] for model in study.models}, expected=expected
    )
    rows, choice = _expected_rows(study, cases, results / "splits.json"), choice_of(study)
    if partial:
        missing += rows_missing(scores, rows, choice)
    else:
        require_all_rows(scores, rows, choice, source=source)
    load, columns = (load_classifier_plan, CLASSIFICATION_COLUMNS) if study.classifies else (load_plan, HISTORY_COLUMNS)
    folders = {
        (setting, fold): results / setting / f"fold-{fold}"
        for setting in study.settings
        for fold in study.folds[setting]
    }
    manifests = _manifests(study, folders)
    values = {
        "results": results,
        "definition": study,
        "cases": cases,
        "scores": scores,
        "plans": {setting: load(results / setting / "plan.json") for setting in study.settings},
        "histories": _by_setting(study, _histories(folders, manifests, columns)),
        "manifests": _by_setting(study, manifests),
        "forecast": read_forecast(results / "plan.tsv") if study.classifies else pd.DataFrame(),
        "missing": tuple(missing),
        "ignored": (*others, *extra),
    }
    if not study.classifies:
        return Stored(**values)
    classes = next(iter(values["plans"].values())).classes
    return StoredClassification(**values, predictions=_predictions(scores, study, classes, cases, source))


def _load_cases(path: Path, study: Definition, needed: bool) -> Cases | ImageCases | None:
    if study.classifies:
        return load_image_cases(path) if path.is_file() else None
    return load_cases(path) if needed or path.exists() else None


def _expected_splits(study: Definition, cases: Cases | ImageCases | None, scores: pd.DataFrame) -> set[str]:
    """Splits that every model must have: those that one of them has and, of segmentation, those with references."""
    expected = {split for split in ("validation", "test") if (scores["split"] == split).any()}
    if study.classifies:
        return expected
    labelled = cases is not None and any(case.label is not None for case in cases.of_split("test"))
    return expected | ({"validation"} if study.validates else set()) | ({"test"} if labelled else set())


def _check_metrics(scores: pd.DataFrame, study: Definition, source: Path, cases: Cases | ImageCases | None) -> None:
    if study.classifies:
        return
    known = metrics_in(scores["metric"])
    expect(len(known) > 0, f"{source}: metric", f"one of {', '.join(metric.name for metric in METRICS.values())}")
    labels = cases.structures if cases is not None else scores["label"].unique()
    shown = shown_metrics(study, scores, tuple(labels))
    unscored = [metric.name for metric in shown if metric not in known]
    if unscored:
        raise UserError(f"{source}: there is no {unscored[0]}, which the study asks for; run 'megavoxel evaluate'")
    require_ranking(shown, where=f"{source}: metric")


def _of_other_models(scores: pd.DataFrame, definition: Definition) -> list[str]:
    """A line that names the models that are scored and are not, or no longer, in the study."""
    others = sorted(set(scores["setting"]) - set(definition.models))
    return [f"scores of {', '.join(others)}: not in the study's definition"] if others else []


def _by_setting(study: Definition, found: dict[tuple[str, int], Any]) -> dict[str, dict[int, Any]]:
    return {
        setting: {fold: value for (own, fold), value in found.items() if own == setting} for setting in study.settings
    }


def _histories(
    folders: dict[tuple[str, int], Path], manifests: dict[tuple[str, int], dict[str, Any]], columns: Sequence[str]
) -> dict[tuple[str, int], pd.DataFrame]:
    """The histories of all runs; one that is shorter than its manifest says is refused."""
    found = {}
    for run, folder in folders.items():
        path, epochs = folder / "history.csv", manifests.get(run, {}).get("epochs")
        found[run] = read_history(path, columns)
        if epochs is not None and len(found[run]) != epochs:
            raise UserError(
                f"{path}: it has {len(found[run])} epochs, and the manifest.json beside it says {epochs}: it was cut; "
                "bring the whole file, or train this setting and fold again"
            )
    return found


def _expected_rows(study: Definition, cases: Cases | ImageCases | None, path: Path) -> Expected:
    """Which labels of which cases the scores of a fold have; empty where that is not known.

    A classifier's images are named without labels.

    Args:
        path: splits.json.
    """
    if cases is None or not path.is_file():
        return {}
    if study.classifies:
        splits, own = load_image_splits(path), {case.id: ((),) for case in cases.cases}
    else:
        splits = load_splits(path)
        own = {
            case.id: [(label,) for label in cases.structures if label not in case.unannotated]
            for case in cases.cases
            if case.label is not None
        }
    parts = {("validation", str(number)): fold.validation for number, fold in enumerate(splits.folds)}
    parts["test", "all"] = splits.test
    return {part: {(name, *label) for name in names for label in own.get(name, ())} for part, names in parts.items()}


def _manifests(study: Definition, runs: dict[tuple[str, int], Path]) -> dict[tuple[str, int], dict[str, Any]]:
    """Those that exist; of classification all of them, with what its tables need."""
    paths = {run: folder / "manifest.json" for run, folder in runs.items()}
    if not study.classifies:
        return {run: read_manifest(path) for run, path in paths.items() if path.exists()}
    found = {run: read_manifest(path, CLASSIFICATION_ENTRIES) for run, path in paths.items()}
    for run, manifest in found.items():
        where = paths[run]
        expect("forecast_gib" in manifest["peak_memory"], f"{where}: peak_memory.forecast_gib", "an entry of this name")
        expect(isinstance(manifest.get("data", {}).get("shares"), list), f"{where}: data.shares", "a list")
    return found


def _predictions(
    scores: pd.DataFrame, study: Definition, classes: tuple[str, ...], cases: ImageCases | None, source: Path
) -> dict[tuple[str, str], Predictions]:
    """Predictions of every model for the images of each split."""
    # Scores that came without cases say nothing of patients.
    patients = {} if cases is None else {case.id: case.owner for case in cases.cases}
    images = scores[scores["metric"].isin((PROBABILITY, TRUTH))]
    if images.empty:
        raise UserError(f"{source}: no image was scored: the dataset has no test split, and the study has one fold")
    return {
        (model, str(split)): _of_model(part[part["setting"] == model], classes, patients, f"{source}: {model}, {split}")
        for split, part in images.groupby("split")
        for model in study.models
    }


def _of_model(own: pd.DataFrame, classes: tuple[str, ...], patients: dict[str, str], where: str) -> Predictions:
    table = own[own["metric"] == PROBABILITY].pivot_table(index="case", columns="label", values="value")
    truth = own[own["metric"] == TRUTH].set_index("case")["label"]
    if set(table.columns) != set(classes) or set(truth.index) != set(table.index) or table.isna().any(axis=None):
        raise UserError(f"{where}: an image lacks the probability of a class, or its own class; {REMEDY}")
    target = np.array([classes.index(label) for label in truth.loc[table.index]])
    return Predictions(
        names=tuple(table.index),
        patients=tuple(patients.get(name, f"image {name}") for name in table.index),
        target=target,
        probabilities=table[list(classes)].to_numpy(),
    )
