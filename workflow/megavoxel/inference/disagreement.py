"""How far the networks of several folds disagree about each voxel.

The measure is the mutual information of a voxel's class and the choice of a network: the entropy of the mean
probabilities, less the mean of the networks' own entropies, in nats. It is 0 where all networks say the same, however
unsure they are, and at most the logarithm of the number of networks or of classes, whichever is smaller. Times the
number of networks, it is the disagreement of an ensemble in Lakshminarayanan et al. (NeurIPS 2017, section 3.5): the
sum of the divergences of the networks' probabilities from their mean. Of regions, each has its own mutual information
of being there or not; the largest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megavoxel.inference.logits import LogitsHeader, OnNetworkGrid
from megavoxel.inference.sliding_window import Slab


class Voices:
    """What each of several networks says of a window, one after the other.

    Args:
        overlapping: whether outputs are regions, which may overlap, and not classes.
    """

    def __init__(self, *, overlapping: bool) -> None:
        self.overlapping = overlapping
        self.count = 0
        self.total: Tensor | float = 0.0
        """Sum of the probabilities."""
        self.entropies: Tensor | float = 0.0
        """Sum of the entropies."""

    def add(self, logits: Tensor) -> None:
        """Takes the logits of a network, float32 (1, outputs, z, y, x); they are not changed."""
        probabilities = logits.sigmoid() if self.overlapping else logits.softmax(dim=1)
        self.count += 1
        self.total = self.total + probabilities
        self.entropies = self.entropies + self._entropy(probabilities)

    def disagreement(self) -> Tensor:
        """Nats, float32 (1, 1, z, y, x)."""
        found = self._entropy(self.total / self.count) - self.entropies / self.count
        return found.amax(dim=1, keepdim=True).clamp_(min=0)

    def _entropy(self, probabilities: Tensor) -> Tensor:
        parts = -torch.xlogy(probabilities, probabilities)
        if self.overlapping:
            absent = 1 - probabilities
            return parts - torch.xlogy(absent, absent)
        return parts.sum(dim=1, keepdim=True)


def new_disagreement(header: LogitsHeader, scratch: Path) -> OnNetworkGrid:
    """An empty map of a case, whose values lie in a file in `scratch`."""
    shape = (1, *header.properties.shape)
    return OnNetworkGrid(
        header=header, array=np.memmap(scratch / "disagreement", dtype=np.float16, mode="w+", shape=shape)
    )


def taken_off(slabs: Iterable[Slab], kept: OnNetworkGrid) -> Iterator[Slab]:
    """Slabs of logits as they come, without the disagreement behind them, which goes to `kept`."""
    for slab in slabs:
        kept.array[slab.place] = slab.logits[-1:].half().cpu().numpy()
        yield replace(slab, logits=slab.logits[:-1])
