"""Which images a run trains on: folds by patients, the draw of so many images per class, and the workers' shares."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megavoxel.config.classification import PRIVATE
from megavoxel.config.records import from_plain
from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.planning.splits import Fold, Splits, import_splits
from megavoxel.tasks.classification.cases import ImageCase, ImageCases, load_image_cases

FOLDS, DRAW = 1, 2
"""Streams of random numbers."""


def split(path: Path, folds: int, seed: int, ready_made: Path | None) -> Splits:
    """Folds of the images in a cases.json, if there is anything to score by them.

    Raises:
        UserError: no image would be scored, or as `make_image_splits`, `import_splits` and `require_whole_patients`.
    """
    cases = load_image_cases(path)
    if folds == 1 and not cases.of_split("test"):
        raise UserError(
            f"dataset {cases.dataset}: it has no test images, and with one fold nothing is validated: no image would "
            "be scored; give the study 'folds' of 2 or more, or the dataset file 'classification.test_per_class'"
        )
    if ready_made is None:
        return make_image_splits(cases, folds, seed)
    splits = import_splits(ready_made, cases, folds)
    require_whole_patients(cases, splits, source=ready_made)
    return splits


def make_image_splits(cases: ImageCases, folds: int, seed: int) -> Splits:
    """Folds that no patient straddles, with nearly equal parts of every class.

    One fold is no cross-validation: all training images train, none is validated on.

    Raises:
        UserError: there are fewer training patients than folds.
    """
    training = cases.of_split("training")
    test = tuple(case.id for case in cases.of_split("test"))
    if not training:
        raise UserError(f"dataset {cases.dataset}: no image is left for training")
    if folds == 1:
        return Splits(folds=(Fold(training=tuple(case.id for case in training), validation=()),), test=test)
    parts = deal_patients(training, folds, (seed, FOLDS))
    if not all(parts):
        raise UserError(
            f"dataset {cases.dataset}: {len(owners(training))} patients cannot be divided into {folds} folds; lower "
            "'folds' of the study"
        )
    every = [case.id for case in training]
    return Splits(
        folds=tuple(
            Fold(training=tuple(name for name in every if name not in own), validation=tuple(sorted(own)))
            for own in ({case.id for case in part} for part in parts)
        ),
        test=test,
    )


def load_image_splits(path: Path) -> Splits:
    """Reads `splits.json` of images, whose ids are paths; what they name is looked up among the checked cases.

    Raises:
        UserError: the file is missing or not what `megavoxel split` writes.
    """
    return from_plain(Splits, read_json(path, what="file of splits"), where=str(path))


def draw_images(
    cases: Sequence[ImageCase], per_class: int | None, seed: int, *, classes: Sequence[str], where: str
) -> tuple[ImageCase, ...]:
    """`per_class` images of each class in order of their ids; with the same seed, more images hold all of fewer.

    Args:
        per_class: None: all of them.
        classes: all of the dataset.
        where: names the setting, and the fold, in errors.

    Raises:
        UserError: a class has fewer images.
    """
    by_class: dict[str, list[ImageCase]] = {name: [] for name in sorted(classes)}
    for case in sorted(cases, key=lambda case: case.id):
        by_class[case.label].append(case)
    few = [f"{name} has {len(own)}" for name, own in by_class.items() if len(own) < (per_class or 1)]
    if few:
        raise UserError(
            f"{where}: images_per_class is {per_class or 'not given'}, but the class {few[0]} training images"
            f"{f' (and {len(few) - 1} more classes have too few)' if len(few) > 1 else ''}; lower images_per_class, or "
            "keep fewer images for test and validation"
        )
    if per_class is None:
        return tuple(sorted(cases, key=lambda case: case.id))
    drawn = [case for own in _in_order_of_draw(by_class, seed) for case in own[:per_class]]
    return tuple(sorted(drawn, key=lambda case: case.id))


def deal_sites(pool: Iterable[ImageCase], workers: int, seed: int) -> dict[str, int]:
    """The worker that holds each image, by id: the same in all settings of a seed and a number of workers.

    Patients come in the order in which `draw_images` would draw their first image of the pool. Each goes to the worker
    with the fewest images of that class so far, of these to the one with the fewest images: of the images that a
    setting draws, be they few or many, all workers have about as many.

    Args:
        pool: all training images of the dataset.
    """
    by_class, patients = defaultdict(list), defaultdict(list)
    for case in sorted(pool, key=lambda case: (case.label, case.id)):
        by_class[case.label].append(case)
        patients[case.owner].append(case)
    turns = itertools.zip_longest(*_in_order_of_draw(by_class, seed))
    firsts: dict[str, str] = {}
    for case in (case for turn in turns for case in turn if case is not None):
        firsts.setdefault(case.owner, case.label)
    parts = _deal([(patients[owner], label) for owner, label in firsts.items()], workers)
    return {case.id: rank for rank, part in enumerate(parts) for case in part}


def deal_patients(cases: Iterable[ImageCase], parts: int, seed: tuple[int, ...]) -> list[tuple[ImageCase, ...]]:
    """The cases in disjoint parts, all images of a patient in one; the classes are spread as evenly as that allows.

    Patients come class by class, those with most images first, else at random. Each goes to the part with the fewest
    images of that class, of these to the one with the fewest images. A part may stay empty where there are few.

    Returns:
        The parts, each in order of the ids.
    """
    patients = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.id):
        patients[case.owner].append(case)
    order = np.random.default_rng(seed).permutation(len(patients))
    queue = sorted((list(patients.values())[number] for number in order), key=lambda own: (_main_label(own), -len(own)))
    return _deal([(own, _main_label(own)) for own in queue], parts)


def _deal(queue: Iterable[tuple[Sequence[ImageCase], str]], parts: int) -> list[tuple[ImageCase, ...]]:
    """The images of patients, each with the class that counts, in parts: to the one that has fewest, in turn."""
    dealt: list[list[ImageCase]] = [[] for _ in range(parts)]
    counts = [Counter() for _ in range(parts)]
    for own, label in queue:
        part = min(range(parts), key=lambda number: (counts[number][label], len(dealt[number])))
        dealt[part] += own
        counts[part].update(case.label for case in own)
    return [tuple(sorted(part, key=lambda case: case.id)) for part in dealt]


def require_whole_patients(cases: ImageCases, splits: Splits, *, source: object) -> None:
    """Holds ready-made folds against the patients.

    Raises:
        UserError: a patient has images in training and in validation of a fold.
    """
    for number, fold in enumerate(splits.folds):
        both = sorted(owners(cases.select(fold.training)) & owners(cases.select(fold.validation)))
        if both:
            raise UserError(
                f"{source}: fold {number}: {both[0]} has images in training and in validation; all images of a patient "
                "belong to one of them"
            )


def owners(cases: Iterable[ImageCase]) -> set[str]:
    """The patients of some images."""
    return {case.owner for case in cases}


def _in_order_of_draw(by_class: Mapping[str, Sequence[ImageCase]], seed: int) -> list[list[ImageCase]]:
    """The images of each class, sorted by id before, as a seed draws them; classes come in order of their names."""
    return [
        [own[index] for index in np.random.default_rng((seed, DRAW, number)).permutation(len(own))]
        for number, own in enumerate(by_class.values())
    ]


def _main_label(cases: Sequence[ImageCase]) -> str:
    return Counter(sorted(case.label for case in cases)).most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which images each worker takes."""

    partition: str
    """`private` or `shared`."""
    shares: tuple[tuple[int, ...], ...]
    """By worker, numbers of the images that it may open; with `shared`, all of them for each."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images by worker."""
        return tuple(map(len, self.shares))

    def steps_per_epoch(self, batch: int) -> int:
        """Steps in which every image is seen once, with at most `batch` images of a worker in each."""
        if self.partition == PRIVATE:
            return -(-max(self.sizes) // batch)
        return -(-len(self.shares[0]) // (batch * len(self.shares)))

    def batches(self, rank: int, batch: int, seed: tuple[int, ...]) -> list[np.ndarray]:
        """Numbers of a worker's images in each step of an epoch, in random order; the parts differ by one at most.

        Args:
            batch: most images of a worker in a step.
        """
        steps = self.steps_per_epoch(batch)
        if self.partition == PRIVATE:
            own = np.array(self.shares[rank], dtype=int)
            return np.array_split(np.random.default_rng((*seed, rank)).permutation(own), steps)
        together = np.random.default_rng((*seed, 0)).permutation(np.array(self.shares[rank], dtype=int))
        return [np.array_split(part, len(self.shares))[rank] for part in np.array_split(together, steps)]


def assign(
    cases: Sequence[ImageCase],
    workers: int,
    partition: str,
    seed: int,
    *,
    pool: Sequence[ImageCase],
    setting: str,
    allow_empty: bool = False,
) -> Assignment:
    """Deals images to workers: `private` shares are disjoint, by whole patients, with nearly equal parts of each class.

    They follow from the list of ids, classes and patients alone: no image is opened for it.

    Args:
        partition: `private` or `shared`.
        pool: the dataset's training images: whose a patient is does not depend on which of them `cases` are.
        allow_empty: whether a share may be empty, as where images are only scored.

    Raises:
        UserError: a private share would be empty.
    """
    if workers == 1 or partition != PRIVATE:
        return Assignment(partition=partition, shares=(tuple(range(len(cases))),) * workers)
    sites = deal_sites(pool, workers, seed)
    shares = tuple(
        tuple(number for number, case in enumerate(cases) if sites[case.id] == rank) for rank in range(workers)
    )
    empty = [str(rank) for rank, share in enumerate(shares) if not share]
    if empty and not allow_empty:
        which = f"shares of workers {', '.join(empty)}" if len(empty) > 1 else f"share of worker {empty[0]}"
        raise UserError(
            f"setting {setting}: {_count(cases)} cannot be shared among {workers} workers: the {which} would be empty; "
            "lower 'workers', or raise 'images_per_class'"
        )
    return Assignment(partition=partition, shares=shares)


def _count(cases: Sequence[ImageCase]) -> str:
    """How many there are that cannot be divided."""
    known = any(case.patient is not None for case in cases)
    return f"{len({case.owner for case in cases})} {'patients' if known else 'images'}"
