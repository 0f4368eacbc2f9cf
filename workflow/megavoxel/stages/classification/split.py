"""Folds of images."""

from __future__ import annotations

import argparse

from megavoxel.errors import UserError
from megavoxel.planning.splits import import_splits, save_splits
from megavoxel.tasks.classification.cases import load_image_cases
from megavoxel.tasks.classification.splits import make_image_splits, require_whole_patients


def run_split(arguments: argparse.Namespace) -> None:
    """Writes splits.json, if there is anything to score by it."""
    cases = load_image_cases(arguments.cases)
    if arguments.folds == 1 and not cases.of_split("test"):
        raise UserError(
            f"dataset {cases.dataset}: it has no test images, and with one fold nothing is validated: no image would "
            "be scored; give the study 'folds' of 2 or more, or the dataset file 'classification.test_per_class'"
        )
    if arguments.splits is None:
        splits = make_image_splits(cases, arguments.folds, arguments.seed)
    else:
        splits = import_splits(arguments.splits, cases, arguments.folds)
        require_whole_patients(cases, splits, source=arguments.splits)
    save_splits(arguments.output, splits)
    for number, fold in enumerate(splits.folds):
        print(f"fold {number}: {len(fold.training)} training, {len(fold.validation)} validation images")
