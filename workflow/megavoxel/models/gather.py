"""What is known of trained runs, for those who take them away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.setting import ALL
from megavoxel.config.study_file import load_study
from megavoxel.config.yaml_files import read_yaml
from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import metrics_in
from megavoxel.evaluation.tidy import read_scores
from megavoxel.evaluation.tolerances import scored_tolerances
from megavoxel.files import read_json
from megavoxel.models.description import DatasetFacts, FoldFacts, Mean
from megavoxel.planning.plan import Plan, load_plan
from megavoxel.planning.splits import load_splits
from megavoxel.tasks import task_of

DATASETS = Path("config/datasets")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Trained folds of one setting."""

    setting: Path
    """results/STUDY/SETTING."""
    plan: Plan
    folds: tuple[int | str, ...]
    """Numbers in ascending order, or `all` for the network of all cases."""
    is_whole: bool
    """Whether these are all folds that the setting was trained on."""
    first_stage: tuple[Runs, ...] = ()
    """Settings whose label maps the second stage of a cascade is given, with all their folds."""

    def folder(self, fold: int | str) -> Path:
        """The folder of a fold."""
        return self.setting / f"fold-{fold}"

    @property
    def postprocessing(self) -> Path | None:
        """postprocessing.json of the setting, where there is one."""
        path = self.setting / "postprocessing.json"
        return path if path.is_file() else None

    @property
    def temperature(self) -> Path | None:
        """temperature.json of the setting, where there is one and it is that of these folds."""
        path = self.setting / "temperature.json"
        return path if path.is_file() and ALL not in self.folds else None


@dataclass(frozen=True, kw_only=True)
class EnsembleRuns:
    """An ensemble of settings."""

    folder: Path
    """results/STUDY/ensembles/NAME."""
    members: tuple[Runs, ...]
    """Its settings, with all their folds, in the order of the study file."""

    @property
    def postprocessing(self) -> Path | None:
        """postprocessing.json of the ensemble, where there is one."""
        path = self.folder / "postprocessing.json"
        return path if path.is_file() else None


def is_ensemble(path: Path) -> bool:
    """Whether a folder is that of an ensemble of settings."""
    return Path(path).resolve().parent.name == "ensembles"


def find_ensemble(folder: Path, study_file: Path | None) -> EnsembleRuns:
    """The settings of an ensemble, as its study file names them.

    Args:
        folder: results/STUDY/ensembles/NAME.

    Raises:
        UserError: the study file is not named, or of another study, or has no such ensemble; or a member is not trained
            on all of its folds, or of another kind than the first.
    """
    if study_file is None:
        raise UserError(f"{folder}: an ensemble of settings; name its study file, which says of which: --study FILE")
    study, results = load_study(study_file), Path(folder).resolve().parent.parent
    found = {ensemble.name: ensemble.members for ensemble in study.ensembles}
    if study.name != results.name or folder.name not in found:
        raise UserError(
            f"--study {study_file}: it is of the study {study.name} with the ensembles {', '.join(found) or 'none'}; "
            f"expected that of {results.name} with {folder.name}"
        )
    members = tuple(_whole(Path(folder).parent.parent / name, f"a member of {folder}") for name in found[folder.name])
    first = members[0].plan.preprocessing
    for runs in members[1:]:
        own = runs.plan.preprocessing
        if (own.channels, own.labels, own.regions) != (first.channels, first.labels, first.regions):
            raise UserError(f"{runs.setting}: it has other channels or labels than {members[0].setting}")
    return EnsembleRuns(folder=folder, members=members)


