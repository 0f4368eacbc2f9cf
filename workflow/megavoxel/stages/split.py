"""Divide the training cases into folds: random ones of equal size, or those of a ready-made file."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--cases", type=Path, required=True, help="cases.json of the dataset")
    parser.add_argument("--folds", type=int, required=True, help="number of folds")
    parser.add_argument("--seed", type=int, required=True, help="seed of the random division")
    parser.add_argument("--splits", type=Path, help="ready-made folds: nnU-Net's splits_final.json, or a splits.json")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="as of 'evaluate': ends with an error if a label does not exist"
    )
    parser.add_argument("--output", type=Path, required=True, help="where splits.json goes")


def run(arguments: argparse.Namespace) -> None:
    """Writes splits.json."""
    from megavoxel.datasets.cases import load_cases
    from megavoxel.evaluation.choice import parse_choice
    from megavoxel.planning.splits import save_splits
    from megavoxel.tasks import task_of

    task = task_of(arguments.cases, what="list of cases")
    if arguments.metrics:
        parse_choice(arguments.metrics, load_cases(arguments.cases).structures)
    splits = task.split(arguments.cases, arguments.folds, arguments.seed, arguments.splits)
    save_splits(arguments.output, splits)
    for number, fold in enumerate(splits.folds):
        print(f"fold {number}: {len(fold.training)} training, {len(fold.validation)} validation {task.unit}s")
