"""What a study left on disk, read for its report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from megavoxel.config.records import from_plain
from megavoxel.config.study import Sweep
from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.errors import UserError, expect
from megavoxel.evaluation.metrics import METRICS, Metric, metrics_in, metrics_of
from megavoxel.evaluation.tidy import read_scores
from megavoxel.files import read_json
from megavoxel.planning.plan import Plan, load_plan
from megavoxel.reporting.completeness import check_complete, known_cases
from megavoxel.reporting.partial import existing_part, stored_scores

MANIFEST_NUMBERS = ("parameters", "devices", "epochs", "seconds", "peak_memory_mib")
HISTORY_COLUMNS = ("epoch", "training_loss", "validation_loss", "pseudo_dice", "seconds", "peak_memory_mib")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What the study compares."""

    study: str
    dataset: str
    baseline: str | None = None
    """The model that the others are held against."""
    settings: tuple[str, ...]
    ensembles: dict[str, tuple[str, ...]]
    """Settings of each ensemble by its name."""
    folds: dict[str, tuple[int, ...]]
    """Folds of each setting and each ensemble."""
    cases: str
    """Path of cases.json."""
    sweeps: tuple[Sweep, ...] = ()
    """Tables that compare some of the models."""
    metrics: tuple[str, ...] = ()
    """Keys of the metrics that are shown; the first ranks cases. Empty: all that are scored."""

    @property
    def models(self) -> tuple[str, ...]:
        """Settings, then ensembles: the rows of the tables."""
        return (*self.settings, *self.ensembles)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Everything that tables and curves are made of."""

    results: Path
    """Folder of the study."""
    definition: Definition
    cases: Cases | None
    """None where cases.json is absent, which tables and curves can do without."""
    scores: pd.DataFrame
    """Lines of scores.csv that belong to the definition's models and folds."""
    plans: dict[str, Plan]
    """By setting."""
    histories: dict[str, dict[int, pd.DataFrame]]
    """By setting and fold."""
    manifests: dict[str, dict[int, dict[str, Any]]]
    """By setting and fold; only those that exist."""
    device_forecast_gib: dict[str, float]
    """What plan.tsv forecasts of a device, in GiB by setting; empty where there is none."""
    missing: tuple[str, ...] = ()
    """A line about each part of the study that is not there."""
    ignored: tuple[str, ...] = ()
    """A line about each kind of scores that are there and do not belong to the study."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in order of their values, or of the alphabet where cases.json is absent."""
        if self.cases is None:
            return tuple(sorted(self.scores["label"].unique()))
        return tuple(sorted(self.cases.labels, key=self.cases.labels.__getitem__))

    @property
    def splits(self) -> tuple[str, ...]:
        """`validation`, and `test` where it is scored."""
        return tuple(split for split in ("validation", "test") if (self.scores["split"] == split).any())

    @property
    def tolerances(self) -> dict[str, float]:
        """NSD tolerance in mm by label; empty where cases.json is absent."""
        return {} if self.cases is None else self.cases.nsd_tolerance_mm

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is shown; the first ranks cases, and stands against cost."""
        if self.definition.metrics:
            return metrics_of(self.definition.metrics, where="metrics")
        return metrics_in(self.scores["metric"])

    def folder(self, model: str) -> Path:
        """Folder of a setting or an ensemble."""
        return self.results / "ensembles" / model if model in self.definition.ensembles else self.results / model


def load_stored(
    results: Path, definition: str, *, need_cases: bool, partial: bool = False, allow_extra: bool = False
) -> Stored:
    """Reads scores, plans, histories and manifests of a study.

    Args:
        results: folder of the study.
        definition: as `load_definition` takes it.
        need_cases: whether cases.json must exist.
        partial: take what there is of the study; `Stored.missing` tells what is not there.
        allow_extra: leave out scores of cases that the study does not have.

    Raises:
        UserError: a file is missing or wrong; a model, fold or case has no scores, or a case is not in the study.
    """
    study = load_definition(definition)
    cases = load_cases(Path(study.cases)) if need_cases or Path(study.cases).exists() else None
    source, missing = results / "scores.csv", []
    scores = stored_scores(results, study) if partial else read_scores(source)
    others = _of_other_models(scores, study)
    scores, extra = known_cases(
        scores[scores["setting"].isin(study.models)], cases, source=source, allow_extra=allow_extra
    )
    test_expected = cases is not None and any(case.label is not None for case in cases.of_split("test"))
    if partial:
        study, scores, missing = existing_part(study, results, scores, test_expected=test_expected)
    known = metrics_in(scores["metric"])
    expect(len(known) > 0, f"{source}: metric", f"one of {', '.join(metric.name for metric in METRICS.values())}")
    unscored = [metric.name for metric in metrics_of(study.metrics, where="metrics") if metric not in known]
    if unscored:
        raise UserError(f"{source}: there is no {unscored[0]}, which the study asks for; run 'megavoxel evaluate'")
    scores = check_complete(
        scores,
        source=source,
        folds={model: study.folds[model] for model in study.models},
        test_expected=test_expected,
    )
    folders = {
        setting: {fold: results / setting / f"fold-{fold}" for fold in study.folds[setting]}
        for setting in study.settings
    }
    return Stored(
        results=results,
        definition=study,
        cases=cases,
        scores=scores,
        plans={setting: load_plan(results / setting / "plan.json") for setting in folders},
        histories={
            setting: {fold: read_history(folder / "history.csv") for fold, folder in folds.items()}
            for setting, folds in folders.items()
        },
        manifests={
            setting: {
                fold: read_manifest(folder / "manifest.json")
                for fold, folder in folds.items()
                if (folder / "manifest.json").exists()
            }
            for setting, folds in folders.items()
        },
        device_forecast_gib=read_forecast(results / "plan.tsv"),
        missing=tuple(missing),
        ignored=(*others, *extra),
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a training.

    Raises:
        UserError: the file is missing or no manifest, or an entry that a report computes with is of another kind.
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
    return found


def definition_values(text: str) -> tuple[Any, str]:
    """What a study's definition says, from JSON or a file of JSON, and what errors call it.

    Raises:
        UserError: the text is no JSON, or the file is missing or damaged.
    """
    if not text.lstrip().startswith("{"):
        return read_json(Path(text), what="definition of the study"), text
    try:
        return json.loads(text), "--definition"
    except json.JSONDecodeError as fault:
        raise UserError(f"--definition: this is not JSON ({fault})") from None


def check_names(path: str, key: str, names: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuses a definition that refers to models which it does not define.

    Raises:
        UserError: it does; the first one is named.
    """
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise UserError(f"{path}: {key}: there is no '{unknown[0]}'; allowed: {', '.join(allowed)}")