def find_runs(paths: Sequence[Path]) -> Runs:
    """The trained folds that folders name: results/STUDY/SETTING for all of a setting, or some of its fold-K.

    Raises:
        UserError: a folder is none of these, is not trained yet, or of another setting than the first one; it is a
            classifier, or an ensemble of settings (see `find_ensemble`); or a first stage of it lacks folds.
    """
    named = [_folds_named(Path(path)) for path in paths]
    settings = sorted({setting for setting, _ in named})
    if len(settings) > 1:
        raise UserError(
            f"{settings[0]} and {settings[1]} are two settings: a model is one setting with its folds; export each of "
            "them to a folder of its own"
        )
    setting, folds = settings[0], sorted({fold for _, folds in named for fold in folds}, key=str)
    task = task_of(setting / "plan.json", what="plan")
    if not task.labels_scans:
        raise UserError(
            f"{setting}: it is of {task.name}, of {task.unit}s; only models that segment scans are exported"
        )
    plan = load_plan(setting / "plan.json")
    if ALL in folds and len(folds) > 1:
        raise UserError(
            f"{setting}/fold-all: it is trained on all cases and no member of the cross-validation; export it alone, "
            "or the folds without it"
        )
    for fold in folds:
        if not (setting / f"fold-{fold}" / "model.pt").is_file():
            raise UserError(
                f"{setting}/fold-{fold}: there is no model.pt, so it is not trained yet; wait for it, or name the "
                "folds to export"
            )
    return Runs(
        setting=setting, plan=plan, folds=tuple(folds), is_whole=folds == _all_folds(setting),
        first_stage=tuple(_first_stage(setting, name) for name in plan.stage1),
    )  # fmt: skip


def _first_stage(setting: Path, name: str) -> Runs:
    """All folds of a setting that comes before another one."""
    first = setting.parent / name
    if not (first / "plan.json").is_file():
        raise UserError(
            f"{setting}: it is the second stage of a cascade after {name}, and there is no {first / 'plan.json'}; both "
            "stages are exported together, from the folder of their study"
        )
    return _whole(first, f"the first stage of {setting.name}")


def _whole(setting: Path, part: str) -> Runs:
    """A setting with all of its folds, as a part of a model."""
    runs = find_runs([setting])
    if left_out := folds_left_out(runs):
        raise UserError(
            f"{setting}: it is {part}, and its fold {left_out[0]} is not trained; it is exported with all of its folds"
        )
    return runs


def folds_left_out(runs: Runs) -> tuple[int, ...]:
    """Folds of the study's splits.json that are not among the runs; none where there is no such file."""
    if ALL in runs.folds:
        return ()
    path = runs.setting.parent / "splits.json"
    every = range(len(load_splits(path).folds)) if path.is_file() else ()
    return tuple(fold for fold in every if fold not in runs.folds)


def fold_facts(runs: Runs, fold: int | str) -> FoldFacts:
    """What manifest.json says of a fold.

    Raises:
        UserError: the file is missing, or not what training writes.
    """
    path = runs.folder(fold) / "manifest.json"
    manifest = read_json(path, what="manifest of a run")
    try:
        return _fold_facts(manifest, fold)
    except (KeyError, TypeError, AttributeError) as fault:
        raise UserError(
            f"{path}: damaged, or of another version of megavoxel ({fault}); train the fold again"
        ) from None


def dataset_facts(name: str, file: Path | None) -> DatasetFacts:
    """What a dataset file says of the dataset; without one, the file of that name in config/datasets.

    Raises:
        UserError: the file is of another dataset.
    """
    dataset = load_dataset(file) if file else _shipped_dataset(name)
    if dataset is None:
        print(
            f"note: there is no file of the dataset {name} in {DATASETS}: its licence and reference are left out; "
            "name it by --dataset FILE",
            flush=True,
        )
        return DatasetFacts(name=name)
    if dataset.name != name:
        raise UserError(f"--dataset {file}: it is the file of {dataset.name}; the model was trained on {name}")
    return DatasetFacts(
        name=name,
        description=dataset.description,
        licence=dataset.licence,
        reference=dataset.reference,
    )


