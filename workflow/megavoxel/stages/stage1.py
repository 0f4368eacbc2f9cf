"""Bring the first stage's label maps to the grid of the second stage of a cascade, as one array per case."""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.files import atomic_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--plan", type=Path, required=True, help="plan.json of the second stage")
    parser.add_argument("--preprocessed", type=Path, required=True, help="folder of its preprocessed cases")
    parser.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="label maps CASE.nii.gz of each first-stage setting, in the order of the setting's 'stage1'",
    )
    parser.add_argument("--splits", type=Path, required=True, help="splits.json of the study")
    parser.add_argument("--split", choices=["validation", "test"], required=True, help="which cases")
    parser.add_argument("--fold", type=int, help="the fold of --split validation")
    parser.add_argument("--output", type=Path, required=True, help="folder for the arrays CASE.stage1.b2nd")
    parser.add_argument("--processes", type=int, default=1, help="cases worked on at once; default: 1")


def run(arguments: argparse.Namespace) -> None:
    """Stores the first-stage classes; the folder appears when all cases are done."""
    from megavoxel.planning.plan import load_plan
    from megavoxel.planning.splits import cases_of, load_splits
    from megavoxel.preprocessing.first_stage import store_first_stage

    plan = load_plan(arguments.plan)
    names = cases_of(load_splits(arguments.splits), arguments.split, arguments.fold)
    with atomic_directory(arguments.output) as output:
        store_first_stage(
            names,
            plan=plan,
            preprocessed=arguments.preprocessed,
            predictions=arguments.predictions,
            output=output,
            processes=arguments.processes,
        )
