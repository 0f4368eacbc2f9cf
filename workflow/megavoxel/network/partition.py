"""A program cut into stages, one per device: which blocks a stage holds, and what travels between stages.

The activation goes from each stage to the next. What a block stashes goes straight to the stage that pops it, however
many lie between (the portals of torchgpipe, Kim et al., arXiv:2004.09910, section 3.2), so that a skip is sent once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.network.architectures import whole_program
from megavoxel.network.device import Precision
from megavoxel.network.program import Block, Program, RunState, with_channels_last
from megavoxel.network.recomputation import has_channels_last
from megavoxel.network.segmentation import entering_state
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import shape_of

ACTIVATION = ""
"""The name under which the activation travels; no stash is called so."""


@dataclass(frozen=True, kw_only=True, order=True)
class Transfer:
    """A tensor that one stage sends and another receives."""

    source: int
    target: int
    name: str
    """Name in the stash; `ACTIVATION` for the activation."""


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """Some consecutive blocks of a program."""

    number: int
    blocks: slice
    has_head: bool
    """Whether one of its blocks emits logits."""
    receives: tuple[Transfer, ...]
    """Sent and received in this order: the activation first, then skips, the last stashed first. The next stage needs
    them in this order, and a backward pass needs their gradients in it."""
    sends: tuple[Transfer, ...]
    inputs: tuple[str, ...]
    """Stashes that are there before its first block."""
    outputs: tuple[str, ...]
    """Stashes that are left after its last block: those that it sends."""

    def part_of(self, program: Program) -> Program:
        """The stage's own part of the whole program."""
        return Program(list(program)[self.blocks], inputs=self.inputs, outputs=self.outputs)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What a tensor that is received looks like."""

    shape: tuple[int, ...]
    """(samples, channels, z, y, x)."""
    dtype: torch.dtype
    needs_gradient: bool
    """Whether a gradient goes back to the sender."""
    channels_last: bool = False
    """Whether it lies with channels last, as convolutions leave it; instance norm leaves channels first."""

    @property
    def nbytes(self) -> int:
        """Size of the tensor."""
        return self.dtype.itemsize * math.prod(self.shape)


def cut_into_stages(program: Program, begins: Sequence[int]) -> list[PipelineStage]:
    """The stages of a whole program; what is stashed before its first block belongs to the first one.

    Args:
        begins: number of the first block of each stage, ascending from 0.

    Raises:
        ValueError: `begins` is no list of block numbers that ascends from 0.
    """
    ends = [*begins[1:], len(program)]
    if begins[0] != 0 or any(begin >= end for begin, end in zip(begins, ends, strict=True)):
        raise ValueError(f"stages that begin at the blocks {list(begins)} of {len(program)}")
    blocks, parts = list(program), [slice(*span) for span in zip(begins, ends, strict=True)]
    transfers = _transfers(blocks, program.inputs, parts)
    stages = []
    for number, part in enumerate(parts):
        receives = tuple(transfer for transfer in transfers if transfer.target == number)
        sends = tuple(transfer for transfer in transfers if transfer.source == number)
        own = set(program.inputs) if number == 0 else set()
        stages.append(
            PipelineStage(
                number=number,
                blocks=part,
                has_head=any(block.emits is not None for block in blocks[part]),
                receives=receives,
                sends=sends,
                inputs=tuple(sorted(own | _names(receives))),
                outputs=tuple(sorted(_names(sends))),
            )
        )
    return stages


def transfer_specs(
    plan: NetworkPlan, begins: Sequence[int], image: Sequence[int], precision: Precision, device: torch.device
) -> dict[Transfer, TensorSpec]:
    """What every transfer looks like, from a run of the whole program on tensors without memory.

    Args:
        begins: first block of each stage.
        image: shape of a micro-batch (samples, channels, z, y, x); it is padded as `SegmentationNetwork` does.
    """
    with FakeTensorMode(), torch.device(device):
        program = with_channels_last(whole_program(plan))
        shape = (*image[:2], *shape_of(plan).padded(image[2:]))
        state = entering_state(plan, torch.empty(shape, memory_format=torch.channels_last_3d))
        specs, waiting = {}, dict(state.stashed)
        for stage in cut_into_stages(program, begins):
            own = {name: waiting.pop(name) for name in stage.inputs}
            with precision.autocast(device):
                state = stage.part_of(program).run(RunState(activation=state.activation, stashed=own))
            waiting |= state.stashed
            for transfer in stage.sends:
                specs[transfer] = spec_of(tensor_of(state, transfer.name))
    return specs


def tensor_of(state: RunState, name: str) -> Tensor:
    """The tensor in a state that a transfer of this name sends."""
    return state.activation if name == ACTIVATION else state.stashed[name]


def spec_of(tensor: Tensor) -> TensorSpec:
    """What a tensor looks like."""
    return TensorSpec(
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        needs_gradient=tensor.requires_grad,
        channels_last=has_channels_last(tensor),
    )


def _transfers(blocks: Sequence[Block], inputs: Iterable[str], parts: Sequence[slice]) -> list[Transfer]:
    """Every tensor that crosses a border between stages, once: activations, then stashes, the last stashed first."""
    activations = [Transfer(source=number, target=number + 1, name=ACTIVATION) for number in range(len(parts) - 1)]
    stashes: list[tuple[int, Transfer]] = []
    holder = dict.fromkeys(inputs, (-1, 0))
    for number, part in enumerate(parts):
        for place, block in zip(range(part.start, part.stop), blocks[part], strict=True):
            for name in block.pops:
                since, source = holder.pop(name)
                if source != number:
                    stashes.append((since, Transfer(source=source, target=number, name=name)))
            holder |= dict.fromkeys(block.stashes, (place, number))
    return [*activations, *(transfer for _, transfer in sorted(stashes, reverse=True))]


def _names(transfers: Iterable[Transfer]) -> set[str]:
    return {transfer.name for transfer in transfers} - {ACTIVATION}
