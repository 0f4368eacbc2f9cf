"""What a classification study left on disk, read for its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.config.records import from_plain
from megavoxel.errors import UserError, expect
from megavoxel.evaluation.tidy import read_scores, read_text
from megavoxel.reporting.published import COLUMNS as PUBLISHED_COLUMNS
from megavoxel.reporting.stored import check_folds, check_names, definition_values, read_history, read_manifest
from megavoxel.tasks.classification.cases import TASK, load_image_cases
from megavoxel.tasks.classification.metrics import METRICS
from megavoxel.tasks.classification.plan import ClassifierPlan, load_classifier_plan
from megavoxel.tasks.classification.scores import PROBABILITY, TRUTH

HISTORY_COLUMNS = ("epoch", "training_loss", "training_accuracy")
REMEDY = "run 'megavoxel evaluate' for it, then 'megavoxel evaluate --collect'"


@dataclass(frozen=True, kw_only=True)
class ClassificationDefinition:
    """What the study compares."""

    task: str
    study: str
    dataset: str
    baseline: str | None = None
    """The cell that the others are held against."""
    settings: tuple[str, ...]
    cells: dict[str, tuple[str, ...]]
    """Settings that are repeats of one another, by the name that the study gave them."""
    ensembles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folds: dict[str, tuple[int, ...]]
    """Folds of each setting and each ensemble."""

    @property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """What tables have a row for, and the models in it: cells, then ensembles."""
        return {**self.cells, **{name: (name,) for name in self.ensembles}}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one model said of the images of a split."""

    names: tuple[str, ...]
    patients: tuple[str, ...]
    """Whose each image is; the image's own name where the dataset does not say."""
    target: np.ndarray
    """int (images,)."""
    probabilities: np.ndarray
    """float64 (images, classes)."""


@dataclass(frozen=True, kw_only=True)
class StoredClassification:
    """Everything that tables and figures are made of."""

    definition: ClassificationDefinition
    classes: tuple[str, ...]
    predictions: dict[tuple[str, str], Predictions]
    """By model and split."""
    plans: dict[str, ClassifierPlan]
    """By setting."""
    histories: dict[str, dict[int, pd.DataFrame]]
    """By setting and fold."""
    manifests: dict[str, dict[int, dict[str, Any]]]
    """By setting and fold."""
    forecast: pd.DataFrame
    """plan.tsv by setting; empty where there is none."""

    @property
    def splits(self) -> tuple[str, ...]:
        """`validation`, and `test` where it is scored."""
        return tuple(split for split in ("validation", "test") if any(key[1] == split for key in self.predictions))

    def cell_plan(self, cell: str) -> ClassifierPlan:
        """The plan of a cell's first repeat."""
        return self.plans[self.definition.cells[cell][0]]


def is_classification_report(definition: str) -> bool:
    """Whether a report's definition, JSON or a file of it, is of a classification study."""
    try:
        text = definition if definition.lstrip().startswith("{") else Path(definition).read_text()
        return json.loads(text).get("task") == TASK
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said where it is read


def load_definition(text: str) -> ClassificationDefinition:
    """A classification study's definition from JSON, or from a file of JSON.

    Raises:
        UserError: the text or file is wrong, has another key, or refers to a setting or cell that it does not define.
    """
    values, path = definition_values(text)
    study = from_plain(ClassificationDefinition, values, where=path)
    expect(len(study.settings) > 0, f"{path}: settings", "at least one")
    for cell, settings in study.cells.items():
        expect(len(settings) > 0, f"{path}: cells: {cell}", "at least one setting")
        check_names(path, "cells", settings, study.settings)
    for members in study.ensembles.values():
        check_names(path, "ensembles", members, study.settings)
    check_names(path, "baseline", {study.baseline} - {None}, tuple(study.cells))
    check_folds(path, study.folds, (*study.settings, *study.ensembles))
    return study


