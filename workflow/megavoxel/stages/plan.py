"""Choose patch, batch, network and parallelism of a setting: nnU-Net's rules, forecasts, and what the study fixes."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    from megavoxel.tasks import task_of

    print("\n".join(task_of(arguments.cases, what="list of cases").plan(arguments)))
