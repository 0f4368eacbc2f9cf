"""What each worker trains on, and the bar that keeps it from everybody else's files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megavoxel.classification.cases import ImageCase, ImageCases
from megavoxel.classification.splits import SHARES, deal_patients, owners
from megavoxel.config.classification import PRIVATE
from megavoxel.errors import UserError


class ForeignFileError(UserError):
    """A worker opened a file of another worker's private share."""


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
    cases: Sequence[ImageCase], workers: int, partition: str, seed: int, *, setting: str, allow_empty: bool = False
) -> Assignment:
    """Deals images to workers: `private` shares are disjoint, by whole patients, with nearly equal parts of each class.

    They follow from the list of ids, classes and patients alone: no image is opened for it.

    Raises:
        UserError: a private share would be empty, and that is not allowed, as it is where images are only scored.
    """
    numbers = {case.id: number for number, case in enumerate(cases)}
    if workers == 1 or partition != PRIVATE:
        return Assignment(partition=partition, shares=(tuple(range(len(cases))),) * workers)
    parts = deal_patients(cases, workers, (seed, SHARES))
    empty = [str(rank) for rank, part in enumerate(parts) if not part]
    if empty and not allow_empty:
        raise UserError(
            f"setting {setting}: {len(owners(cases))} patients cannot be shared among {workers} workers: the share of "
            f"worker {', '.join(empty)} would be empty; lower 'workers', or raise 'images_per_class'"
        )
    return Assignment(partition=partition, shares=tuple(tuple(numbers[case.id] for case in part) for part in parts))


def bar_foreign_files(cases: ImageCases, foreign: Iterable[ImageCase]) -> None:
    """From now on, and to its end, this process cannot open these files by any means that Python sees.

    An audit hook looks at every file that is opened, by whatever library. Processes that are forked inherit it.
    """
    barred = {os.path.realpath(cases.path(case)): case.id for case in foreign}
    if not barred:
        return

    def look(event: str, arguments: tuple) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        found = barred.get(os.path.realpath(os.fsdecode(arguments[0])))
        if found is not None:
            raise ForeignFileError(
                f"{found}: belongs to another worker's private share (data_partition: private); this worker must not "
                "open it"
            )

    sys.addaudithook(look)


def foreign_cases(cases: Sequence[ImageCase], assignment: Assignment, rank: int) -> list[ImageCase]:
    """The images that a worker must not open."""
    own = set(assignment.shares[rank])
    return [case for number, case in enumerate(cases) if number not in own]
