"""Networks that several processes run together: the first one has the windows, the others serve it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from megavoxel.distributed.group import Group
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan

NO_MORE = -1
"""Sent in place of a network's number when there are no more windows."""


class JointNetwork(ABC):
    """A network of which every process of a group does a part.

    Args:
        network: in evaluation mode. It keeps what this process's part needs, and is brought to the device after that.
        number: of this network among those that predict together.
        plan: says how the processes share a window.
        group: all of them make their networks in the same order.
        precision: of the forward pass.
        memory_format: of activations.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        number: int,
        *,
        plan: Plan,
        group: Group,
        precision: Precision,
        memory_format: torch.memory_format,
    ) -> None:
        self.network, self.number, self.plan, self.group = network, number, plan, group
        self.precision, self.memory_format = precision, memory_format

    def __call__(self, window: Tensor) -> list[Tensor]:
        """Called by the first process: float32 logits (1, classes, z, y, x) of a window (1, channels, z, y, x)."""
        self.group.from_leader([self.number, *window.shape[2:]])
        return [self.lead(window)]

    @abstractmethod
    def lead(self, window: Tensor) -> Tensor:
        """The first process's part of a window; the logits of all of it."""

    @abstractmethod
    def follow(self, shape: tuple[int, ...]) -> None:
        """Another process's part of a window of this shape (z, y, x)."""


@torch.inference_mode()
def serve(networks: Sequence[JointNetwork], group: Group) -> None:
    """Does this process's part of windows until there are no more; called in all processes but the first."""
    while (told := group.from_leader([0, 0, 0, 0]))[0] != NO_MORE:
        networks[told[0]].follow(tuple(told[1:]))


def dismiss(group: Group) -> None:
    """Tells the other processes that there are no more windows; called in the first one."""
    group.from_leader([NO_MORE, 0, 0, 0])