def load_stored(results: Path, definition: str) -> StoredClassification:
    """Reads scores, plans, histories and manifests of a study.

    Raises:
        UserError: a file is missing or wrong, or a model lacks scores.
    """
    study = load_definition(definition)
    plans = {setting: load_classifier_plan(results / setting / "plan.json") for setting in study.settings}
    classes = next(iter(plans.values())).classes
    folders = {
        setting: {fold: results / setting / f"fold-{fold}" for fold in study.folds[setting]}
        for setting in study.settings
    }
    return StoredClassification(
        definition=study,
        classes=classes,
        predictions=_predictions(read_scores(results / "scores.csv"), study, classes, results),
        plans=plans,
        histories={
            setting: {fold: read_history(folder / "history.csv", HISTORY_COLUMNS) for fold, folder in folds.items()}
            for setting, folds in folders.items()
        },
        manifests={
            setting: {fold: _manifest(folder / "manifest.json") for fold, folder in folds.items()}
            for setting, folds in folders.items()
        },
        forecast=_forecast(results / "plan.tsv"),
    )


def read_published_accuracy(path: Path | None) -> pd.DataFrame:
    """Published metrics (0 to 1) by table and cell; none where there is no file.

    Raises:
        UserError: the file cannot be read, has other columns, an unknown metric, a value that is no number from 0 to 1,
            or says something twice.
    """
    if path is None:
        return pd.DataFrame(columns=PUBLISHED_COLUMNS, dtype=str).astype({"value": float})
    fault = "published numbers cannot be read ({fault})"
    table = read_text(path, PUBLISHED_COLUMNS, missing=fault, unreadable=fault)
    numbers = pd.to_numeric(table["value"], errors="coerce")
    faults = {
        f"unknown metric; allowed: {', '.join(METRICS)}": ~table["metric"].isin(METRICS),
        "the value is no number from 0 to 1": ~numbers.between(0, 1),
        "there is a line for this already": table.duplicated(["table", "row", "metric"]),
    }
    for reason, wrong in faults.items():
        if wrong.any():
            raise UserError(f"{path}: line {table.index[wrong][0] + 2}: {reason}")
    return table.assign(value=numbers)


def _predictions(
    scores: pd.DataFrame, study: ClassificationDefinition, classes: tuple[str, ...], results: Path
) -> dict[tuple[str, str], Predictions]:
    """Of every model; all models of a split have the same images."""
    source, patients = results / "scores.csv", _patients(results / "cases.json")
    images = scores[scores["metric"].isin((PROBABILITY, TRUTH))]
    found = {}
    for split, part in images.groupby("split"):
        for model in (*study.settings, *study.ensembles):
            own = part[part["setting"] == model]
            found[model, str(split)] = _of_model(own, classes, patients, f"{source}: {model}, {split}")
    if not found:
        raise UserError(f"{source}: no image was scored: the dataset has no test split, and the study has one fold")
    for (model, split), own in found.items():
        first = found[study.settings[0], split]
        if _folds_agree(study, model, split) and own.names != first.names:
            raise UserError(
                f"{source}: {model} and {study.settings[0]} were scored on different {split} images; {REMEDY}"
            )
    return found


def _folds_agree(study: ClassificationDefinition, model: str, split: str) -> bool:
    return split == "test" or study.folds[model] == study.folds[study.settings[0]]


def _patients(path: Path) -> dict[str, str]:
    """Whose each image is, by its id; scores that came without cases say nothing of patients."""
    return {case.id: case.owner for case in load_image_cases(path).cases} if path.is_file() else {}


def _of_model(own: pd.DataFrame, classes: tuple[str, ...], patients: dict[str, str], where: str) -> Predictions:
    if own.empty:
        raise UserError(f"{where}: there are no scores; {REMEDY}")
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


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest with all entries that tables of classification need: there are none of before they were written."""
    found = read_manifest(path)
    for key in ("parameters", "epochs", "seconds", "peak_memory_mib", "peak_memory"):
        expect(found.get(key) is not None, f"{path}: {key}", "an entry of this name")
    expect("forecast_gib" in found["peak_memory"], f"{path}: peak_memory.forecast_gib", "an entry of this name")
    expect(isinstance(found.get("data", {}).get("shares"), list), f"{path}: data.shares", "a list")
    return found


def _forecast(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, sep="\t", dtype={"setting": str}, keep_default_na=False, na_values=[""]).set_index(
            "setting"
        )
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path}: cannot be read as a forecast ({fault}); run 'snakemake plan' again") from None
