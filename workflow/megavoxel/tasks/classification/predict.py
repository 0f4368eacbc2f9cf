"""Class probabilities of images by trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megavoxel.network.device import Precision
from megavoxel.network.weights import load_weights
from megavoxel.tasks.classification.loop import logits_of
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.plan import ClassifierPlan


def predict_images(
    plan: ClassifierPlan, weights: Sequence[Path], files: Sequence[Path], device: torch.device
) -> np.ndarray:
    """float64 (images, classes): the mean of the networks' probabilities.

    Raises:
        UserError: an image cannot be read, or weights are of another plan.
    """
    total = np.zeros((len(files), len(plan.classes)))
    if not files:
        return total
    for path in weights:
        content = load_weights(path, plan_hash=plan.hash)
        network = build_network(plan.network, len(plan.classes))
        network.load_state_dict(content["weights"])
        network = network.to(device, memory_format=torch.channels_last)
        precision = Precision(name=content["precision"], reason="as in training")
        total += logits_of(network, files, plan, precision, device).double().softmax(dim=1).numpy()
    return total / len(weights)
