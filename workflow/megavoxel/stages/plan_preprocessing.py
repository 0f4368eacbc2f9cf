"""Choose target spacing, axis order and normalisation of the cases: nnU-Net's rules, and what the study fixes."""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.config.records import from_plain
from megavoxel.config.setting import Preprocessing
from megavoxel.config.study_file import load_study
from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.files import parse_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--cases", type=Path, required=True, help="cases.json of the dataset")
    parser.add_argument("--fingerprint", type=Path, required=True, help="fingerprint.json of the dataset")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--study", type=Path, help="study file; with --setting")
    source.add_argument("--definition", help="the 'preprocessing' keys of a setting as JSON")
    parser.add_argument("--setting", help="the setting of the study whose 'preprocessing' keys count")
    parser.add_argument("--output", type=Path, required=True, help="where the plan goes")


def run(arguments: argparse.Namespace) -> None:
    """Writes the preprocessing plan and prints its notes."""
    from megavoxel.planning.fingerprint import load_fingerprint
    from megavoxel.planning.plan import save_plan
    from megavoxel.planning.planner import plan_preprocessing

    cases, fingerprint = load_cases(arguments.cases), load_fingerprint(arguments.fingerprint)
    plan = plan_preprocessing(cases, fingerprint, _definition(arguments))
    save_plan(arguments.output, plan)
    print("\n".join(plan.notes))


def _definition(arguments: argparse.Namespace) -> Preprocessing:
    if arguments.definition is not None:
        return from_plain(Preprocessing, parse_json(arguments.definition, option="--definition"), where="--definition")
    study = load_study(arguments.study)
    names = [setting.name for setting in study.settings]
    if arguments.setting not in names:
        raise UserError(f"--setting {arguments.setting}: {arguments.study} has: {', '.join(names)}")
    return study.setting(arguments.setting).preprocessing
