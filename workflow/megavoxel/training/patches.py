"""Random patches of stored cases. Each patch is a function of its number alone, so nothing has to be remembered.

The random draws of sample n come from a generator seeded with (study seed, fold, stream, n): any number of worker
processes, and a run that was interrupted, see the same patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import blosc2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from megavoxel.network.first_stage import one_hot_branches
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.first_stage import open_first_stage
from megavoxel.preprocessing.store import Box, StoredCase, open_case, read_box
from megavoxel.training.annotation import encode_target, target_values, unannotated_classes
from megavoxel.training.augmentation import Augmenter, Draws
from megavoxel.training.first_stage_augmentation import augment_first_stage
from megavoxel.training.intensity import draw as draw_intensity
from megavoxel.training.intensity import standard_noise
from megavoxel.training.on_device import RawBatch, RawSample
from megavoxel.training.states.saving import leave_signals_to_the_parent
from megavoxel.volumes.grid import window_starts

ROULETTE_STEP = 0.5
"""Largest distance of the positions of `roulette` sampling, in patches (Wang et al. 2022, appendix A.7)."""
MOST_DRAWS = 100
"""Positions that `roulette` sampling looks at; the last one is taken as it is. With an acceptance of 0.1, one in 34,000
patches of a case without foreground gets there."""


def draw_start(case: StoredCase, plan: Plan, number: int, random: np.random.Generator) -> tuple[int, ...]:
    """First voxel of a random patch, per axis; negative where the patch is larger than the case, which is then centred.

    Args:
        case: with labels.
        plan: patch and batch, and how patches are drawn: `training.sampling` and the keys of that.
        number: of the sample.
        random: what everything that is drawn comes from.
    """
    training = plan.training
    if training.sampling == "roulette":
        return roulette_start(case, plan.patch, training.roulette_threshold, training.roulette_acceptance, random)
    on_foreground = is_on_foreground(number, plan.batch, training.foreground_fraction, random)
    return foreground_start(case, plan.patch, on_foreground, random)


def is_on_foreground(number: int, batch: int, fraction: float, random: np.random.Generator) -> bool:
    """Whether sample `number` is centred on foreground: the last ones of each batch are, about a `fraction` of it.

    That is nnU-Net's rule (`oversample_foreground_percent`), by which a batch of one has none: there it is drawn, with
    the probability `fraction`.
    """
    if batch == 1:
        return random.random() < fraction
    return number % batch >= round(batch * (1 - fraction))


def foreground_start(
    case: StoredCase, patch: Sequence[int], on_foreground: bool, random: np.random.Generator
) -> tuple[int, ...]:
    """A start anywhere in the case or, `on_foreground`, one with foreground in the centre.

    The patch is then centred on a random voxel of a random class that is present, moved so that it stays inside the
    case (nnU-Net lets it reach beyond the far ends). Where not all voxels are annotated, the other patches are centred
    on a random annotated voxel, as in nnU-Net.
    """
    shape = case.properties.shape
    lowest = [min(0, -((extent - size) // 2)) for size, extent in zip(shape, patch, strict=True)]
    highest = [max(low, size - extent) for low, size, extent in zip(lowest, shape, patch, strict=True)]
    present = case.present
    centred_on: tuple[int, ...] = ()
    if on_foreground and present:
        centred_on = present[random.integers(len(present))]
    elif case.ignored is not None:
        centred_on = tuple(sorted(case.foreground))
    if centred_on:
        centre = _voxel_of(case, centred_on, random)
        wanted = [int(voxel) - extent // 2 for voxel, extent in zip(centre, patch, strict=True)]
    else:
        wanted = [int(random.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    return tuple(min(max(start, low), high) for start, low, high in zip(wanted, lowest, highest, strict=True))


def _voxel_of(case: StoredCase, classes: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A random voxel of several classes together, int32 (3)."""
    number = classes[0]
    if len(classes) > 1:
        sizes = np.array([case.properties.class_voxels[one] for one in classes], dtype=np.float64)
        number = classes[random.choice(len(classes), p=sizes / sizes.sum())]
    voxels = case.foreground[number]
    return voxels[random.integers(len(voxels))]


