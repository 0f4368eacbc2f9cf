"""A model as one self-contained directory: model.json, plan.json, a file per network, and a card to read."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from megavoxel.errors import expect
from megavoxel.evaluation.postprocessing import Postprocessing, load_postprocessing
from megavoxel.files import atomic_directory, file_sha256, write_text
from megavoxel.inference.temperature import load_temperature
from megavoxel.models.description import (
    DatasetFacts,
    ModelDescription,
    load_description,
    model_card,
    require_as_exported,
    require_unchanged,
    save_description,
)
from megavoxel.models.gather import EnsembleRuns, Runs, fold_facts, score_means
from megavoxel.models.network_files import FORMATS
from megavoxel.planning.plan import Plan, load_plan

DESCRIPTION, PLAN, POSTPROCESSING, CARD = "model.json", "plan.json", "postprocessing.json", "README.md"
TEMPERATURE = "temperature.json"
FIRST_STAGE = "first_stage"
"""Folder in a cascade with the models of its first stage, each in the folder of its setting."""
MEMBERS = "members"
"""Folder in an ensemble of settings with their models, in the same way."""
USAGE = """\
    megavoxel predict --model DIR --input SCAN... --output FOLDER

where DIR is this directory. Scans are read in NIfTI, NRRD, MetaImage, TIFF and DICOM. The label map comes back on the
scan's own grid."""


def next_command(folder: Path) -> str:
    """What to call with the directory of a model, for the end of a stage that wrote it."""
    model = shlex.quote(str(folder))
    return f"next:\n  megavoxel predict --model {model} --input SCANS --output labelled --pictures"


@dataclass(frozen=True, kw_only=True)
class Model:
    """An exported model."""

    folder: Path
    description: ModelDescription
    plan: Plan
    """The plan of the networks; for an ensemble of settings that of its first member, whose channels and labels all
    have."""
    postprocessing: Postprocessing | None
    temperature: float = 1.0
    """What logits are divided by before they become probabilities; no label changes by it."""
    first_stage: tuple[Model, ...] = ()
    """Models whose label maps the networks are given, in the order of the plan's `stage1`."""
    members: tuple[Model, ...] = ()
    """Models whose probabilities are averaged, where this is an ensemble of settings, without networks of its own."""

    @property
    def weights(self) -> list[Path]:
        """Files of the folds."""
        return [self.folder / fold.weights for fold in self.description.folds]

    @property
    def identity(self) -> dict[str, str]:
        """What a folder of label maps records of the model that made them."""
        parts = ((FIRST_STAGE, self.description.first_stage), (MEMBERS, self.description.members))
        sums = {f"{place}/{name}": own for place, models in parts for name, own in models.items()}
        return {"model": self.description.name, **self.description.sha256, **sums}


def describe(runs: Runs, dataset: DatasetFacts, authors: str) -> ModelDescription:
    """The description of a model made of runs, without the checksums of its files.

    Raises:
        UserError: a file of the runs is missing or damaged.
    """
    plan = runs.plan
    return ModelDescription(
        name=f"{plan.study}-{plan.setting}",
        study=plan.study,
        setting=plan.setting,
        channels=plan.preprocessing.channels,
        modalities=tuple(plan.preprocessing.normalisation_by_modality),
        labels=plan.preprocessing.labels,
        regions=plan.preprocessing.regions,
        dataset=dataset,
        folds=tuple(fold_facts(runs, fold) for fold in runs.folds),
        scores=score_means(runs.setting.parent, runs.setting.name, runs.folds, is_whole=runs.is_whole),
        postprocessed=_changes_anything(runs.postprocessing),
        authors=authors,
        sha256={},
    )


def describe_ensemble(ensemble: EnsembleRuns, dataset: DatasetFacts, authors: str) -> ModelDescription:
    """The description of an ensemble of settings, without the checksums of its files.

    Raises:
        UserError: a file is missing or damaged.
    """
    first, name = ensemble.members[0], ensemble.folder.name
    alone = describe(first, dataset, authors)
    return replace(
        alone,
        name=f"{alone.study}-{name}",
        setting=name,
        folds=(),
        scores=score_means(first.setting.parent, name, first.folds, is_whole=True),
        postprocessed=_changes_anything(ensemble.postprocessing),
    )