def score_means(results: Path, name: str, folds: Sequence[int | str], *, is_whole: bool) -> tuple[Mean, ...]:
    """Means of the study's scores.csv: of the validation cases of some folds of a setting or an ensemble and, where
    these are all of its folds, of the test cases. None where nothing is scored yet.
    """
    path = results / "scores.csv"
    if not path.is_file():
        print(f"note: there is no {path}: the model goes without scores", flush=True)
        return ()
    table = read_scores(path)
    own = table[table["setting"] == name]
    chosen = own[(own["split"] == "validation") & own["fold"].isin(map(str, folds))]
    parts = [("validation", chosen)] + ([("test", own[own["split"] == "test"])] if is_whole else [])
    return tuple(mean for split, part in parts for mean in _means(split, part, _tolerances(results)))


def _means(split: str, scores: Any, tolerances: dict[str, float]) -> list[Mean]:
    means = []
    for metric in metrics_in(scores["metric"]):
        own = scores[scores["metric"] == metric.name].dropna(subset="value")
        groups = [(None, own.groupby("case")["value"].mean())]
        groups += [(str(label), part["value"]) for label, part in own.groupby("label", sort=False)]
        for label, values in groups:
            if len(values) == 0:
                continue
            stated = {tolerances.get(label)} if label else set(tolerances.values())
            tolerance = stated.pop() if metric.takes_tolerance and len(stated) == 1 else None
            means.append(
                Mean(
                    split=split, label=label, metric=metric.name, mean=float(values.mean()), cases=len(values),
                    tolerance_mm=tolerance,
                )
            )  # fmt: skip
    return means


def _tolerances(results: Path) -> dict[str, float]:
    """Tolerances of NSD in mm, by label."""
    from megavoxel.datasets.cases import load_cases

    path = results / "cases.json"
    return scored_tolerances(results, load_cases(path) if path.is_file() else None)


def _folds_named(path: Path) -> tuple[Path, list[int | str]]:
    """The setting's folder and the folds that a folder stands for."""
    if (path / "plan.json").is_file() and _all_folds(path):
        return path, _all_folds(path)
    number = path.name.removeprefix("fold-")
    is_fold = path.name != number and (number.isdecimal() or number == ALL)
    if path.is_dir() and is_fold and (path.parent / "plan.json").is_file():
        return path.parent, [ALL if number == ALL else int(number)]
    if is_ensemble(path):
        raise UserError(f"{path}: an ensemble of settings is a model of its own; export it alone")
    raise UserError(
        f"{path}: no trained run; expected results/STUDY/SETTING with a plan.json and fold-K/model.pt, or such a fold-K"
    )


def _all_folds(setting: Path) -> list[int | str]:
    """The folds that are there; where there are none, the network of all cases if that is."""
    numbers = (path.name.removeprefix("fold-") for path in setting.glob("fold-*") if path.is_dir())
    return sorted(int(number) for number in numbers if number.isdecimal()) or (
        [ALL] if (setting / "fold-all").is_dir() else []
    )


def _fold_facts(manifest: dict[str, Any], fold: int | str) -> FoldFacts:
    hardware = manifest["hardware"]
    return FoldFacts(
        fold=fold,
        weights=f"fold-{fold}.pt",
        training_cases=len(manifest["data"]["training"]),
        validation_cases=len(manifest["data"]["validation"]),
        epochs=manifest["epochs"],
        hours=round(manifest["seconds"] / 3600, 4),
        seed=manifest["seed"],
        precision=manifest["precision"]["name"],
        parameters=manifest["parameters"],
        data_sha256=manifest["data"]["checksums_sha256"],
        hardware=str(hardware.get("gpu") or hardware["processor"]),
        version=manifest["code"]["version"],
        commit=manifest["code"]["commit"],
        versions=manifest["versions"],
    )


def _shipped_dataset(name: str) -> Dataset | None:
    for path in sorted(DATASETS.glob("*.yaml")):
        values = read_yaml(path)
        if isinstance(values, dict) and values.get("name") == name:
            return load_dataset(path)
    return None