def roulette_start(
    case: StoredCase, patch: Sequence[int], threshold: float, acceptance: float, random: np.random.Generator
) -> tuple[int, ...]:
    """The start of a window of a half-overlapping grid: of those drawn one after the other, the first that is accepted.

    A window with enough foreground is accepted; of the others, some are, by a roulette check. Wang et al.,
    "Memory-efficient Segmentation of High-resolution Volumetric MicroCT Images" (MIDL 2022, appendix A.1), who give
    neither the threshold nor the probability. Their windows lie exactly half a patch apart, beyond the far ends of the
    image where need be; here they are those of the sliding window in prediction, spread evenly inside.

    Args:
        case: with labels, which are read.
        patch: voxels per axis.
        threshold: share of foreground among the voxels of the patch, those outside of the case included, from which on
            it is accepted.
        acceptance: probability that any other one is.
        random: what everything that is drawn comes from.
    """
    sides = zip(case.properties.shape, patch, strict=True)
    starts = [window_starts(size, extent, ROULETTE_STEP) for size, extent in sides]
    for _ in range(MOST_DRAWS):
        start = tuple(axis[random.integers(len(axis))] for axis in starts)
        # The check comes first: it is independent of the foreground, and the labels then need not be read.
        if random.random() < acceptance or foreground_share(case, Box(start=start, shape=tuple(patch))) >= threshold:
            break
    return start


def foreground_share(case: StoredCase, box: Box) -> float:
    """Share of annotated foreground among the voxels of a box; there is none outside of the case."""
    return float(np.isin(read_box(case.labels, box), [0, *case.unannotated], invert=True).mean())


TRAINING, VALIDATION = 0, 1


@dataclass(frozen=True, kw_only=True)
class SampledCase:
    """What samples of a case are read from."""

    stored: StoredCase
    first_stage: blosc2.NDArray | None = None
    """uint8 classes (branches, network grid) of the first stage of a cascade."""


class PatchDataset(Dataset):
    """Patches by number.

    Args:
        plan: the setting.
        folder: the preprocessed cases.
        cases: ids to draw from, each with the same probability.
        fold: part of the seed.
        stream: `TRAINING` (augmented) or `VALIDATION` (not augmented); part of the seed.
        count: how many patches there are.
        first_stage: folders with the first stage's labels, of which each case is in one; for a plan with `stage1`.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        cases: Sequence[str],
        *,
        fold: int,
        stream: int,
        count: int,
        first_stage: Sequence[Path] = (),
    ) -> None:
        self.plan = plan
        self.files = (plan, Path(folder), tuple(cases), tuple(first_stage))
        self.cases = _open_cases(*self.files)
        self.seed = (plan.seed, fold, stream)
        self.count = count
        self.shape = plan.sampled_patch if stream == TRAINING else plan.patch
        self.augmenter = Augmenter(plan.augmentation, self.shape) if stream == TRAINING else None

    def __getstate__(self) -> dict:
        """Open arrays stay in their process: a worker that is not forked opens its own."""
        return {key: value for key, value in vars(self).items() if key != "cases"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.cases = _open_cases(*self.files)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | RawSample:
        """Patch `number`: float32 image (input channels, z, y, x) and target (z, y, x); or what it is made of.

        The target, of the type `target_dtype`, holds classes, and says which labels are annotated in the case
        (`training/annotation.py`). Training patches are the plan's `sampled_patch`, validation patches its `patch`.
        With `augmentation.on_device`, training patches are made on the device (`training/on_device.py`).
        """
        random = np.random.default_rng((*self.seed, number))
        case = self.cases[random.integers(len(self.cases))]
        start = self._start(case, number, random)
        if self.augmenter is None:
            image, maps = _read(case, Box(start=start, shape=self.shape))
        else:
            draws = self.augmenter.draw(random)
            image, maps = _read(case, self.augmenter.source_box(start, draws))
            if self.plan.augmentation.on_device:
                return self._raw(image, maps, draws, case.stored.unannotated, random)
            image, maps = self.augmenter.apply(image, maps, draws, random)
        labels, branches = encode_target(maps[0], case.stored.unannotated, self.plan), maps[1:]
        if len(branches):
            branches = torch.from_numpy(self._with_faults(branches, random))
            image = torch.cat([image, one_hot_branches(branches, self.plan.network.classes)])
        return image, labels

    def _start(self, case: SampledCase, number: int, random: np.random.Generator) -> tuple[int, ...]:
        """First voxel of what is sampled, around the patch that was drawn."""
        start = draw_start(case.stored, self.plan, number, random)
        return tuple(
            first - (large - size) // 2 for first, large, size in zip(start, self.shape, self.plan.patch, strict=True)
        )

    def _raw(
        self, image: Tensor, maps: Tensor, draws: Draws, unannotated: tuple[int, ...], random: np.random.Generator
    ) -> RawSample:
        """What a device makes the patch of; the draws are those of a patch that is augmented here."""
        intensity, branches = draw_intensity(self.plan.augmentation, len(image), random), None
        if len(maps) > 1:
            turned = self.augmenter.turn_labels(maps[1:], draws)
            branches = torch.from_numpy(self._with_faults(self.augmenter.mirror(turned, draws), random))
        drawn, uniform = intensity.noise, intensity.has_uniform_noise
        return RawSample(
            image=image,
            labels=maps[0],
            values=target_values(unannotated, self.plan),
            draws=draws,
            intensity=intensity,
            noise=None if drawn is None else standard_noise((len(image), *self.shape), drawn[1], uniform=uniform),
            branches=branches,
        )

    def _with_faults(self, branches: Tensor, random: np.random.Generator) -> np.ndarray:
        """The first stage's labels, uint8 (branches, z, y, x), with random faults where patches are augmented."""
        labels = branches.numpy().astype(np.uint8)
        return labels if self.augmenter is None else augment_first_stage(labels, self.plan.augmentation, random)


