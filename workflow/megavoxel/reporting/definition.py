"""The definition of a study that the workflow hands over: models, folds, sweeps and metrics to report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megavoxel.config.classification import ClassificationStudy
from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.study import Study, Sweep
from megavoxel.errors import UserError, expect
from megavoxel.files import parse_json, read_json
from megavoxel.tasks.classification.cases import TASK as CLASSIFICATION

SEGMENTATION = "segmentation"


@dataclass(frozen=True, kw_only=True)
class Definition:
    """The models that a report compares, and how."""

    task: str = SEGMENTATION
    """`segmentation` or `classification`."""
    study: str
    dataset: str
    baseline: str | None = None
    """The model (of classification: the cell) that the others are held against."""
    settings: tuple[str, ...]
    ensembles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings of each ensemble by its name."""
    folds: dict[str, tuple[int, ...]]
    """Folds of each setting and each ensemble."""
    validates: bool = True
    """Whether these folds leave cases out for validation."""
    cases: str = ""
    """Path of cases.json; empty: the one in the study's folder."""
    sweeps: tuple[Sweep, ...] = ()
    """Tables that compare some of the models."""
    metrics: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    """Keys of the metrics that are shown, as a study file has them; the first ranks cases. Empty: all that are
    scored."""
    confidence: bool = False
    """Whether predictions of the study say how far their probabilities can be trusted."""
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings of a classification study that are repeats of one another, by the name that the study gave them."""

    @property
    def classifies(self) -> bool:
        """Whether the study is one of image classification."""
        return self.task == CLASSIFICATION

    @property
    def models(self) -> tuple[str, ...]:
        """Settings, then ensembles."""
        return (*self.settings, *self.ensembles)

    @property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """Rows of the main table with the models in each: single models, or cells of repeats and ensembles."""
        repeated = self.cells if self.classifies else {setting: (setting,) for setting in self.settings}
        return {**repeated, **{name: (name,) for name in self.ensembles}}


def definition_of(study: Study | ClassificationStudy, dataset: str, cases: str) -> dict[str, Any]:
    """The definition of a study as plain values, for `load_definition`.

    Args:
        dataset: its name.
        cases: path of cases.json.
    """
    ensembles = {ensemble.name: list(ensemble.members) for ensemble in study.ensembles}
    folds = {setting.name: list(study.folds_of(setting)) for setting in study.settings}
    folds = {name: own for name, own in folds.items() if own}  # the others have no fold to compare
    classifies = study.task == CLASSIFICATION
    if classifies:
        compared = {"cells": to_plain(study.cells)}
    else:
        compared = {"sweeps": to_plain(study.sweeps), "metrics": to_plain(study.metrics)}
    return {
        "task": study.task,
        "study": study.name,
        "dataset": dataset,
        "baseline": study.baseline,
        "settings": list(folds),
        "ensembles": ensembles,
        "folds": folds | {ensemble.name: list(study.folds_of_ensemble(ensemble)) for ensemble in study.ensembles},
        "validates": study.validates,
        "confidence": not classifies and study.confidence,
        "cases": cases,
        **compared,
    }


def load_definition(text: str) -> Definition:
    """A study's definition from JSON, or from a file of JSON.

    Raises:
        UserError: the text or file is wrong, has another key, or refers to a model that it does not define.
    """
    values, path = _values(text)
    study = from_plain(Definition, values, where=path)
    expect(study.task in (SEGMENTATION, CLASSIFICATION), f"{path}: task", f"{SEGMENTATION} or {CLASSIFICATION}")
    expect(len(study.settings) > 0, f"{path}: settings", "at least one")
    for cell, settings in study.cells.items():
        expect(len(settings) > 0, f"{path}: cells: {cell}", "at least one setting")
    for sweep in study.sweeps:
        expect(
            len(sweep.points) > 0 and all(sweep.points.values()), f"{path}: sweeps: {sweep.name}", "points with models"
        )
    compared = tuple(study.cells) if study.classifies else study.models
    _check_names(path, "cells", _flat(study.cells), study.settings)
    _check_names(path, "baseline", {study.baseline} - {None}, compared)
    _check_names(path, "ensembles", _flat(study.ensembles), study.settings)
    _check_names(path, "sweeps", {name for sweep in study.sweeps for name in _flat(sweep.points)}, study.models)
    without = [model for model in study.models if not study.folds.get(model)]
    if without:
        raise UserError(f"{path}: folds: '{without[0]}' has none; list its folds, counted from 0")
    return study


def _values(text: str) -> tuple[Any, str]:
    """The plain values of a definition, from JSON or a file of JSON, and the name of that file for errors."""
    if text.lstrip().startswith("{"):
        return parse_json(text, option="--definition"), "--definition"
    return read_json(Path(text), what="definition of the study"), text


def _flat(groups: Mapping[str, Iterable[str]]) -> set[str]:
    return {name for names in groups.values() for name in names}


def _check_names(path: str, key: str, names: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuses a definition that refers to something which it does not define."""
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise UserError(f"{path}: {key}: there is no '{unknown[0]}'; allowed: {', '.join(allowed)}")
