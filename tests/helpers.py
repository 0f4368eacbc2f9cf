"""Small plans and preprocessed cases for tests of training and prediction, and a disk that fills up."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from megavoxel.config.setting import Inference
from megavoxel.config.training import Augmentation, Training
from megavoxel.network.blocks import ResidualSum
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import ChannelNormalisation, NetworkPlan, Plan, PreprocessingPlan
from megavoxel.preprocessing.store import CaseProperties, save_case
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.training.run import Run

RESIDUAL = {
    "architecture": "residual", "convolutions_per_level": 1, "features": (4, 8, 8), "blocks": (1, 2, 2),
    "kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (1, 2, 2)),
}  # fmt: skip
"""Keys of a network whose shortcuts are the input itself, its mean by cells, and this in another width."""


def value_and_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss and its gradient by the logits."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def woken(network: SegmentationNetwork) -> SegmentationNetwork:
    """The network with residual blocks that add something, as after some steps: at first their last norms are 0."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, ResidualSum):
            torch.nn.init.normal_(module[1].weight, 1.0, 0.2, generator=generator)
            torch.nn.init.normal_(module[1].bias, 0.0, 0.2, generator=generator)
    return network


def preprocessing_plan(**changes) -> PreprocessingPlan:
    """Isotropic, one channel, two labels with values 1 and 3."""
    plan = PreprocessingPlan(
        channels=("CT",),
        labels={"ball": 1, "cube": 3},
        transpose=(0, 1, 2),
        spacing=(1.0, 1.0, 1.0),
        median_shape=(16.0, 16.0, 16.0),
        normalisation=(ChannelNormalisation(scheme="z-score"),),
    )
    return replace(plan, **changes)


def tiny_plan(*, training: dict | None = None, **changes) -> Plan:
    """A plan that trains in seconds."""
    keys = {
        "epochs": 2, "iterations_per_epoch": 3, "validation_iterations": 2, "workers": 0, "precision": "float32",
        "checkpoint_minutes": 0.0, "tf32": False,
    }  # fmt: skip
    plan = Plan(
        study="test",
        setting="tiny",
        dataset="made",
        seed=1,
        preprocessing=preprocessing_plan(),
        patch=(8, 12, 12),
        batch=2,
        network=NetworkPlan(
            channels=1,
            classes=3,
            features=(4, 8, 8),
            kernels=((3, 3, 3),) * 3,
            strides=((1, 1, 1), (2, 2, 2), (1, 2, 2)),
        ),
        training=Training(**{**keys, **(training or {})}),
        augmentation=Augmentation(),
        inference=Inference(),
    )
    return replace(plan, **changes)


def properties(case: str, size: tuple[int, ...], **changes) -> CaseProperties:
    """A case whose file is its own network grid: RAS with axes x, y, z in the file."""
    plain = CaseProperties(
        case=case,
        file_shape=size[::-1],
        affine=tuple(tuple(row) for row in np.eye(4)),
        full_shape=size,
        box=tuple((0, extent) for extent in size),
        spacing=(1.0, 1.0, 1.0),
        shape=size,
    )
    return replace(plain, **changes)


def store_case(
    folder: Path, case: str, *, seed: int, shape: tuple[int, ...] = (14, 18, 16), cube: bool = True
) -> np.ndarray:
    """A bright ball (class 1) and a dark cube (class 2), or none, in noise; returns the classes."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    z, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    labels[(z - 6) ** 2 + (y - 5) ** 2 + (x - 6) ** 2 <= 9] = 1
    labels[8:12, 11:15, 9:13] = 2 if cube else 0
    image = random.normal(scale=0.3, size=shape) + np.select([labels == 1, labels == 2], [2.0, -2.0])
    foreground = {label: np.argwhere(labels == label) for label in (1, 2) if (labels == label).any()}
    save_case(folder, properties(case, shape), image[None].astype(np.float32), labels, foreground, (8, 12, 12))
    return labels


def three_cases(folder: Path) -> VolumeData:
    """A fold of three made cases below `folder`: two to train, one to validate."""
    for number in range(3):
        store_case(folder / "cases", f"case{number}", seed=number)
    return VolumeData(number=0, preprocessed=folder / "cases", training=("case0", "case1"), validation=("case2",))


def weights_of(run: Run) -> list[torch.Tensor]:
    """Copies of a run's weights and running statistics."""
    return [value.clone() for value in run.network.state_dict().values()]


def full_after(calls: int, real: object) -> object:
    """A function that does the real work a few times and then finds the disk full."""
    count = iter(range(10**6))

    def limited(*arguments: object, **keys: object) -> object:
        if next(count) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **keys)

    return limited
