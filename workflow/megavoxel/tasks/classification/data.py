"""What a classifier trains on: the images that are drawn of a fold, and each worker's share of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megavoxel.config.classification import PRIVATE
from megavoxel.datasets.folder import require_unchanged
from megavoxel.errors import UserError
from megavoxel.files import file_sha256
from megavoxel.planning.splits import Fold, fold_of
from megavoxel.tasks.classification.cases import ImageCase, ImageCases, load_image_cases
from megavoxel.tasks.classification.plan import ClassifierPlan, load_classifier_plan
from megavoxel.tasks.classification.splits import Assignment, assign, draw_images, load_image_splits
from megavoxel.training.run import Run, RunData

NOTHING = Assignment(partition=PRIVATE, shares=())
RANDOM = "none: all weights began at random"


@dataclass(frozen=True, kw_only=True)
class ImageData(RunData):
    """Images; `training` are those drawn, in order of their ids, and `start` are published weights."""

    training: tuple[ImageCase, ...]
    validation: tuple[ImageCase, ...]
    cases: ImageCases
    """All images of the dataset."""
    shares: Assignment
    """Shares of the training images."""
    validation_shares: Assignment
    """Shares of the validation images; empty if there are none."""

    @property
    def hashed(self) -> tuple[Any, ...]:
        """The weights to begin with, and the shares where a worker sees none but its own."""
        divided = self.shares.shares if self.shares.partition == PRIVATE and len(self.shares.shares) > 1 else ()
        return (self.start_data, *divided)

    def facts(self, run: Run) -> dict[str, Any]:
        """What `manifest.json` says of images, shares and published weights."""
        plan = run.plan
        shares = self.shares.shares if plan.data_partition == PRIVATE else self.shares.shares[:1]
        data = {
            "dataset": plan.dataset,
            "checksums_sha256": self.data,
            "partition": plan.data_partition if plan.workers > 1 else "one worker",
            "shares": [[self.training[number].id for number in own] for own in shares],
            "validation": [case.id for case in self.validation],
        }
        tried = run.searched
        search = {"learning_rate": best_of(tried)["learning_rate"], "tried": tried} if tried else None
        published = {"sha256": self.start_data} if self.start else RANDOM
        return {
            "published_weights": published,
            "data": data,
            "search": search,
            "steps_per_epoch": self.shares.steps_per_epoch(plan.batch),
        }

    def files_of(self, rank: int) -> list[Path]:
        """All that a worker with private data opens below the dataset's folder."""
        parts = [(self.training, self.shares)] + (
            [(self.validation, self.validation_shares)] if self.validation else []
        )
        images = [self.cases.path(cases[number]) for cases, shares in parts for number in shares.shares[rank]]
        return images + ([self.start] if self.start else [])


def best_of(tried: Sequence[dict[str, float]]) -> dict[str, float]:
    """The best accuracy of the validation images; of equal ones the lowest loss, and then the first."""
    return max(tried, key=lambda one: (one["validation_accuracy"], -one["validation_loss"]))


def data_of(arguments: argparse.Namespace) -> tuple[ClassifierPlan, ImageData]:
    """What `megavoxel train` names: the plan of a setting, and the images of a fold.

    Raises:
        UserError: the plan cannot be read, there is no such fold, images do not suffice, or published weights are
            missing or not wanted.
    """
    plan = load_classifier_plan(arguments.plan)
    if arguments.cases is None:
        raise UserError(f"setting {plan.setting}: give --cases, the cases.json of its images")
    cases, splits = load_image_cases(arguments.cases), load_image_splits(arguments.splits)
    split = fold_of(splits, arguments.fold, source=arguments.splits)
    if plan.pretrained != (arguments.weights is not None):
        wanted = "begins with published weights: give them" if plan.pretrained else "begins at random: leave it out"
        raise UserError(f"--weights: setting {plan.setting} {wanted}")
    return plan, draw_data(
        plan,
        cases,
        split,
        arguments.fold,
        data=require_unchanged(arguments.checksums) if arguments.checksums else None,
        start=arguments.weights,
        start_data=file_sha256(arguments.weights) if arguments.weights else None,
    )


def draw_data(plan: ClassifierPlan, cases: ImageCases, fold: Fold, number: int, **facts: Any) -> ImageData:
    """Draws a fold's images and deals them to the workers.

    Args:
        fold: ids of its cases.
        facts: further fields of the result.

    Raises:
        UserError: a class has too few images, or a share would be empty.
    """
    where = f"setting {plan.setting}, fold {number}"
    training = draw_images(
        cases.select(fold.training), plan.images_per_class, plan.seed, classes=plan.classes, where=where
    )
    validation = cases.select(fold.validation)
    deal = partial(
        assign,
        workers=plan.workers,
        partition=plan.data_partition,
        seed=plan.seed,
        pool=cases.of_split("training"),
        setting=plan.setting,
    )
    return ImageData(
        number=number,
        cases=cases,
        training=training,
        validation=validation,
        shares=deal(training),
        validation_shares=deal(validation, allow_empty=True) if validation else NOTHING,
        **facts,
    )
