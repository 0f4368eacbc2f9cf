"""A network is a program of blocks.

A block takes the running activation and what it *pops*, and leaves a new activation. It may *stash* that activation
under a name, for a later block to pop (a skip connection), it may *keep* the activation that it was given in the same
way (a shortcut around blocks), and it may *emit* logits. Running the list is the network;
running part of it, with the stash handed on, is a pipeline stage. The vocabulary of stash and pop is torchgpipe's
(Kim et al., arXiv:2004.09910, section 3.2).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from megavoxel.network.recomputation import computing_again, has_channels_last, remembered


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a block is in a network of levels."""

    side: Literal["encoder", "decoder", "head"]
    level: int
    """Counted from 0, the finest."""
    kind: Literal["pooling", "convolution", "excitation", "upsampling", "logits"]
    unit: int = 0
    """Residual block within its level, of several convolutions, counted from 0."""

    @property
    def is_cheap(self) -> bool:
        """Whether the block is computed in a fraction of a convolution's time."""
        return self.side != "head" and self.kind in ("pooling", "excitation", "upsampling")


class Block(nn.Module):
    """A module with its place in the program.

    Args:
        name: unique in the program; the prefix of the block's parameters in a state dictionary.
        module: called with the activation and then the popped tensors, in the order of `pops`.
        stash: the name under which the output is kept for a later block.
        keeps: the name under which the input is kept for a later block.
        pops: names that the block takes from the stash; what is popped is gone.
        emits: the name under which the module's output is logits; the activation then passes the block unchanged.
        place: what it is in a network of levels.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        stash: str | None = None,
        keeps: str | None = None,
        pops: tuple[str, ...] = (),
        emits: str | None = None,
        place: Place | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.module = module
        self.stash = stash
        self.keeps = keeps
        self.pops = pops
        self.emits = emits
        self.place = place

    @property
    def is_excitation(self) -> bool:
        """Whether it weighs the channels of its input."""
        return self.place is not None and self.place.kind == "excitation"

    @property
    def stashes(self) -> tuple[str, ...]:
        """Names that the block leaves in the stash."""
        return tuple(name for name in (self.keeps, self.stash) if name is not None)

    def stashed(self, given: Tensor, output: Tensor) -> dict[str, Tensor]:
        """What the block leaves in the stash, of its input and its output."""
        return {name: given if name == self.keeps else output for name in self.stashes}

    def forward(self, activation: Tensor, *popped: Tensor) -> Tensor:
        """The module's output."""
        if self.place is not None and self.place.is_cheap:
            return remembered(self.module, activation, *popped, relaid=True)
        return self.module(activation, *popped)


@dataclass(kw_only=True)
class RunState:
    """What travels through a program."""

    activation: Tensor
    stashed: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)


def head_name(level: int) -> str:
    """The name under which the head of a decoder level emits its logits."""
    return f"level{level}"


def prior_name(level: int) -> str:
    """The name under which a first stage's labels wait for a decoder level."""
    return f"prior{level}"


class Program(nn.Module):
    """A list of blocks that run one after the other.

    Args:
        blocks: in the order in which they run.
        inputs: what is stashed before the first block.
        outputs: what is left in the stash behind the last one.

    Raises:
        ValueError: two blocks share a name, a block pops what no earlier block stashed, or a stash is never popped.
    """

    def __init__(self, blocks: Iterable[Block], *, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> None:
        super().__init__()
        blocks, self.inputs = list(blocks), tuple(inputs)
        _check(blocks, set(inputs), set(outputs))
        self.blocks = nn.ModuleDict({block.name: block for block in blocks})

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks.values())

    def __len__(self) -> int:
        return len(self.blocks)

    def position(self, holds: Callable[[Block], bool]) -> int:
        """Number of the first block for which a condition holds."""
        return next(number for number, block in enumerate(self) if holds(block))

    def run(
        self, state: RunState, *, start: int = 0, stop: int | None = None, again: Container[str] | None = None
    ) -> RunState:
        """Runs the blocks from `start` to before `stop` on `state`, which is changed and returned.

        Args:
            state: the activation, what earlier blocks stashed, and the logits emitted so far.
            start: number of the first block to run.
            stop: number of the first block that is not run any more; None: all to the end.
            again: names of the blocks whose convolution is computed again in the backward pass, as norms and other
                cheap operations of all blocks are then; None: nothing is computed again.
        """
        last = again is not None and any(map(has_channels_last, self.parameters()))
        for block, following in itertools.islice(itertools.pairwise([*self, None]), start, stop):
            popped = [state.stashed.pop(name) for name in block.pops]
            # The sums of an excitation depend on the order in which voxels lie.
            relaid = last and not (following is not None and following.is_excitation)
            with _computing_again(block, again, channels_last=relaid):
                output = block(state.activation, *popped)
            if block.emits is not None:
                state.logits[block.emits] = output
                continue
            state.stashed |= block.stashed(state.activation, output)
            state.activation = output
        return state

    def forward(self, image: Tensor) -> Mapping[str, Tensor]:
        """Logits by the name of the head that emits them."""
        return self.run(RunState(activation=image)).logits


def with_channels_last(network: nn.Module) -> nn.Module:
    """The network with its weights laid as in training; for fake tensors, with which `Module.to` does not work."""
    for module in network.modules():
        for name, weights in list(module.named_parameters(recurse=False)):
            if weights.dim() == 5:
                laid = weights.detach().contiguous(memory_format=torch.channels_last_3d)
                setattr(module, name, nn.Parameter(laid))
    return network


def _computing_again(block: Block, again: Container[str] | None, *, channels_last: bool) -> AbstractContextManager:
    if again is None or not torch.is_grad_enabled():
        return nullcontext()
    return computing_again(convolutions=block.name in again, channels_last=channels_last)


def _check(blocks: list[Block], inputs: set[str], outputs: set[str]) -> None:
    repeated = [name for name, count in Counter(block.name for block in blocks).items() if count > 1]
    if repeated:
        raise ValueError(f"two blocks are called '{repeated[0]}'")
    stashed = set(inputs)
    for block in blocks:
        for name in block.pops:
            if name not in stashed:
                raise ValueError(f"block '{block.name}' pops '{name}', which no earlier block has stashed")
            stashed.remove(name)
        for name in block.stashes:
            if name in stashed:
                raise ValueError(f"block '{block.name}' stashes '{name}', which is still waiting to be popped")
            stashed.add(name)
    if stashed != outputs:
        raise ValueError(f"stashed and never popped: {', '.join(sorted(stashed - outputs))}")
