"""Training images as tensors. Each is a function of its number, the epoch and the seed: no state has to be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from megavoxel.errors import UserError
from megavoxel.tasks.classification.cases import ImageCase, ImageCases
from megavoxel.tasks.classification.images import DecodedImages, augment, read_image, to_tensor
from megavoxel.tasks.classification.plan import ClassifierPlan
from megavoxel.tasks.classification.splits import Assignment
from megavoxel.training.states.saving import leave_signals_to_the_parent

ORDER, AUGMENTATION = 1, 2
"""Streams of random numbers."""
Key = tuple[int, int]
"""An epoch and the number of an image."""


class TrainingImages(Dataset):
    """Augmented images by epoch and number.

    Args:
        plan: the setting.
        cases: where the files lie.
        images: all that the run trains on, of all workers: numbers and draws do not depend on shares.
        fold: part of the seed.
    """

    def __init__(self, plan: ClassifierPlan, cases: ImageCases, images: Sequence[ImageCase], *, fold: int) -> None:
        self.plan = plan
        self.seed = (plan.seed, fold, AUGMENTATION)
        self.images = DecodedImages([cases.path(case) for case in images], plan.resolution)
        self.targets = [cases.target(case) for case in images]

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """float32 (3, height, width) and the number of the class."""
        epoch, number = key
        random = np.random.default_rng((*self.seed, epoch, number))
        return to_tensor(augment(self.images[number], self.plan.augmentation, random)), self.targets[number]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]] | UserError:
        """The samples of a batch, or what is wrong with one: PyTorch would bring it from a loader as a traceback."""
        try:
            return [self[key] for key in keys]
        except UserError as error:
            return error


class PlainImages(Dataset):
    """Images as they are, by number: for validation and prediction."""

    def __init__(self, files: Sequence[object], resolution: int) -> None:
        self.files, self.resolution = list(files), resolution

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        """float32 (3, height, width)."""
        return to_tensor(read_image(self.files[number], self.resolution))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A worker among those that train together, and how far they are."""

    rank: int = 0
    first_step: int = 0
    """Steps of the whole run that were done before."""


class Batches(Sampler):
    """Keys of a worker's images of each step, to the end of the run; a batch may be empty where shares are unequal."""

    def __init__(self, plan: ClassifierPlan, assignment: Assignment, place: Place, *, fold: int) -> None:
        self.plan, self.assignment, self.place, self.fold = plan, assignment, place, fold

    def __iter__(self) -> Iterator[list[Key]]:
        steps = self.assignment.steps_per_epoch(self.plan.batch)
        begun, done = divmod(self.place.first_step, steps)
        for epoch in range(begun, self.plan.training.epochs):
            seed = (self.plan.seed, self.fold, ORDER, epoch)
            batches = self.assignment.batches(self.place.rank, self.plan.batch, seed)
            for numbers in batches[done if epoch == begun else 0 :]:
                yield [(epoch, int(number)) for number in numbers]


def training_batches(
    dataset: TrainingImages, assignment: Assignment, place: Place, *, fold: int, pin: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """A worker's batches, to the end of the run: float32 (images, 3, height, width) and int64 (images).

    Raises:
        UserError: an image cannot be read, or is another worker's.
    """
    loaders = dataset.plan.training.loaders
    loader = DataLoader(
        dataset,
        batch_sampler=Batches(dataset.plan, assignment, place, fold=fold),
        collate_fn=collate,
        num_workers=loaders,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_signals_to_the_parent,
        multiprocessing_context="fork" if loaders else None,  # the bar on foreign files goes with a fork
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def plain_loader(dataset: PlainImages, *, batch: int, loaders: int) -> DataLoader:
    """Batches of images in order: float32 (images, 3, height, width)."""
    return DataLoader(
        dataset,
        batch_size=batch,
        num_workers=loaders,
        worker_init_fn=leave_signals_to_the_parent,
        multiprocessing_context="fork" if loaders else None,
    )


def collate(samples: Sequence[tuple[Tensor, int]] | UserError) -> tuple[Tensor, Tensor] | UserError:
    """Samples as a batch; of no samples, an empty one. What is wrong with one is passed on."""
    if isinstance(samples, UserError):
        return samples
    images = torch.stack([image for image, _ in samples]) if samples else torch.empty(0, 3, 1, 1)
    return images, torch.tensor([target for _, target in samples], dtype=torch.int64)
