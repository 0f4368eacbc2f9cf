"""How the outputs of a network become labels: the largest probability of a class, or regions in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megavoxel.config.regions import PRESENT, Regions
from megavoxel.volumes.volume import label_type

UNSEEN = 100.0
"""Size of the logits where the network did not look (outside of the cropped box)."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What outputs stand for, and which value a voxel gets.

    Without regions, outputs are classes and the most probable one takes the voxel. With regions, each has a probability
    of its own, and a voxel gets the value of the last region in the list that is more probable than not: nnU-Net's rule
    for `regions_class_order`.
    """

    labels: dict[str, int]
    """Values in label files by name; without regions, their position plus one is the class."""
    regions: Regions | None = None

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return len(self.labels) + 1 if self.regions is None else len(self.regions.values)

    @property
    def largest(self) -> int:
        """The largest value of label maps."""
        return max([0, *self.labels.values()])

    def background(self, *shape: int) -> Tensor:
        """Logits (outputs, *shape) of background."""
        logits = torch.zeros(self.outputs, *shape)
        if self.regions is not None:
            return logits.fill_(-UNSEEN)
        logits[0] = UNSEEN
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the outputs (outputs, …)."""
        return logits.softmax(dim=0) if self.regions is None else logits.sigmoid()

    def certain(self, classes: Tensor) -> Tensor:
        """Probabilities (outputs, …) of 0 and 1 that mean these classes: 0, or n for the n-th label."""
        if self.regions is None:
            return torch.zeros(self.outputs, *classes.shape).scatter_(0, classes[None], 1.0)
        values = np.array([0, *self.labels.values()])
        members = [np.isin(values, own) for own in self.regions.values.values()]
        return torch.from_numpy(np.stack(members)).float()[:, classes]

    def values(self, probabilities: Tensor) -> np.ndarray:
        """Label values of voxels, by the probabilities (outputs, …); without regions, logits will do."""
        kind = label_type(self.largest)
        if self.regions is None:
            return np.array([0, *self.labels.values()], dtype=kind)[probabilities.argmax(dim=0).numpy()]
        decided = np.zeros(probabilities.shape[1:], dtype=kind)
        for value, region in zip(self.regions.class_order, probabilities, strict=True):
            decided[(region > PRESENT).numpy()] = value
        return decided

    def values_of_logits(self, logits: Tensor) -> np.ndarray:
        """Label values of voxels, by the logits (outputs, …)."""
        return self.values(logits if self.regions is None else self.probabilities(logits))
