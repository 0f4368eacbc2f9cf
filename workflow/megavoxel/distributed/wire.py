"""Tensors on their way between the processes of a pipeline, sent and received without waiting.

Both sides know whether a tensor lies with channels last, so that what is sent is not copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor

from megavoxel.network.stages import Form


class Work(Protocol):
    """A tensor that is on its way, as PyTorch's `torch.distributed.Work`."""

    def wait(self) -> object:
        """Returns when it is there; on a GPU, what follows waits for it."""

    def is_completed(self) -> bool:
        """Whether it is known to be there. gloo does not know before `wait`."""


@dataclass(kw_only=True)
class Arrival:
    """A tensor that is being received."""

    work: Work
    tensor: Tensor

    def wait(self) -> Tensor:
        """The tensor, (samples, channels, z, y, x) for activations."""
        self.work.wait()
        return self.tensor


class Wire:
    """The way of one process to the others of its pipeline.

    Args:
        first_rank: rank of the process with the first stage; the stages' ranks follow one another.
        device: where tensors lie.
    """

    def __init__(self, first_rank: int, device: torch.device) -> None:
        self.first_rank = first_rank
        self.device = device
        self._leaving: list[tuple[Work, Tensor]] = []

    def send(self, tensor: Tensor, stage: int, *, channels_last: bool = False) -> None:
        """Begins to send a tensor, which must not be changed until it has arrived."""
        packed = tensor.detach().contiguous(memory_format=_memory_format(channels_last))
        self._leaving = [(work, kept) for work, kept in self._leaving if not work.is_completed()]
        self._leaving.append((self._begin_to_send(_in_one_piece(packed, channels_last), stage), packed))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, stage: int, *, channels_last: bool = False) -> Arrival:
        """Begins to receive a tensor; between two processes they arrive in the order in which they were sent."""
        tensor = torch.empty(shape, dtype=dtype, device=self.device, memory_format=_memory_format(channels_last))
        return Arrival(work=self._begin_to_receive(_in_one_piece(tensor, channels_last), stage), tensor=tensor)

    def expect(self, form: Form, stage: int) -> Arrival:
        """The same for what a form describes: a transfer, or the gradient of one."""
        return self.receive(form.shape, form.dtype, stage, channels_last=form.channels_last)

    def finish(self) -> None:
        """Waits until all has left."""
        for work, _ in self._leaving:
            work.wait()
        self._leaving = []

    def _begin_to_send(self, tensor: Tensor, stage: int) -> Work:
        return torch.distributed.isend(tensor, self.first_rank + stage)

    def _begin_to_receive(self, tensor: Tensor, stage: int) -> Work:
        return torch.distributed.irecv(tensor, self.first_rank + stage)


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _in_one_piece(tensor: Tensor, channels_last: bool) -> Tensor:
    """The same memory with its axes in the order in which they lie."""
    return tensor.movedim(1, -1) if channels_last else tensor
