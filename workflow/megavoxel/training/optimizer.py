"""Optimiser and learning rate from a study's keys."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from megavoxel.config.study import Training

POLY_EXPONENT = 0.9


def build_optimizer(parameters: Iterable[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW."""
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )


def learning_rate(epoch: int, training: Training) -> float:
    """Learning rate of an epoch counted from 0: linear warm-up, then poly (nnU-Net), cosine or constant."""
    if epoch < training.warmup_epochs:
        return training.learning_rate * (epoch + 1) / (training.warmup_epochs + 1)
    done = (epoch - training.warmup_epochs) / max(1, training.epochs - training.warmup_epochs)
    shape = {
        "poly": (1 - done) ** POLY_EXPONENT,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "constant": 1.0,
    }
    return training.learning_rate * shape[training.schedule]
