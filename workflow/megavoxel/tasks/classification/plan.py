"""`plan.json` of a classification setting: everything that training and prediction need, nothing else."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from megavoxel.config.classification import ClassificationStudy, Classifier, ClassifierSetting
from megavoxel.config.fields import Seed
from megavoxel.config.records import deviations, from_plain, read_record, record, to_plain
from megavoxel.config.setting import Parallel
from megavoxel.errors import UserError
from megavoxel.files import content_hash, parse_json, write_json
from megavoxel.planning.splits import Splits
from megavoxel.tasks.classification.cases import TASK, ImageCases, load_image_cases
from megavoxel.tasks.classification.splits import Assignment, assign, draw_images, load_image_splits


@record
class ClassifierPlan(Classifier):
    """One setting, ready to train."""

    task: Literal["classification"] = TASK
    study: str
    setting: str
    dataset: str
    seed: Seed
    classes: tuple[str, ...]
    """Names in the order of the network's outputs."""
    notes: tuple[str, ...] = ()
    """For the reader."""

    @property
    def hash(self) -> str:
        """Short hash of all that trained weights depend on: names and notes are left out."""
        training = {
            key: value
            for key, value in deviations(self.training).items()
            if key not in ("loaders", "checkpoint_minutes")
        }
        kept = {key: value for key, value in deviations(self).items() if key not in ("study", "setting", "notes")}
        return content_hash(kept | {"training": training})

    @property
    def prediction_hash(self) -> str:
        """Short hash of everything in the plan that predictions depend on."""
        return self.hash

    @property
    def parallel(self) -> Parallel:
        """The devices of a training job, as a segmentation plan has them."""
        return Parallel(data=self.workers)

    @property
    def learning_rate(self) -> float:
        """The initial learning rate, scaled for the batch of all workers together; NaN where it is searched for."""
        if self.training.search:
            return math.nan
        from megavoxel.training.optimizer import learning_rate  # which brings PyTorch

        return learning_rate(self.training.warmup_epochs, self.training, self.batch * self.workers)


def classifier_plan(
    setting: ClassifierSetting, *, study: str, dataset: str, classes: tuple[str, ...], seed: int
) -> ClassifierPlan:
    """The plan of a setting, before any image is looked at.

    Args:
        classes: of the dataset, in order.
        seed: of the study, for a setting without one.
    """
    return ClassifierPlan(
        study=study,
        setting=setting.name,
        dataset=dataset,
        seed=seed if setting.seed is None else setting.seed,
        classes=classes,
        **{field.name: getattr(setting, field.name) for field in fields(Classifier)},
    )


def plan(arguments: argparse.Namespace) -> Sequence[str]:
    """Writes the plan.json of a setting, if there are enough images for it in every fold; returns a line about each.

    Raises:
        UserError: there are too few images, or something that is needed is not given.
    """
    if arguments.splits is None:
        raise UserError(f"{arguments.cases}: these images are to be classified; give --splits")
    if arguments.definition is None or arguments.study_name is None or arguments.seed is None:
        raise UserError("--splits: it needs --definition, --study-name and --seed beside it")
    cases, splits = load_image_cases(arguments.cases), load_image_splits(arguments.splits)
    if arguments.dataset not in (None, cases.dataset):
        raise UserError(f"--dataset {arguments.dataset}: {arguments.cases} is of dataset {cases.dataset}")
    definition = parse_json(arguments.definition, option="--definition")
    setting = from_plain(ClassifierSetting, definition, where="--definition")
    found = classifier_plan(
        setting, study=arguments.study_name, dataset=cases.dataset, classes=cases.classes, seed=arguments.seed
    )
    folds = setting.folds if setting.folds is not None else tuple(range(len(splits.folds)))
    notes = check_images_suffice(found, cases, splits, folds)
    save_classifier_plan(arguments.output, replace(found, notes=tuple(notes)))
    return notes


def is_planned_alike(
    path: Path, cases: Path, _splits: Path, setting: ClassifierSetting, *, study: str, seed: int, for_prediction: bool
) -> bool:
    """Whether a plan is what `plan` would write of a setting now; the images are not counted.

    Args:
        path: the plan.
        cases: cases.json.
        setting: what the study says.
        study: its name.
        seed: of the study.
        for_prediction: whether keys count that only prediction reads.
    """
    try:
        plan, images = load_classifier_plan(path), load_image_cases(cases)
    except UserError:
        return False
    new = classifier_plan(setting, study=study, dataset=images.dataset, classes=images.classes, seed=seed)
    return plan.prediction_hash == new.prediction_hash if for_prediction else plan.hash == new.hash


def expected_images(plan: ClassifierPlan) -> int | None:
    """Training images of a fold, where the study says how many."""
    return None if plan.images_per_class is None else plan.images_per_class * len(plan.classes)


def placeholder_classes(study: ClassificationStudy, classes: int | tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes for a forecast without data."""
    return tuple(f"{study.dataset}-{number}" for number in range(classes)) if isinstance(classes, int) else classes


def check_images_suffice(plan: ClassifierPlan, cases: ImageCases, splits: Splits, folds: tuple[int, ...]) -> list[str]:
    """Draws and deals the images of every fold as training will; a line about each.

    Raises:
        UserError: a class has fewer images than asked for, a worker's share would be empty, or a step would have one
            image, of which the network cannot learn at this resolution.
    """
    lines, pool = [], cases.of_split("training")
    for number in folds:
        where = f"setting {plan.setting}, fold {number}"
        drawn = draw_images(
            cases.select(splits.folds[number].training),
            plan.images_per_class,
            plan.seed,
            classes=plan.classes,
            where=where,
        )
        shares = assign(drawn, plan.workers, plan.data_partition, plan.seed, pool=pool, setting=plan.setting)
        _refuse_lone_pixels(plan, shares, where)
        sizes = f", private shares of {', '.join(map(str, shares.sizes))}" if _is_divided(plan) else ""
        lines.append(
            f"fold {number}: {len(drawn)} training images{sizes}; {shares.steps_per_epoch(plan.batch)} steps per epoch"
        )
    return lines


def _refuse_lone_pixels(plan: ClassifierPlan, shares: Assignment, where: str) -> None:
    sizes = {len(batch) for rank in range(plan.workers) for batch in shares.batches(rank, plan.batch, (plan.seed,))}
    if 1 not in sizes:
        return
    from megavoxel.tasks.classification.networks import learns_from_one_image  # which brings PyTorch

    if not learns_from_one_image(plan.network, len(plan.classes), plan.resolution):
        raise UserError(
            f"{where}: a step would have one image on a worker, of which {plan.network} leaves one pixel at resolution "
            f"{plan.resolution}, and batch norm needs two; raise resolution or batch, or change images_per_class"
        )


def save_classifier_plan(path: Path, plan: ClassifierPlan) -> None:
    """Writes `plan.json`."""
    write_json(path, to_plain(plan))


def load_classifier_plan(path: Path) -> ClassifierPlan:
    """Reads `plan.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel plan` writes of a classification setting.
    """
    return read_record(ClassifierPlan, path, what="plan")


def _is_divided(plan: ClassifierPlan) -> bool:
    return plan.workers > 1 and plan.data_partition == "private"