def _changes_anything(rules: Path | None) -> bool:
    return rules is not None and load_postprocessing(rules).changes_anything


def write_model(runs: Runs, description: ModelDescription, target: Path, *, kind: str = "model") -> None:
    """Writes the directory of a model, whole or not at all.

    Args:
        kind: of the files of its networks, by `FORMATS`.

    Raises:
        UserError: there is content at `target`; weights are damaged or of another plan; or the network cannot be
            written in this format, or the packages for it are not there.
    """
    networks = FORMATS[kind]
    networks.prepare(runs.plan)
    named = [Path(fold.weights).with_suffix(networks.suffix).name for fold in description.folds]
    folds = tuple(replace(fold, weights=name) for fold, name in zip(description.folds, named, strict=True))
    description = replace(description, folds=folds)
    with atomic_directory(target) as folder:
        shutil.copyfile(runs.setting / "plan.json", folder / PLAN)
        if runs.postprocessing:
            shutil.copyfile(runs.postprocessing, folder / POSTPROCESSING)
        if runs.temperature:
            shutil.copyfile(runs.temperature, folder / TEMPERATURE)
        for fold in description.folds:
            networks.write(runs.plan, runs.folder(fold.fold) / "model.pt", folder / fold.weights)
        sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        firsts = {
            own.setting.name: _write_part(own, description, folder / FIRST_STAGE, kind) for own in runs.first_stage
        }
        description = replace(description, sha256=sums, first_stage=firsts)
        save_description(folder / DESCRIPTION, description)
        write_text(folder / CARD, model_card(description, runs.plan, USAGE))


def write_ensemble(ensemble: EnsembleRuns, description: ModelDescription, target: Path, *, kind: str = "model") -> None:
    """Writes the directory of an ensemble of settings, each of which is a model in it; as `write_model`."""
    with atomic_directory(target) as folder:
        if ensemble.postprocessing:
            shutil.copyfile(ensemble.postprocessing, folder / POSTPROCESSING)
        sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        members = {own.setting.name: _write_part(own, description, folder / MEMBERS, kind) for own in ensemble.members}
        description = replace(description, sha256=sums, members=members)
        save_description(folder / DESCRIPTION, description)
        write_text(folder / CARD, model_card(description, ensemble.members[0].plan, USAGE))


def _write_part(runs: Runs, whole: ModelDescription, folder: Path, kind: str) -> str:
    """Writes a model that is part of another one; returns the checksum of its description."""
    target = folder / runs.setting.name
    write_model(runs, describe(runs, whole.dataset, whole.authors), target, kind=kind)
    return file_sha256(target / DESCRIPTION)


def load_model(folder: Path) -> Model:
    """Reads the directory of a model; its weights are read later, and held to their checksums here.

    Raises:
        UserError: it is no such directory, or a file of it is missing, damaged or changed.
    """
    folder = Path(folder)
    description = load_description(folder / DESCRIPTION)
    rules = folder / POSTPROCESSING
    is_postprocessed = description.postprocessed or POSTPROCESSING in description.sha256 or rules.exists()
    names = {*description.sha256, *(fold.weights for fold in description.folds)}
    names |= set() if description.members else {PLAN}
    files = [folder / name for name in sorted(names | ({POSTPROCESSING} if is_postprocessed else set()))]
    require_as_exported(folder / DESCRIPTION, description, files)
    kept = load_postprocessing(rules) if is_postprocessed else None
    members = tuple(_load_part(folder / MEMBERS / name, own) for name, own in description.members.items())
    if members:
        plan = members[0].plan
        return Model(folder=folder, description=description, plan=plan, postprocessing=kept, members=members)
    plan, firsts = load_plan(folder / PLAN), description.first_stage
    expect(tuple(firsts) == plan.stage1, f"{folder / DESCRIPTION}: first_stage", f"{list(plan.stage1)}, as in {PLAN}")
    return Model(
        folder=folder,
        description=description,
        plan=plan,
        postprocessing=kept,
        temperature=load_temperature(folder / TEMPERATURE).temperature if TEMPERATURE in description.sha256 else 1.0,
        first_stage=tuple(_load_part(folder / FIRST_STAGE / name, expected) for name, expected in firsts.items()),
    )


def _load_part(folder: Path, sha256: str) -> Model:
    require_unchanged(folder / DESCRIPTION, sha256)
    return load_model(folder)
