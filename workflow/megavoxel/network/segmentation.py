"""The network that training and prediction run: a program with heads that takes images of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavoxel.config.setting import Checkpointing
from megavoxel.network.architectures import whole_program
from megavoxel.network.blocks import initialise
from megavoxel.network.program import Block, Program, RunState, head_name, prior_name
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import EXPANDED_LEVEL, shape_of


def entering_state(plan: NetworkPlan, tensor: Tensor) -> RunState:
    """What the first block of a network is given.

    The channels behind the image's hold a first stage's labels. With `post` fusion they go to the decoder levels,
    brought to the resolution of each by nearest neighbour (Wang et al., "Memory-efficient Segmentation of
    High-resolution Volumetric MicroCT Images", MIDL 2022, appendix A.5); with `pre` they stay with the image.

    Args:
        tensor: (batch, input channels, z, y, x), a multiple of the network's stride.
    """
    shape = shape_of(plan)
    if not plan.prior_channels or plan.fusion == "pre":
        return RunState(activation=tensor)
    image, prior = tensor.split([plan.channels, plan.prior_channels], dim=1)
    priors = {prior_name(level): _nearest(prior, shape.strides[level]) for level in shape.prior_levels}
    return RunState(activation=image, stashed=priors)


class SegmentationNetwork(nn.Module):
    """A program with heads that takes images of any size.

    Images are padded with zeros at the end of each axis to the next multiple of the network's stride, and the logits
    are cropped to the image again.

    Args:
        plan: the network.
        seed: seed of the initial weights; the global random state is left alone.
        checkpointing: what is computed again in the backward pass instead of being kept for it.
    """

    def __init__(self, plan: NetworkPlan, *, seed: int = 0, checkpointing: Checkpointing = "none") -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.program = whole_program(plan)
            self.program.apply(initialise)
        self.plan = plan
        self.shape = shape_of(plan)
        self.again = computed_again(self.program, checkpointing)
        """Blocks whose convolution is computed again; None: nothing is, not even norms."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits per supervised decoder level, full resolution first.

        Args:
            image: (batch, input channels, z, y, x).

        Returns:
            (batch, classes, ceil(z / s), …) for each supervised level, s being the level's stride. In evaluation mode
            the first one only.
        """
        state = self.program.run(self.enter(image), again=self.again)
        return list(self.logits_by_level(state, image.shape[2:]).values())

    def forward_expanded(self, image: Tensor) -> Tensor:
        """Logits of an expanded patch at the second decoder level; the first level of the network gets no gradient.

        What the first level makes is not kept for a backward pass, and its decoder part does not run (Wang et al.,
        MIDL 2022, section 3.1 and appendix A.5).

        Args:
            image: (batch, input channels, z, y, x).

        Returns:
            (batch, classes, ceil(z / s), …), s being the stride of the second level.
        """
        second = self.program.position(
            lambda block: (
                (block.place.side, block.place.level, block.place.kind) == ("encoder", EXPANDED_LEVEL, "convolution")
            )
        )
        stop = self.program.position(lambda block: block.emits == head_name(EXPANDED_LEVEL)) + 1
        with torch.no_grad():
            state = self.program.run(self.enter(image), stop=second)
        popped = {name for block in list(self.program)[second:stop] for name in block.pops}
        state.stashed = {name: tensor for name, tensor in state.stashed.items() if name in popped}
        state = self.program.run(state, start=second, stop=stop, again=self.again)
        return self.cropped(state.logits[head_name(EXPANDED_LEVEL)], EXPANDED_LEVEL, image.shape[2:])

    def enter(self, image: Tensor) -> RunState:
        """What the first block is given for an image (batch, input channels, z, y, x) of any size."""
        return entering_state(self.plan, self.pad(image))

    def logits_by_level(self, state: RunState, shape: Sequence[int]) -> dict[int, Tensor]:
        """Logits (batch, classes, …) that a run has emitted, without padding, by supervised level, the finest first.

        Args:
            state: after the run of all blocks or of some.
            shape: voxels per axis of the image (z, y, x).

        Returns:
            In evaluation mode the finest level alone; levels whose head has not run are left out.
        """
        levels = self.shape.supervised_levels if self.training else self.shape.supervised_levels[:1]
        emitted = {level: state.logits[head_name(level)] for level in levels if head_name(level) in state.logits}
        return {level: self.cropped(logits, level, shape) for level, logits in emitted.items()}

    def cropped(self, logits: Tensor, level: int, shape: Sequence[int]) -> Tensor:
        """A level's logits without the padding; `shape` is that of the image (z, y, x)."""
        stride = self.shape.logits_strides[level]
        z, y, x = (math.ceil(size / step) for size, step in zip(shape, stride, strict=True))
        return logits[:, :, :z, :y, :x]

    def pad(self, image: Tensor) -> Tensor:
        """The image, padded with zeros at the end of each axis to a multiple of the network's stride."""
        padded = self.shape.padded(image.shape[2:])
        missing = [size - own for size, own in zip(padded, image.shape[2:], strict=True)]
        if not any(missing):
            return image
        return F.pad(image, [amount for extra in reversed(missing) for amount in (0, extra)])


def computed_again(program: Program, checkpointing: Checkpointing) -> frozenset[str] | None:
    """Names of the blocks whose convolution is computed again; None: nothing is, not even norms.

    With `blocks` each level keeps one convolution of its encoder, the last, whose output skips to the decoder, and one
    of its decoder, the first, whose input is larger than those of the others. Of residual blocks each keeps its last,
    so that none has to be made from the one before.
    """
    if checkpointing == "none":
        return None
    if checkpointing == "norms":
        return frozenset()
    if checkpointing != "blocks":
        return frozenset(checkpointing)
    units: dict[tuple[str, int, int], list[str]] = {}
    for block in _convolutions(program):
        units.setdefault((block.place.side, block.place.level, block.place.unit), []).append(block.name)
    parts = (names[:-1] if side == "encoder" else names[1:] for (side, *_), names in units.items())
    return frozenset(name for part in parts for name in part)


def convolution_names(program: Program) -> list[str]:
    """Names of the blocks that `checkpointing` can list, in the order of the program."""
    return [block.name for block in _convolutions(program)]


def _convolutions(program: Program) -> list[Block]:
    return [block for block in program if block.place is not None and block.place.kind == "convolution"]


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _nearest(prior: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The labels at every cell of `stride` voxels: those of the voxel behind the cell's centre, as in
    `training.loss.downsample_target`."""
    return prior[(..., *(slice(step // 2, None, step) for step in stride))]
