"""A model as one self-contained directory: model.json, plan.json, a file per network, and a card to read."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from megavoxel.errors import expect
from megavoxel.evaluation.postprocessing import Postprocessing, load_postprocessing
from megavoxel.files import atomic_directory, file_sha256, write_text
from megavoxel.models.description import (
    DatasetFacts,
    ModelDescription,
    load_description,
    model_card,
    require_as_exported,
    require_unchanged,
    save_description,
)
from megavoxel.models.gather import Runs, fold_facts, score_means
from megavoxel.models.network_files import FORMATS
from megavoxel.planning.plan import Plan, load_plan

DESCRIPTION, PLAN, POSTPROCESSING, CARD = "model.json", "plan.json", "postprocessing.json", "README.md"
FIRST_STAGE = "first_stage"
"""Folder in a cascade with the models of its first stage, each in the folder of its setting."""
USAGE = """\
    megavoxel predict --model DIR --input SCAN... --output FOLDER

where DIR is this directory. Scans are read in NIfTI, NRRD, MetaImage and DICOM. The label map comes back on the scan's
own grid."""


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
    postprocessing: Postprocessing | None
    first_stage: tuple[Model, ...] = ()
    """Models whose label maps the networks are given, in the order of the plan's `stage1`."""

    @property
    def weights(self) -> list[Path]:
        """Files of the folds."""
        return [self.folder / fold.weights for fold in self.description.folds]

    @property
    def identity(self) -> dict[str, str]:
        """What a folder of label maps records of the model that made them."""
        parts = {f"{FIRST_STAGE}/{name}": own for name, own in self.description.first_stage.items()}
        return {"model": self.description.name, **self.description.sha256, **parts}


def describe(runs: Runs, dataset: DatasetFacts, authors: str) -> ModelDescription:
    """The description of a model made of runs, without the checksums of its files.

    Raises:
        UserError: a file of the runs is missing or damaged.
    """
    plan, rules = runs.plan, runs.postprocessing
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
        scores=score_means(runs),
        postprocessed=rules is not None and load_postprocessing(rules).changes_anything,
        authors=authors,
        sha256={},
    )


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
        for fold in description.folds:
            networks.write(runs.plan, runs.folder(fold.fold) / "model.pt", folder / fold.weights)
        sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        firsts = {
            own.setting.name: _write_part(own, description, folder / FIRST_STAGE, kind) for own in runs.first_stage
        }
        description = replace(description, sha256=sums, first_stage=firsts)
        save_description(folder / DESCRIPTION, description)
        write_text(folder / CARD, model_card(description, runs.plan, USAGE))


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
    names = {*description.sha256, PLAN, *(fold.weights for fold in description.folds)}
    files = [folder / name for name in sorted(names | ({POSTPROCESSING} if is_postprocessed else set()))]
    require_as_exported(folder / DESCRIPTION, description, files)
    plan, firsts = load_plan(folder / PLAN), description.first_stage
    expect(tuple(firsts) == plan.stage1, f"{folder / DESCRIPTION}: first_stage", f"{list(plan.stage1)}, as in {PLAN}")
    return Model(
        folder=folder,
        description=description,
        plan=plan,
        postprocessing=load_postprocessing(rules) if is_postprocessed else None,
        first_stage=tuple(_load_part(folder / FIRST_STAGE / name, expected) for name, expected in firsts.items()),
    )


def _load_part(folder: Path, sha256: str) -> Model:
    require_unchanged(folder / DESCRIPTION, sha256)
    return load_model(folder)
