"""Results of a study, as its report takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.datasets.cases import Cases
from megavoxel.evaluation.choice import Choice, read_choice
from megavoxel.evaluation.metrics import Metric, metrics_in
from megavoxel.evaluation.tolerances import scored_tolerances
from megavoxel.reporting.definition import Definition
from megavoxel.tasks.classification.cases import ImageCases
from megavoxel.tasks.classification.metrics import METRICS as CLASSIFICATION_METRICS
from megavoxel.tasks.classification.plan import ClassifierPlan


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Everything that tables and curves are made of."""

    results: Path
    """Folder of the study."""
    definition: Definition
    cases: Cases | ImageCases | None
    """None where cases.json is absent, which tables and curves can do without."""
    scores: pd.DataFrame
    """Lines of scores.csv that belong to the definition's models and folds."""
    plans: dict[str, Any]
    """By setting."""
    histories: dict[str, dict[int, pd.DataFrame]]
    """By setting and fold."""
    manifests: dict[str, dict[int, dict[str, Any]]]
    """By setting and fold; only those that exist."""
    forecast: pd.DataFrame
    """plan.tsv of a classification study by setting; empty where there is none."""
    missing: tuple[str, ...] = ()
    """A line about each part of the study that is not there."""
    ignored: tuple[str, ...] = ()
    """A line about each kind of scores that are there and do not belong to the study."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of what is scored: regions, or labels in order of their values; in order of the alphabet where
        cases.json is absent."""
        if self.cases is None:
            return tuple(sorted(self.scores["label"].unique()))
        return tuple(self.cases.structures)

    @cached_property
    def groups(self) -> dict[str, str]:
        """The group, usually the patient, of each case; empty where the dataset has no groups of label maps."""
        cases = () if self.cases is None or self.definition.classifies else self.cases.cases
        return {case.id: case.group for case in cases if case.group is not None}

    @cached_property
    def subgroups(self) -> dict[str, dict[str, str]]:
        """By column of the table of cases, the value of each case that has one; empty without such a table."""
        cases = () if self.cases is None or self.definition.classifies else self.cases.cases
        columns = dict.fromkeys(column for case in cases for column in case.subgroups)
        return {
            column: {case.id: case.subgroups[column] for case in cases if column in case.subgroups}
            for column in columns
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """`validation`, and `test` where it is scored."""
        return tuple(split for split in ("validation", "test") if (self.scores["split"] == split).any())

    @property
    def first_split(self) -> str:
        """The split by which models are held against their cost: `validation` where that is scored, else `test`."""
        return self.splits[0]

    @cached_property
    def tolerances(self) -> dict[str, float]:
        """NSD tolerance in mm by label; empty where it is not known."""
        return scored_tolerances(self.results, self.cases)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that are shown; the first one ranks cases, and stands against cost."""
        return shown_metrics(self.definition, self.scores, self.labels)

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The lines of scores of each label's first metric: one for every case, model and label that is scored."""
        places = self.scores["metric"].map({metric.name: place for place, metric in enumerate(self.metrics)})
        return self.scores[places == places.groupby(self.scores["label"]).transform("min")]

    def labels_of(self, metric: Metric) -> tuple[str, ...]:
        """The labels that are scored by a metric, in their order."""
        own = set(self.scores["label"][self.scores["metric"] == metric.name])
        return tuple(label for label in self.labels if label in own)

    @property
    def device_forecast_gib(self) -> dict[str, float]:
        """Forecast memory of a device by plan.json, in GiB by setting; settings without a forecast are left out."""
        needs = {setting: plan.needs for setting, plan in self.plans.items() if plan.needs is not None}
        return {setting: own.device_gib for setting, own in needs.items() if own.device_gib is not None}

    def folder(self, model: str) -> Path:
        """Folder of a setting or an ensemble."""
        return self.results / "ensembles" / model if model in self.definition.ensembles else self.results / model


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Class probabilities by one model for the images of a split."""

    names: tuple[str, ...]
    patients: tuple[str, ...]
    """The patient of each image; the image's own name where the dataset does not say."""
    target: np.ndarray
    """int (images,)."""
    probabilities: np.ndarray
    """float64 (images, classes)."""


@dataclass(frozen=True, kw_only=True)
class StoredClassification(Stored):
    """Results of a classification study."""

    predictions: dict[tuple[str, str], Predictions]
    """By model and split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the networks' outputs."""
        return next(iter(self.plans.values())).classes

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """All that a classifier is scored by."""
        return tuple(CLASSIFICATION_METRICS.values())

    @property
    def device_forecast_gib(self) -> dict[str, float]:
        """Nothing: the plan of a classifier has no forecast."""
        return {}

    def cell_plan(self, cell: str) -> ClassifierPlan:
        """The plan of a cell's first repeat."""
        return self.plans[self.definition.cells[cell][0]]

    def repeats(self, row: str, split: str) -> list[Predictions]:
        """Predictions of all repeats of a row, of the images that all of them have."""
        found = [self.predictions[model, split] for model in self.definition.rows[row]]
        shared = set(found[0].names).intersection(*(own.names for own in found))
        return [_restricted(own, shared) for own in found]


def choice_of(study: Definition) -> Choice | None:
    """The metrics of each label; None: all that are scored."""
    return read_choice(study.metrics, where="metrics") if study.metrics else None


def shown_metrics(study: Definition, scores: pd.DataFrame, labels: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics that are shown of scores: those of the definition, or those that the scores have and rank first."""
    choice = choice_of(study)
    if choice is not None:
        return choice.of_all(labels)
    return tuple(sorted(metrics_in(scores["metric"]), key=lambda metric: not metric.ranks))


def _restricted(own: Predictions, names: set[str]) -> Predictions:
    kept = np.array([name in names for name in own.names])
    return Predictions(
        names=tuple(name for name in own.names if name in names),
        patients=tuple(patient for patient, keep in zip(own.patients, kept, strict=True) if keep),
        target=own.target[kept],
        probabilities=own.probabilities[kept],
    )
