"""Optimiser and learning rate from a study's keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from megavoxel.config.classification import ClassifierTraining
from megavoxel.config.training import Training

POLY_EXPONENT = 0.9
RULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}
"""Factor of the learning rate by the ratio of two batches."""


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], training: Training | ClassifierTraining
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW, Adam or RMSProp, the last three with PyTorch's own constants."""
    adaptive = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    if training.optimizer in adaptive:
        return adaptive[training.optimizer](parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
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
