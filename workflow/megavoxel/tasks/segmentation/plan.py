"""Folds and plan of a segmentation setting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megavoxel.config.hardware import Device, load_device
from megavoxel.config.records import from_plain
from megavoxel.config.setting import ALL, Parallel, Setting
from megavoxel.config.study_file import load_study, planned_for, with_memory
from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.errors import UserError
from megavoxel.files import parse_json
from megavoxel.planning.plan import Plan, load_plan, load_preprocessing_plan, save_plan
from megavoxel.planning.splits import Splits, import_splits, make_splits


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be planned."""

    setting: Setting
    study: str
    """Name of the study."""
    seed: int
    folds: int
    """Folds of the study."""
    device: Device | None
    """What the setting is to run on; None: not known."""
    dataset: str | None = None
    """Name that the cases must have; None: any."""


def split(path: Path, folds: int, seed: int, ready_made: Path | None) -> Splits:
    """Folds of the cases in a cases.json: random ones of equal size, or those of a ready-made file.

    Raises:
        UserError: as `make_splits` and `import_splits`.
    """
    cases = load_cases(path)
    return make_splits(cases, folds, seed) if ready_made is None else import_splits(ready_made, cases, folds)


def plan(arguments: argparse.Namespace) -> Sequence[str]:
    """Writes the plan.json of a setting; returns its notes.

    Raises:
        UserError: the setting cannot be planned, or something that is needed is not given.
    """
    from megavoxel.planning.planner import plan_setting

    if arguments.preprocessing_plan is None:
        raise UserError(f"{arguments.cases}: these cases are to be segmented; give --preprocessing-plan")
    cases, request = load_cases(arguments.cases), _request(arguments)
    if request.dataset not in (None, cases.dataset):
        raise UserError(f"--dataset {request.dataset}: {arguments.cases} is of dataset {cases.dataset}")
    preprocessing = load_preprocessing_plan(arguments.preprocessing_plan)
    found = plan_setting(cases, preprocessing, request.setting, study=request.study, seed=request.seed)
    if found.start is not None:
        from megavoxel.training.start import require_fitting_start

        require_fitting_start(found, request.setting.folds or range(request.folds))
    if request.device is not None:
        found = _on_device(found, request, request.device, cases)
    elif request.setting.parallel != Parallel():
        raise UserError(
            f"setting {found.setting}: parallel is chosen or checked for a device; give --hardware with --study, or "
            "--device and --folds with --definition"
        )
    save_plan(arguments.output, found)
    return found.notes


def is_planned_alike(
    path: Path, cases: Path, preprocessing: Path, setting: Setting, *, study: str, seed: int, for_prediction: bool
) -> bool:
    """Whether a plan is what `plan` would write of a setting now, but for what depends on a device.

    Args:
        path: the plan.
        cases: cases.json.
        preprocessing: plan of the setting's preprocessing.
        setting: what the study says.
        study: its name.
        seed: of the study.
        for_prediction: whether keys count that only prediction reads.
    """
    from megavoxel.planning.planner import plan_setting

    try:
        plan = load_plan(path)
        found = load_cases(cases), load_preprocessing_plan(preprocessing)
        new = plan_setting(*found, setting, study=study, seed=seed)
    except UserError:
        return False
    return plan.prediction_hash == new.prediction_hash if for_prediction else plan.hash == new.hash


def _on_device(plan: Plan, request: Request, device: Device, cases: Cases) -> Plan:
    """The plan with its parallelism, a note where it does not fit, and what its jobs need."""
    from megavoxel.forecast.duration import Workload
    from megavoxel.forecast.needs import needs_of
    from megavoxel.forecast.table import spread

    own = None if request.setting.folds is None else [fold for fold in request.setting.folds if fold != ALL]
    workload = Workload(
        training_cases=len(cases.of_split("training")),
        folds=request.folds,
        own_folds=None if own is None else max(1, len(own)),
    )
    plan, choice = spread(plan, request.setting, device, workload)
    return replace(plan, needs=needs_of(plan, choice.forecast, workload, test_cases=len(cases.of_split("test"))))


def _request(arguments: argparse.Namespace) -> Request:
    if arguments.definition is not None:
        return _defined_request(arguments)
    study, device = load_study(arguments.study), None
    if arguments.hardware is not None:
        device = load_device(arguments.hardware, study.hardware, source=str(arguments.study))
        study = with_memory(study, device.memory_gib)
    names = [setting.name for setting in study.settings]
    if arguments.setting not in names:
        raise UserError(f"--setting {arguments.setting}: {arguments.study} has: {', '.join(names)}")
    return Request(
        setting=study.setting(arguments.setting), study=study.name, seed=study.seed, folds=study.folds, device=device
    )


def _defined_request(arguments: argparse.Namespace) -> Request:
    if arguments.study_name is None or arguments.seed is None:
        raise UserError("--definition: it needs --study-name and --seed beside it")
    if (arguments.device is None) != (arguments.folds is None):
        raise UserError("--device and --folds: give both or neither")
    device = None
    if arguments.device is not None:
        device = from_plain(Device, parse_json(arguments.device, option="--device"), where="--device")
    setting = from_plain(Setting, parse_json(arguments.definition, option="--definition"), where="--definition")
    if device is not None:
        setting = planned_for(setting, device.memory_gib)
    return Request(
        setting=setting,
        study=arguments.study_name,
        seed=arguments.seed,
        folds=arguments.folds or 1,
        device=device,
        dataset=arguments.dataset,
    )