def _open_cases(plan: Plan, folder: Path, cases: Sequence[str], first_stage: Sequence[Path]) -> list[SampledCase]:
    return [_open_case(plan, folder, case, first_stage) for case in cases]


def _open_case(plan: Plan, folder: Path, case: str, first_stage: Sequence[Path]) -> SampledCase:
    rules = plan.preprocessing
    stored = replace(
        open_case(folder, case),
        unannotated=unannotated_classes(plan, case),
        structures=None if rules.regions is None else rules.members,
        ignored=rules.ignored_class,
    )
    if not plan.stage1:
        return SampledCase(stored=stored)
    shape = (len(plan.stage1), *stored.properties.shape)
    return SampledCase(stored=stored, first_stage=open_first_stage(first_stage, case, shape))


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


def validation_workers(workers: int) -> int:
    """Processes that load validation patches, from the first epoch to the last, beside so many for training patches.

    One is enough: these patches are not augmented.
    """
    return min(1, workers)


def patch_loader(
    dataset: PatchDataset, share: Share, *, workers: int, pin: bool, numbers: Sequence[int] | None = None
) -> DataLoader:
    """A process's share of the batches: images (samples, channels, z, y, x) and targets (samples, z, y, x), or what
    they are made of.

    Args:
        dataset: patches by number.
        share: the samples that come together, and which.
        workers: processes that prepare them; 0: this one.
        pin: whether they lie in pinned memory.
        numbers: of the samples; None: those of the share.
    """
    return DataLoader(
        dataset,
        batch_size=share.samples,
        sampler=SampleNumbers(share, len(dataset)) if numbers is None else numbers,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_signals_to_the_parent,
        collate_fn=_together,
    )


def _together(samples: list[tuple[Tensor, Tensor] | RawSample]) -> list[Tensor] | RawBatch:
    return RawBatch(samples=samples) if isinstance(samples[0], RawSample) else default_collate(samples)


def _read(case: SampledCase, box: Box) -> tuple[Tensor, Tensor]:
    """float32 image (channels, box), and the classes with those of each first-stage branch behind them (maps, box).

    Maps are uint8 or int32: few operations of PyTorch know uint16.
    """
    maps = read_box(case.stored.labels, box)[None]
    if case.first_stage is not None:
        maps = np.concatenate([maps, read_box(case.first_stage, box)])
    maps = maps if maps.dtype == np.uint8 else maps.astype(np.int32)
    return torch.from_numpy(read_box(case.stored.image, box)), torch.from_numpy(maps)
