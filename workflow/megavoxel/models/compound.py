"""New scans that are labelled by a model with parts: the first stage of a cascade comes before the second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from megavoxel.models.directory import FIRST_STAGE, Model
from megavoxel.models.label import Labelling, NotLabelled, unfinished
from megavoxel.models.scans import Scan
from megavoxel.models.volumes import collect_volumes
from megavoxel.planning.patch import on_one_device
from megavoxel.planning.plan import Plan

Run = Callable[[Plan, Sequence[Path], Sequence[Scan], Labelling], None]
"""Labels scans by the networks of a plan, whose files are named."""


def label_by_model(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> None:
    """Labels scans by a model; those that have their label map are skipped.

    Raises:
        NotLabelled: the faults of all scans that could not be labelled, after the others were.
        UserError: the folder has label maps of another model, or as `run` says.
    """
    if model.first_stage:
        _label_by_cascade(model, scans, labelling, run)
    else:
        label_by_networks(model.plan, model.weights, scans, labelling, run)


def label_by_networks(
    plan: Plan, weights: Sequence[Path], scans: Sequence[Scan], labelling: Labelling, run: Run
) -> None:
    """Labels scans by the networks of a plan; those that have their label map are skipped.

    Raises:
        NotLabelled: the faults of all scans that could not be labelled, after the others were.
        UserError: the folder has label maps of another model, or as `run` says.
    """
    left = unfinished(scans, labelling)
    if left:
        run(plan, weights, left, labelling)
    elif labelling.pictures:  # a run that was killed may have left it out
        collect_volumes(labelling.output)


def _label_by_cascade(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> None:
    """Each first stage labels all scans, as it labelled the test cases of its study: without its post-processing.

    Its label maps stay in `first_stage/SETTING` of the output, for a command that goes on after an interruption.
    """
    folders = tuple(labelling.output / FIRST_STAGE / first.folder.name for first in model.first_stage)
    labelling = replace(labelling, first_stage=folders)
    left = unfinished(scans, labelling)
    if not left:
        return
    _require_networks(model)
    labelling.note({})
    faults: dict[str, str] = {}
    for first, folder in zip(model.first_stage, folders, strict=True):
        print(f"first stage {first.folder.name}: {folder}", flush=True)
        own = Labelling(output=folder, model=first.identity, postprocessing=None, reading=labelling.reading)
        faults |= _faults_of(lambda: label_by_model(first, left, own, run))  # noqa: B023
    labelled = [scan for scan in left if scan.case not in faults]
    plan = on_one_device(model.plan)
    faults |= _faults_of(lambda: run(plan, model.weights, labelled, labelling) if labelled else None)
    if faults:
        raise NotLabelled(faults, left)


def _require_networks(model: Model) -> None:
    """Refuses, before anything is written, a model of which some networks cannot be run."""
    from megavoxel.inference.predict import require_weights

    for first in model.first_stage:
        _require_networks(first)
    require_weights(model.plan, model.weights)


def _faults_of(work: Callable[[], None]) -> dict[str, str]:
    """What is wrong with scans that could not be labelled, by case."""
    try:
        work()
    except NotLabelled as error:
        return error.faults
    return {}
