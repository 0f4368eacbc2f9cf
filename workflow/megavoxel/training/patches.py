"""Random patches of stored cases. Each patch is a function of its number alone, so nothing has to be remembered.

The random draws of sample n come from a generator seeded with (study seed, fold, stream, n): any number of worker
processes, and a run that was interrupted, see the same patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.store import Box, StoredCase, open_case, read_box
from megavoxel.training.augmentation import Augmenter

TRAINING, VALIDATION = 0, 1


class PatchDataset(Dataset):
    """Patches by number.

    Args:
        plan: the setting.
        folder: the preprocessed cases.
        cases: ids to draw from, each with the same probability.
        fold: part of the seed.
        stream: `TRAINING` (augmented) or `VALIDATION` (not augmented); part of the seed.
        count: how many patches there are.
    """

    def __init__(self, plan: Plan, folder: Path, cases: Sequence[str], *, fold: int, stream: int, count: int) -> None:
        self.plan = plan
        self.files = (Path(folder), tuple(cases))
        self.cases = _open_cases(*self.files)
        self.seed = (plan.seed, fold, stream)
        self.count = count
        self.augmenter = Augmenter(plan.augmentation, plan.patch) if stream == TRAINING else None

    def __getstate__(self) -> dict:
        """Open arrays stay in their process: a worker that is not forked opens its own."""
        return {key: value for key, value in vars(self).items() if key != "cases"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.cases = _open_cases(*self.files)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Patch `number`: float32 image (channels, z, y, x) and int64 classes (z, y, x)."""
        random = np.random.default_rng((*self.seed, number))
        case = self.cases[random.integers(len(self.cases))]
        start = draw_start(case, self.plan.patch, self.plan.training.foreground_fraction, random)
        if self.augmenter is None:
            image, labels = _read(case, Box(start=start, shape=self.plan.patch))
            return image, labels.long()
        draws = self.augmenter.draw(random)
        image, labels = _read(case, self.augmenter.source_box(start, draws))
        return self.augmenter.apply(image, labels, draws, random)


def _open_cases(folder: Path, cases: Sequence[str]) -> list[StoredCase]:
    return [open_case(folder, case) for case in cases]


def draw_start(
    case: StoredCase, patch: Sequence[int], foreground_fraction: float, random: np.random.Generator
) -> tuple[int, ...]:
    """First voxel of a random patch, per axis; negative where the patch is larger than the case, which is then centred.

    With probability `foreground_fraction` the patch is centred on a random voxel of a random class that is present,
    moved so that it stays inside the case (nnU-Net lets it reach beyond the far ends). The choice is per sample, so
    that a batch of one sees it as well (nnU-Net forces a fixed share of each batch, which is none at batch 1).
    """
    shape = case.properties.shape
    lowest = [min(0, -((extent - size) // 2)) for size, extent in zip(shape, patch, strict=True)]
    highest = [max(low, size - extent) for low, size, extent in zip(lowest, shape, patch, strict=True)]
    present = sorted(case.foreground)
    if random.random() < foreground_fraction and present:
        voxels = case.foreground[present[random.integers(len(present))]]
        centre = voxels[random.integers(len(voxels))]
        wanted = [int(voxel) - extent // 2 for voxel, extent in zip(centre, patch, strict=True)]
    else:
        wanted = [int(random.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    return tuple(min(max(start, low), high) for start, low, high in zip(wanted, lowest, highest, strict=True))


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several processes takes of each batch: as many samples as every other, in order of the ranks."""

    first_iteration: int = 0
    """The batch to begin with."""
    batch: int
    """Samples of a batch, over all processes; a multiple of `ranks`."""
    rank: int = 0
    ranks: int = 1

    @property
    def samples(self) -> int:
        """Samples of a batch that this process takes."""
        return self.batch // self.ranks


class SampleNumbers(torch.utils.data.Sampler):
    """Numbers of the samples that a process takes of `count`, batch after batch; `count` is a multiple of the batch."""

    def __init__(self, share: Share, count: int) -> None:
        self.share = share
        self.starts = range(share.first_iteration * share.batch + share.rank * share.samples, count, share.batch)

    def __iter__(self) -> Iterator[int]:
        return (number for start in self.starts for number in range(start, start + self.share.samples))

    def __len__(self) -> int:
        return len(self.starts) * self.share.samples


def patch_loader(dataset: PatchDataset, share: Share, *, workers: int, pin: bool) -> DataLoader:
    """A process's share of the batches: images (samples, channels, z, y, x), targets (samples, z, y, x)."""
    return DataLoader(
        dataset,
        batch_size=share.samples,
        sampler=SampleNumbers(share, len(dataset)),
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )


def _read(case: StoredCase, box: Box) -> tuple[Tensor, Tensor]:
    """float32 image and uint8 or int32 classes: few operations of PyTorch know uint16."""
    labels = read_box(case.labels, box)
    labels = labels if labels.dtype == np.uint8 else labels.astype(np.int32)
    return torch.from_numpy(read_box(case.image, box)), torch.from_numpy(labels)
