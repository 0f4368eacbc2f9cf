"""Tensors on their way between the processes of a pipeline, sent and received without waiting.

They travel with channels last, as convolutions leave them: what is sent is not copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(kw_only=True)
class Arrival:
    """A tensor that is being received."""

    work: torch.distributed.Work
    buffer: Tensor

    def wait(self) -> Tensor:
        """The tensor, (samples, channels, z, y, x) for activations."""
        self.work.wait()
        return _channels_second(self.buffer)


class Wire:
    """The way of one process to the others of its pipeline.

    Args:
        first_rank: rank of the process with the first stage; the stages' ranks follow one another.
        device: where tensors lie.
    """

    def __init__(self, first_rank: int, device: torch.device) -> None:
        self.first_rank = first_rank
        self.device = device
        self._leaving: list[tuple[torch.distributed.Work, Tensor]] = []

    def send(self, tensor: Tensor, stage: int) -> None:
        """Begins to send a tensor, which must not be changed until it has arrived."""
        packed = _channels_last(tensor.detach()).contiguous()
        self._leaving = [(work, kept) for work, kept in self._leaving if not work.is_completed()]
        self._leaving.append((torch.distributed.isend(packed, self.first_rank + stage), packed))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, stage: int) -> Arrival:
        """Begins to receive a tensor; between two processes they arrive in the order in which they were sent."""
        samples, *rest = shape
        packed = (samples, *rest[1:], rest[0]) if len(shape) == 5 else tuple(shape)
        buffer = torch.empty(packed, dtype=dtype, device=self.device)
        return Arrival(work=torch.distributed.irecv(buffer, self.first_rank + stage), buffer=buffer)

    def finish(self) -> None:
        """Waits until all has left."""
        for work, _ in self._leaving:
            work.wait()
        self._leaving = []


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1) if tensor.dim() == 5 else tensor


def _channels_second(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1) if tensor.dim() == 5 else tensor
