"""Optimiser and learning rate from a study's keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from megavoxel.config.classification import ClassifierTraining
from megavoxel.config.training import Training
from megavoxel.network.segmentation import SegmentationNetwork

POLY_EXPONENT = 0.9
RULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}
"""Factor of the learning rate by the ratio of two batches."""
KERNELS: dict[str, dict[str, bool]] = {
    "auto": {}, "loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
}  # fmt: skip
"""PyTorch's options by the values of `training.optimizer_kernels`."""


def trained_weights(network: SegmentationNetwork, training: Training) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The weights that a segmentation run changes, in groups with a `factor` of the learning rate where these differ.

    Those of a frozen encoder are told that they need no gradient, and left out.
    """
    network.requires_grad_(True)
    levels, groups = len(network.plan.features), {}
    for block in network.program:
        is_encoder = block.place is not None and block.place.side == "encoder"
        if is_encoder and training.freeze_encoder:
            block.requires_grad_(False)
        elif own := list(block.parameters()):
            groups.setdefault(levels - block.place.level if is_encoder else 0, []).extend(own)
    if training.encoder_rate_decay == 1:
        return [weights for weights in network.parameters() if weights.requires_grad]
    return [{"params": own, "factor": training.encoder_rate_decay**steps} for steps, own in groups.items()]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Has the next steps go by a learning rate, of each group times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    training: Training | ClassifierTraining,
    way: str | None = None,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW, Adam or RMSProp, the last three with PyTorch's own constants.

    Args:
        way: a key of `KERNELS`; None: `training.optimizer_kernels`.
    """
    kernels = KERNELS[way or training.optimizer_kernels]
    adaptive = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    if training.optimizer in adaptive:
        decay = training.weight_decay
        return adaptive[training.optimizer](parameters, lr=training.learning_rate, weight_decay=decay, **kernels)
    return torch.optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
        **kernels,
    )


def learning_rate(epoch: int, training: Training | ClassifierTraining, batch: int) -> float:
    """Learning rate of an epoch counted from 0: linear warm-up, then poly (nnU-Net), cosine or constant.

    It begins at `training.learning_rate`, by `learning_rate_rule` as it is, or times the batch over
    `learning_rate_batch` (`linear`: Goyal et al., arXiv:1706.02677, 2017) or the root of that (`sqrt`: Krizhevsky,
    arXiv:1404.5997, 2014).
    """
    highest = training.learning_rate * RULES[training.learning_rate_rule](batch / training.learning_rate_batch)
    if epoch < training.warmup_epochs:
        return highest * (epoch + 1) / (training.warmup_epochs + 1)
    done = (epoch - training.warmup_epochs) / max(1, training.epochs - training.warmup_epochs)
    shape = {
        "poly": (1 - done) ** POLY_EXPONENT,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "constant": 1.0,
    }
    return highest * shape[training.schedule]
