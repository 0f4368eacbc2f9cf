"""What each worker trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megavoxel.config.classification import PRIVATE
from megavoxel.errors import UserError
from megavoxel.tasks.classification.cases import ImageCase
from megavoxel.tasks.classification.splits import deal_sites


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
            rank: of the worker.
            batch: most images of a worker in a step.
            seed: of the epoch.
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
        cases: to be dealt.
        workers: how many.
        partition: `private` or `shared`.
        seed: of the setting.
        pool: the dataset's training images: whose a patient is does not depend on which of them `cases` are.
        setting: names it in errors.
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
