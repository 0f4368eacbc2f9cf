"""One process's place in a pipeline, and the tensors that it sends to the other processes and receives from them.

Nothing waits where it need not. Both sides know whether a tensor lies with channels last, so that what is sent is not
copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor

from megavoxel.distributed.group import Group, subgroups
from megavoxel.network.device import Precision
from megavoxel.network.partition import (
    PipelineStage,
    TensorSpec,
    Transfer,
    cut_into_stages,
    transfer_specs,
)
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan


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


class Peers:
    """Sends tensors to the other processes of a pipeline, and receives them from there.

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

    def expect(self, spec: TensorSpec, stage: int) -> Arrival:
        """Begins to receive the tensor that a spec describes: a transfer, or the gradient of one."""
        return self.receive(spec.shape, spec.dtype, stage, channels_last=spec.channels_last)

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
    """A view of the tensor whose axes are in the order in which they lie in memory."""
    return tensor.movedim(1, -1) if channels_last else tensor


@dataclass(frozen=True, kw_only=True)
class PipelineMember:
    """One process's place in a pipeline."""

    stage: PipelineStage
    stages: tuple[PipelineStage, ...]
    """All of the pipeline, in order."""
    specs: dict[Transfer, TensorSpec]
    """What a micro-batch's transfers look like."""
    replicas: Group
    """The processes that hold this stage, one of each pipeline."""
    peers: Peers
    parameter_names: tuple[str, ...]
    """Names of all weights of the whole network, in the order of its optimiser."""

    @property
    def head_stages(self) -> tuple[int, ...]:
        """Numbers of the stages that hold a head."""
        return tuple(stage.number for stage in self.stages if stage.has_head)


def join_pipeline(
    network: SegmentationNetwork, plan: Plan, group: Group, precision: Precision
) -> PipelineMember | None:
    """This process's place; the network keeps the blocks of its stage alone. None where the plan has no pipeline."""
    if plan.parallel.pipeline == 1:
        return None
    count, names = plan.parallel.pipeline, tuple(name for name, _ in network.named_parameters())
    stages = tuple(cut_into_stages(network.program, plan.stages))
    own = stages[group.rank % count]
    shape = (plan.batch // plan.parallel.parts, plan.network.input_channels, *plan.patch)
    network.program = own.part_of(network.program)
    member = PipelineMember(
        stage=own,
        stages=stages,
        specs=transfer_specs(plan.network, plan.stages, shape, precision, group.device),
        replicas=subgroups(group, [range(stage, group.size, count) for stage in range(count)]),
        peers=Peers(group.rank - group.rank % count, group.device),
        parameter_names=names,
    )
    _meet(member)
    return member


def _meet(member: PipelineMember) -> None:
    """Connects every pair of processes that will exchange tensors, in the same order everywhere.

    NCCL makes a connection when two processes first talk, and both wait for it: in another order they could wait in a
    circle.
    """
    pairs = {(transfer.source, transfer.target) for stage in member.stages for transfer in stage.sends}
    pairs |= {(0, head) for head in member.head_stages if head > 0}
    for source, target in sorted(pairs):
        if member.stage.number == source:
            member.peers.send(torch.zeros(1, device=member.peers.device), target)
        elif member.stage.number == target:
            member.peers.receive((1,), torch.float32, source).wait()
    member.peers.finish()
