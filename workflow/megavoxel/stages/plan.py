"""Choose patch, batch, network and parallelism of a setting: nnU-Net's rules, forecasts, and what the study fixes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from megavoxel.config.hardware import Device, load_device
from megavoxel.config.records import from_plain
from megavoxel.config.study import Parallel, Setting
from megavoxel.config.study_file import load_study, with_memory
from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.errors import UserError
from megavoxel.planning.plan import Plan
from megavoxel.stages.plan_preprocessing import parse_definition


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--cases", type=Path, required=True, help="cases.json of the dataset")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--preprocessing-plan", type=Path, help="plan of the setting's preprocessing")
    task.add_argument("--splits", type=Path, help="splits.json, for a setting of a classification study")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--study", type=Path, help="study file; with --setting")
    source.add_argument("--definition", help="the setting as JSON; with --study-name and --seed")
    parser.add_argument("--setting", help="name of the setting in the study file")
    parser.add_argument("--hardware", type=Path, help="hardware file that describes the study's device, with --study")
    parser.add_argument("--study-name", help="name of the study, with --definition")
    parser.add_argument("--seed", type=int, help="seed of the study, with --definition")
    parser.add_argument("--folds", type=int, help="folds of the study, with --definition")
    parser.add_argument("--device", help="the study's device as JSON, with --definition")
    parser.add_argument("--dataset", help="name that the dataset of the cases must have, with --definition")
    parser.add_argument("--output", type=Path, required=True, help="where plan.json goes")


def run(arguments: argparse.Namespace) -> None:
    """Writes plan.json and prints its notes."""
    if arguments.splits is not None:
        from megavoxel.stages.classification.plan import run_plan

        run_plan(arguments)
        return
    from megavoxel.planning.plan import load_preprocessing_plan, save_plan
    from megavoxel.planning.planner import plan_setting

    cases, request = load_cases(arguments.cases), _request(arguments)
    if request.dataset not in (None, cases.dataset):
        raise UserError(f"--dataset {request.dataset}: {arguments.cases} is of dataset {cases.dataset}")
    preprocessing = load_preprocessing_plan(arguments.preprocessing_plan)
    plan = plan_setting(cases, preprocessing, request.setting, study=request.study, seed=request.seed)
    if request.device is not None:
        plan = _on_device(plan, request, request.device, cases)
    elif request.setting.parallel != Parallel():
        raise UserError(
            f"setting {plan.setting}: parallel is chosen or checked for a device; give --hardware with --study, or "
            "--device and --folds with --definition"
        )
    save_plan(arguments.output, plan)
    print("\n".join(plan.notes))


def _on_device(plan: Plan, request: Request, device: Device, cases: Cases) -> Plan:
    """The plan with its parallelism, a note where it does not fit, and what its jobs need."""
    from megavoxel.forecast.duration import Workload
    from megavoxel.forecast.needs import needs_of
    from megavoxel.forecast.table import spread

    own = request.setting.folds
    workload = Workload(
        training_cases=len(cases.of_split("training")),
        folds=request.folds,
        own_folds=None if own is None else len(own),
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
        device = from_plain(Device, parse_definition(arguments.device, option="--device"), where="--device")
    return Request(
        setting=from_plain(Setting, parse_definition(arguments.definition), where="--definition"),
        study=arguments.study_name,
        seed=arguments.seed,
        folds=arguments.folds or 1,
        device=device,
        dataset=arguments.dataset,
    )