def check_folds(path: str, folds: Mapping[str, Sequence[int]], models: Sequence[str]) -> None:
    """Refuses a definition in which a model has no folds.

    Raises:
        UserError: there is one; it is named.
    """
    without = [model for model in models if not folds.get(model)]
    if without:
        raise UserError(f"{path}: folds: '{without[0]}' has none; list its folds, counted from 0")


def load_definition(text: str) -> Definition:
    """A study's definition from JSON, or from a file of JSON.

    Raises:
        UserError: the text or file is wrong, has another key, or refers to a model that it does not define.
    """
    values, path = definition_values(text)
    definition = from_plain(Definition, values, where=path)
    members = {member for members in definition.ensembles.values() for member in members}
    for sweep in definition.sweeps:
        expect(
            len(sweep.points) > 0 and all(sweep.points.values()), f"{path}: sweeps: {sweep.name}", "points with models"
        )
    points = {model for sweep in definition.sweeps for models in sweep.points.values() for model in models}
    check_names(path, "baseline", {definition.baseline} - {None}, definition.models)
    check_names(path, "ensembles", members, definition.settings)
    check_names(path, "sweeps", points, definition.models)
    check_folds(path, definition.folds, definition.models)
    return definition


def _of_other_models(scores: pd.DataFrame, definition: Definition) -> list[str]:
    """A line that names the models that are scored and are not, or no longer, in the study."""
    others = sorted(set(scores["setting"]) - set(definition.models))
    return [f"scores of {', '.join(others)}: not in the study's definition"] if others else []


def read_history(path: Path, columns: Sequence[str] = HISTORY_COLUMNS) -> pd.DataFrame:
    """Reads a `history.csv`: one line per epoch.

    Args:
        path: the file.
        columns: those that have to be there, with numbers.

    Raises:
        UserError: the file is missing, unreadable, empty, or lacks a column.
    """
    try:
        table = pd.read_csv(path)
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


def read_forecast(path: Path) -> dict[str, float]:
    """Forecast peak memory in GiB by setting from a `plan.tsv`; settings without a forecast are left out.

    Returns:
        Nothing where the file is missing: a study can be run without a forecast.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    if not path.exists():
        return {}
    try:
        # A setting may be called NA; only an empty field is no number.
        table = pd.read_csv(path, sep="\t", dtype={"setting": str}, keep_default_na=False, na_values=[""])
        return table.set_index("setting")["peak_gib"].astype(float).dropna().to_dict()
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path}: cannot be read as a forecast ({fault}); run 'snakemake plan' again") from None
