"""New scans that are labelled by a model with parts: the stages of a cascade, the settings of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.evaluation.postprocessing import Postprocessing
from megavoxel.files import scratch_directory
from megavoxel.models.directory import FIRST_STAGE, Model
from megavoxel.models.label import Labelling, NotLabelled, Steps, Turn, gathered, unfinished
from megavoxel.models.scans import Scan
from megavoxel.models.volumes import collect_volumes
from megavoxel.planning.patch import on_one_device
from megavoxel.planning.plan import Plan

if TYPE_CHECKING:  # PyTorch is loaded when there is something to predict
    from megavoxel.inference.ensemble import Member

Run = Callable[[Plan, Sequence[Path], Sequence[Scan], Labelling], None]
"""Labels scans by the networks of a plan, whose files are named."""
AT_ONCE = 8
"""Scans of which an ensemble keeps the logits of all members at once."""


def label_by_model(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> None:
    """Labels scans by a model; those that have their label map are skipped.

    Raises:
        NotLabelled: the faults of all scans that could not be labelled, after the others were.
        UserError: the folder has label maps of another model, or as `run` says.
    """
    labelling = replace(labelling, first_stage=_first_stage_folders(model, labelling))

    def work(left: Sequence[Scan]) -> None:
        if model.first_stage or model.members:
            _require_networks(model)  # before anything is written
        _label(model, left, labelling, run)

    _label_unfinished(scans, labelling, work)


def label_by_networks(
    plan: Plan, weights: Sequence[Path], scans: Sequence[Scan], labelling: Labelling, run: Run
) -> None:
    """Labels scans by the networks of a plan; otherwise as `label_by_model`."""
    _label_unfinished(scans, labelling, lambda left: run(plan, weights, left, labelling))


def _label_unfinished(scans: Sequence[Scan], labelling: Labelling, work: Callable[[Sequence[Scan]], None]) -> None:
    left = unfinished(scans, labelling)
    if left:
        work(left)
    elif labelling.pictures:  # a run that was killed may have left it out
        collect_volumes(labelling.output)


def _first_stage_folders(model: Model, labelling: Labelling) -> tuple[Path, ...]:
    """Where the label maps of a first stage stay, for a command that goes on after an interruption."""
    return tuple(labelling.output / FIRST_STAGE / first.folder.name for first in model.first_stage)


def _label(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> None:
    if model.members:
        _label_by_ensemble(model, scans, labelling, run)
    elif model.first_stage:
        _label_by_cascade(model, scans, labelling, run)
    else:
        run(model.plan, model.weights, scans, labelling)


def _label_by_part(part: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> dict[str, str]:
    """Labels scans by a part of a model; what is wrong with those that it could not label, by case."""
    part = replace(part, plan=on_one_device(part.plan))  # several devices would each run the whole command
    labelling = replace(labelling, first_stage=_first_stage_folders(part, labelling))
    return _faults_of(lambda left: _label(part, left, labelling, run), unfinished(scans, labelling))


def _faults_of(work: Callable[[Sequence[Scan]], None], scans: Sequence[Scan]) -> dict[str, str]:
    """What is wrong with scans that could not be labelled, by case."""
    try:
        if scans:
            work(scans)
    except NotLabelled as error:
        return error.faults
    return {}


def _label_by_cascade(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> None:
    """Each first stage labels all scans, as it labelled the test cases of its study: without its post-processing."""
    labelling.note({})
    faults: dict[str, str] = {}
    for first, folder in zip(model.first_stage, labelling.first_stage, strict=True):
        print(f"first stage {first.folder.name}", flush=True)
        own = Labelling(output=folder, model=first.identity, postprocessing=None, reading=labelling.reading)
        faults |= _label_by_part(first, scans, own, run)
    plan = on_one_device(model.plan)
    faults |= _faults_of(lambda left: run(plan, model.weights, left, labelling), _without(faults, scans))
    if faults:
        raise NotLabelled(faults, scans)


def _label_by_ensemble(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> None:
    """The members label some scans, then their probabilities are averaged, and so on."""
    labelling.note({})
    faults: dict[str, str] = {}
    for first in range(0, len(scans), AT_ONCE):
        faults |= _label_at_once(model, scans[first : first + AT_ONCE], labelling, run)
    if faults:
        raise NotLabelled(faults, scans)


def _label_at_once(model: Model, scans: Sequence[Scan], labelling: Labelling, run: Run) -> dict[str, str]:
    from megavoxel.inference.ensemble import Member

    faults, members = {}, []
    with scratch_directory(labelling.output) as scratch:
        for part in model.members:
            name = part.folder.name
            print(f"member {name}", flush=True)
            own = Labelling(
                output=scratch / "maps" / name, logits=scratch / "logits" / name, model=part.identity,
                postprocessing=None, reading=labelling.reading,
            )  # fmt: skip
            faults |= _label_by_part(part, _without(faults, scans), own, run)
            rules = part.postprocessing or Postprocessing()
            members.append(Member(name=name, logits=own.logits, predictions=None, postprocessing=rules))
        left = _without(faults, scans)

        def average(left: Sequence[Scan]) -> None:
            with gathered(left, labelling) as gather:
                _MeanSteps(
                    plan=model.plan, labelling=labelling, scratch=scratch, done=gather, members=tuple(members)
                ).run(left)

        return faults | _faults_of(average, left)


def _without(faults: dict[str, str], scans: Sequence[Scan]) -> list[Scan]:
    return [scan for scan in scans if scan.case not in faults]


def _require_networks(model: Model) -> None:
    """Refuses a model of which some networks cannot be run."""
    from megavoxel.inference.predict import require_weights

    for part in (*model.first_stage, *model.members):
        _require_networks(part)
    require_weights(model.plan, model.weights)


@dataclass(frozen=True, kw_only=True)
class _MeanSteps(Steps):
    """The steps of scans whose logits the members of an ensemble have left."""

    members: tuple[Member, ...]

    def _predict(self, turn: Turn) -> None:
        """Nothing is left to predict."""

    def _write_maps(self, turn: Turn) -> None:
        from megavoxel.inference.ensemble import open_mean
        from megavoxel.inference.logits import write_label_map
        from megavoxel.models.outputs import write_probabilities

        mean = open_mean(self.members, turn.scan.case)
        write_label_map(turn.folder, mean.header, mean.probabilities(), probable=True)
        if path := self.labelling.probability_map(turn.scan):
            write_probabilities(path, mean.header, mean.probabilities(), turn.folder, turn.volumes[0])
