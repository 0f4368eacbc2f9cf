"""Results that a study left on disk, read for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.csv_files import as_written
from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.errors import UserError, expect
from megavoxel.evaluation.choice import Choice, read_choice, require_ranking
from megavoxel.evaluation.metrics import METRICS, Metric, metrics_in
from megavoxel.evaluation.tidy import read_scores
from megavoxel.evaluation.tolerances import scored_tolerances
from megavoxel.files import read_json, table_text
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
from megavoxel.tasks.classification.cases import ImageCases, load_image_cases
from megavoxel.tasks.classification.metrics import METRICS as CLASSIFICATION_METRICS
from megavoxel.tasks.classification.plan import ClassifierPlan, load_classifier_plan
from megavoxel.tasks.classification.scores import ALL, PROBABILITY, TRUTH
from megavoxel.tasks.classification.splits import load_image_splits

MANIFEST_NUMBERS = ("parameters", "devices", "epochs", "seconds", "peak_memory_mib")
HISTORY_COLUMNS = ("epoch", "training_loss", "validation_loss", "pseudo_dice", "seconds", "peak_memory_mib")
CLASSIFICATION_COLUMNS = ("epoch", "training_loss", "training_accuracy", "seconds")
CLASSIFICATION_ENTRIES = ("parameters", "epochs", "seconds", "peak_memory_mib", "peak_memory")


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


def read_manifest(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The manifest of a training.

    Args:
        needed: entries that must be there.

    Raises:
        UserError: the file is missing or no manifest, or an entry that a report computes with is missing or of another
            kind.
    """
    found = read_json(path, what="manifest")
    expect(isinstance(found, dict), str(path), "a manifest of a training, which is an object")
    expect(isinstance(found.get("peak_memory"), dict | None), f"{path}: peak_memory", "an object")
    expect(isinstance(found.get("data", {}), dict), f"{path}: data", "an object")
    peak = found.get("peak_memory") or {}
    numbers = {key: found[key] for key in MANIFEST_NUMBERS if key in found}
    numbers |= {f"peak_memory.{key}": peak[key] for key in ("gib", "forecast_gib") if key in peak}
    for key, value in numbers.items():
        expect(isinstance(value, int | float) and not isinstance(value, bool), f"{path}: {key}", "a number")
    for key in needed:
        expect(found.get(key) is not None, f"{path}: {key}", "an entry of this name")
    return found


def read_history(path: Path, columns: Sequence[str] = HISTORY_COLUMNS) -> pd.DataFrame:
    """Reads a `history.csv`: one line per epoch.

    Args:
        columns: those that have to be there, with numbers.

    Raises:
        UserError: the file is missing, unreadable, empty, or lacks a column.
    """
    try:
        table = pd.read_csv(table_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such history; run 'megavoxel train' for this setting and fold") from None
    except (OSError, OverflowError, ValueError) as fault:
        raise UserError(f"{path}: cannot be read as CSV ({fault}); train this setting and fold again") from None
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        what = f"the column {missing[0]} is missing" if missing else "there is no epoch in it"
        raise UserError(f"{path}: {what}; train this setting and fold again")
    words = [column for column in columns if not pd.api.types.is_numeric_dtype(table[column])]
    if words:
        raise UserError(f"{path}: the column {words[0]} holds something else than numbers; train it again")
    return table


def read_forecast(path: Path) -> pd.DataFrame:
    """A `plan.tsv` by setting.

    Returns:
        Empty where the file is missing: a study can be run without a forecast.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        # A setting may be called NA; only an empty field is no number.
        table = pd.read_csv(table_text(path), sep="\t", dtype={"setting": str}, keep_default_na=False, na_values=[""])
        return as_written(table).set_index("setting").astype({"peak_gib": float})
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path}: cannot be read as a forecast ({fault}); run 'snakemake plan' again") from None


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


def choice_of(study: Definition) -> Choice | None:
    """The metrics of each label; None: all that are scored."""
    return read_choice(study.metrics, where="metrics") if study.metrics else None


def shown_metrics(study: Definition, scores: pd.DataFrame, labels: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics that are shown of scores: those of the definition, or those that the scores have and rank first."""
    choice = choice_of(study)
    if choice is not None:
        return choice.of_all(labels)
    return tuple(sorted(metrics_in(scores["metric"]), key=lambda metric: not metric.ranks))


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


def _restricted(own: Predictions, names: set[str]) -> Predictions:
    kept = np.array([name in names for name in own.names])
    return Predictions(
        names=tuple(name for name in own.names if name in names),
        patients=tuple(patient for patient, keep in zip(own.patients, kept, strict=True) if keep),
        target=own.target[kept],
        probabilities=own.probabilities[kept],
    )
