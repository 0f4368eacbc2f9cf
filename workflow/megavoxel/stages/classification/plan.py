"""The plan of a classification setting."""

from __future__ import annotations

import argparse
from dataclasses import replace

from megavoxel.config.classification import ClassifierSetting
from megavoxel.config.records import from_plain
from megavoxel.errors import UserError
from megavoxel.stages.plan_preprocessing import parse_definition
from megavoxel.tasks.classification.cases import load_image_cases
from megavoxel.tasks.classification.plan import check_images_suffice, classifier_plan, save_classifier_plan
from megavoxel.tasks.classification.splits import load_image_splits


def run_plan(arguments: argparse.Namespace) -> None:
    """Writes plan.json, if there are enough images for it in every fold."""
    if arguments.definition is None or arguments.study_name is None or arguments.seed is None:
        raise UserError("--splits: it needs --definition, --study-name and --seed beside it")
    cases, splits = load_image_cases(arguments.cases), load_image_splits(arguments.splits)
    if arguments.dataset not in (None, cases.dataset):
        raise UserError(f"--dataset {arguments.dataset}: {arguments.cases} is of dataset {cases.dataset}")
    setting = from_plain(ClassifierSetting, parse_definition(arguments.definition), where="--definition")
    plan = classifier_plan(
        setting, study=arguments.study_name, dataset=cases.dataset, classes=cases.classes, seed=arguments.seed
    )
    folds = setting.folds if setting.folds is not None else tuple(range(len(splits.folds)))
    notes = check_images_suffice(plan, cases, splits, folds)
    save_classifier_plan(arguments.output, replace(plan, notes=tuple(notes)))
    print("\n".join(notes))
