"""Augmentation of patches on the device that trains (`augmentation.on_device`).

Loaders read the source box of each patch and draw everything, from the same generator and in the same order as where
they augment themselves. The device then does the same with the same functions, and the host waits for none of it. What
cannot be the same on every device comes from the loaders: noise, elastic displacements, and the faults of a first
stage's labels.

Source boxes differ in size, and most transforms are drawn for few samples, so that a batch is worked out sample by
sample, straight into the tensors of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from megavoxel.network.first_stage import one_hot_branches
from megavoxel.planning.plan import Plan
from megavoxel.training.annotation import target_dtype
from megavoxel.training.augmentation import Augmenter, Draws
from megavoxel.training.intensity import Intensity
from megavoxel.training.run import Part


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """What a loader hands on of a sample."""

    image: Tensor
    """float32 (channels, source box)."""
    labels: Tensor
    """Classes, uint8 or int32 (source box)."""
    values: Tensor | None
    """The value in the target of each class, as `target_values` gives it."""
    draws: Draws
    intensity: Intensity
    noise: Tensor | None
    """float32 (channels, patch), of standard deviation one, where it was drawn."""
    branches: Tensor | None
    """uint8 classes (branches, patch) of a first stage, augmented; None: there is no first stage."""

    def pin_memory(self) -> RawSample:
        """This sample in pinned memory."""
        return self._with_each(Tensor.pin_memory)

    def to(self, device: torch.device) -> RawSample:
        """This sample on the device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> RawSample:
        tensors = {one.name: value for one in fields(self) if isinstance(value := getattr(self, one.name), Tensor)}
        draws = self.draws.with_displacement(change)
        return replace(self, draws=draws, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """What loaders hand on of a batch."""

    samples: Sequence[RawSample]

    def pin_memory(self) -> RawBatch:
        """This batch in pinned memory, for PyTorch's loader."""
        return RawBatch(samples=[sample.pin_memory() for sample in self.samples])


class DeviceAugmenter:
    """Makes the batches of a run from what its loaders hand on."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.augmenter = Augmenter(plan.augmentation, plan.sampled_patch, at_all_voxels=True)

    def batches(self, raw: Iterable[RawBatch]) -> Iterator[Part]:
        """Images and targets, one batch after the other, each made when it is asked for."""
        return map(self.batch, raw)

    @torch.no_grad()
    def batch(self, raw: RawBatch) -> Part:
        """float32 images (samples, input channels, patch) and targets (samples, patch), on the device."""
        plan, samples = self.plan, len(raw.samples)
        shape = plan.sampled_patch
        images = torch.empty(samples, plan.network.input_channels, *shape, device=self.device)
        targets = torch.empty(samples, *shape, dtype=target_dtype(plan), device=self.device)
        for sample, image, target in zip(raw.samples, images, targets, strict=True):
            self._fill(image, target, sample.to(self.device))
        return images, targets

    def _fill(self, image: Tensor, target: Tensor, sample: RawSample) -> None:
        given = sample.image, sample.labels[None], sample.draws, sample.intensity, sample.noise
        own, labels = self.augmenter.change(*given)
        image[: len(own)] = own
        target.copy_(labels[0] if sample.values is None else sample.values[labels[0].long()])
        if sample.branches is not None:
            image[len(own) :] = one_hot_branches(sample.branches, self.plan.network.classes)


def largest_raw_batch(plan: Plan, samples: int) -> RawBatch:
    """A batch of zeros that takes the most memory: the largest source boxes, with every transform drawn."""
    patch, channels = plan.sampled_patch, plan.network.channels
    augmenter = Augmenter(plan.augmentation, patch)
    draws = augmenter.largest()
    box = augmenter.source_box((0, 0, 0), draws)
    ones, sigmas = (1.0,) * channels, (plan.augmentation.blur_sigma[1],) * 3
    sample = RawSample(
        image=torch.zeros(channels, *box.shape),
        labels=torch.zeros(box.shape, dtype=torch.uint8),
        values=torch.zeros(plan.network.classes, dtype=target_dtype(plan)) if plan.unannotated else None,
        draws=draws,
        intensity=Intensity(
            noise=(1.0, 0), blur=(sigmas,) * channels, brightness=ones, contrast=ones, low_resolution=(0.5,) * channels,
            gamma_inverted=ones, gamma=ones,
        ),
        noise=torch.zeros(channels, *patch),
        branches=torch.zeros(len(plan.stage1), *patch, dtype=torch.uint8) if plan.stage1 else None,
    )  # fmt: skip
    return RawBatch(samples=[sample] * samples)
