"""The processes that train one network together: how they meet, and which values they exchange.

A single process is a group of one, so that code need not ask whether there are others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

from megavoxel.distributed.failures import failures_told
from megavoxel.errors import UserError

TIMEOUT = timedelta(minutes=5)
"""How long a process waits for the others: longer than any step or checkpoint, and short enough to notice a loss."""
BUCKET_BYTES = 2**25
"""Bytes of tensors that are averaged together, of which there is one more copy."""
_KEPT: list[torch.distributed.ProcessGroup] = []
"""Groups of this process, kept to its end: should DDP be the last to let go of one, its destructor waits, holding
Python's lock, for a thread that waits for that lock (seen with gloo: one process of two never ended)."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One process's view of the group."""

    rank: int = 0
    """Number of this process."""
    size: int = 1
    """Processes of the group."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where tensors that are exchanged lie."""
    processes: torch.distributed.ProcessGroup | None = None
    """PyTorch's handle of a part of all processes; None: all."""
    waiting: torch.distributed.ProcessGroup | None = None
    """The handle by which the processes wait for their leader where that may take long; None: `processes`."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor; no gradient flows through it."""
        total = tensor.detach()
        if self.size > 1:
            total = total.to(self.device, copy=True)
            torch.distributed.all_reduce(total, group=self.processes)
        return total

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes the mean of everybody's, in place; they are of one type, and alike everywhere."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            joined = torch.cat([tensor.flatten() for tensor in bucket])
            torch.distributed.all_reduce(joined, group=self.processes)
            joined /= self.size
            for tensor, mean in zip(bucket, joined.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    def all(self, value: float) -> list[float]:
        """Everybody's value, by rank."""
        values = torch.zeros(self.size, dtype=torch.float64)
        values[self.rank] = value
        return self.sum(values).tolist()

    def from_leader(self, values: Sequence[int]) -> list[int]:
        """The leading process's whole numbers, for everybody; all give as many."""
        told = torch.tensor(values, dtype=torch.int64, device=self.device if self.waiting is None else "cpu")
        if self.size > 1:
            torch.distributed.broadcast(told, group=self.waiting or self.processes, group_src=0)
        return told.tolist()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that are sent together."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.nbytes for one in bucket) + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def is_member() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_leader() -> bool:
    """Whether this process is the one of its group that will write files; known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def local_device(name: str | None) -> str | None:
    """The device of this process: with `auto` or `cuda` the GPU that has the process's number on its node."""
    if is_member() and torch.cuda.is_available() and name in (None, "auto", "cuda"):
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def joined_group(device: torch.device, patience: timedelta | None = None) -> Iterator[Group]:
    """The group that `torchrun` started: NCCL between GPUs, gloo between CPUs; a group of one without it.

    After an error the group is not taken apart, which could wait without end for a process that is lost.

    Args:
        patience: how long processes wait in `Group.from_leader`, over gloo, on whatever device; None: no longer than
            for anything else.
    """
    if not is_member():
        yield Group(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Not bound to the device (`device_id`): all pairs of processes would have one queue, and a pipeline stand still.
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    _KEPT.append(torch.distributed.group.WORLD)
    waiting = None
    if patience is not None:
        waiting = torch.distributed.new_group(backend="gloo", timeout=patience)
        _KEPT.append(waiting)
    ranks = {"rank": torch.distributed.get_rank(), "size": torch.distributed.get_world_size()}
    with failures_told():
        yield Group(**ranks, device=device, waiting=waiting)
    torch.distributed.destroy_process_group()


def subgroups(group: Group, ranks: Sequence[Sequence[int]], *, backend: str | None = None) -> Group:
    """This process's group of several that all processes make together.

    Args:
        group: all processes, with the device of what they exchange.
        ranks: of each part's processes; every process is in exactly one.
        backend: `gloo`, which exchanges tensors in host memory; None: that of the group.
    """
    own = Group(device=group.device)
    for part in ranks:
        processes = torch.distributed.new_group(list(part), backend=backend)
        if group.rank in part:
            _KEPT.append(processes)
            own = Group(rank=list(part).index(group.rank), size=len(part), device=group.device, processes=processes)
    return own


def require_same(group: Group, value: int, what: str) -> None:
    """Refuses to go on where the processes start from different places.

    Raises:
        UserError: somebody has another value.
    """
    values = group.all(value)
    if len(set(values)) > 1:
        seen = ", ".join(f"{found:g}" for found in values)
        raise UserError(
            f"the {group.size} processes see different values of the {what}: {seen}; if the folder lies on a shared "
            "file system it may lag behind: run the stage again"
        )
