"""The 3D U-Net, by default that of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021), as a program of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavoxel.network.blocks import (
    ConvolutionNormActivation,
    InPlaceLeakyReLU,
    UpsampleAndJoin,
    initialise,
    squeeze_excitation,
)
from megavoxel.network.program import Block, Program, RunState
from megavoxel.planning.plan import NetworkPlan

EXPANDED_LEVEL = 1
"""Decoder level at which an expanded patch meets its loss, counted from 0."""


def unet_blocks(plan: NetworkPlan) -> list[Block]:
    """The blocks of the U-Net, one per convolution and excitation, so that it can be cut between any two."""
    deepest = len(plan.features) - 1
    blocks = [block for level in range(deepest + 1) for block in _encoder_level(plan, level, last=level == deepest)]
    for level in range(deepest - 1, -1, -1):
        blocks += _decoder_level(plan, level)
        if level in levels_with_head(plan):
            blocks += _head(plan, level)
    return blocks if deepest > 0 else [*blocks, *_head(plan, 0)]


def supervised_levels(plan: NetworkPlan) -> list[int]:
    """Decoder levels with a head: the first and, under deep supervision, all others but the lowest.

    nnU-Net gives the lowest decoder level a head and its loss the weight 0; here that head does not exist.
    """
    deepest = len(plan.features) - 1
    return list(range(max(1, deepest - 1))) if plan.deep_supervision else [0]


def levels_with_head(plan: NetworkPlan) -> list[int]:
    """The supervised levels, and the second one where an expanded patch needs it."""
    expanded = {EXPANDED_LEVEL} if plan.expanded_head else set()
    return sorted({*supervised_levels(plan), *expanded})


def head_name(level: int) -> str:
    """The name under which the head of a decoder level emits its logits."""
    return f"level{level}"


def entering_state(plan: NetworkPlan, tensor: Tensor) -> RunState:
    """What the first block of a network is given.

    The channels behind the image's hold a first stage's labels. With `post` fusion they go to the decoder levels,
    brought to the resolution of each by nearest neighbour (Wang et al., "Memory-efficient Segmentation of
    High-resolution Volumetric MicroCT Images", MIDL 2022, appendix A.5); with `pre` they stay with the image.

    Args:
        plan: the network.
        tensor: (batch, input channels, z, y, x), a multiple of the network's stride.
    """
    if not plan.prior_channels or plan.fusion == "pre":
        return RunState(activation=tensor)
    image, prior = tensor.split([plan.channels, plan.prior_channels], dim=1)
    strides = cumulative_strides(plan)[:-1]
    return RunState(
        activation=image, stashed={prior_name(level): _nearest(prior, stride) for level, stride in enumerate(strides)}
    )


def prior_name(level: int) -> str:
    """The name under which a first stage's labels wait for a decoder level."""
    return f"prior{level}"


def program_inputs(plan: NetworkPlan) -> list[str]:
    """What waits for the decoder levels when the program begins."""
    levels = range(len(plan.features) - 1) if plan.prior_channels and plan.fusion == "post" else ()
    return [prior_name(level) for level in levels]


class SegmentationNetwork(nn.Module):
    """A program with heads that takes images of any size.

    Images are padded with zeros at the end of each axis to the next multiple of the network's stride, and the logits
    are cropped to the image again.

    Args:
        plan: the network.
        seed: seed of the initial weights; the global random state is left alone.
        checkpointing: whether blocks are run again in the backward pass instead of keeping their activations.
    """

    def __init__(self, plan: NetworkPlan, *, seed: int = 0, checkpointing: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.program = Program(unet_blocks(plan), inputs=program_inputs(plan))
            self.program.apply(initialise)
        self.plan = plan
        self.checkpointing = checkpointing
        self.strides = cumulative_strides(plan)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits per supervised decoder level, full resolution first.

        Args:
            image: (batch, input channels, z, y, x).

        Returns:
            (batch, classes, ceil(z / s), …) for each supervised level, s being the level's stride. In evaluation mode
            the first one only.
        """
        state = self.program.run(entering_state(self.plan, self.pad(image)), checkpointing=self.checkpointing)
        levels = supervised_levels(self.plan)
        return [
            self.cropped(state.logits[head_name(level)], level, image.shape[2:])
            for level in (levels if self.training else levels[:1])
        ]

    def forward_expanded(self, image: Tensor) -> Tensor:
        """Logits of an expanded patch at the second decoder level; the first level of the network gets no gradient.

        What the first level makes is not kept for a backward pass, and its decoder part does not run (Wang et al.,
        MIDL 2022, section 3.1 and appendix A.5).

        Args:
            image: (batch, input channels, z, y, x).

        Returns:
            (batch, classes, ceil(z / s), …), s being the stride of the second level.
        """
        names = list(self.program.blocks)
        second = next(number for number, name in enumerate(names) if name.startswith(f"encoder{EXPANDED_LEVEL}_conv"))
        with torch.no_grad():
            state = self.program.run(entering_state(self.plan, self.pad(image)), stop=second)
        for unused in (f"skip{EXPANDED_LEVEL - 1}", prior_name(EXPANDED_LEVEL - 1)):
            state.stashed.pop(unused, None)
        stop = names.index(f"head{EXPANDED_LEVEL}") + 1
        state = self.program.run(state, start=second, stop=stop, checkpointing=self.checkpointing)
        return self.cropped(state.logits[head_name(EXPANDED_LEVEL)], EXPANDED_LEVEL, image.shape[2:])

    def cropped(self, logits: Tensor, level: int, shape: Sequence[int]) -> Tensor:
        """A level's logits without what belongs to the padding; `shape` is that of the image (z, y, x)."""
        stride = logits_strides(self.plan)[level]
        z, y, x = (math.ceil(size / step) for size, step in zip(shape, stride, strict=True))
        return logits[:, :, :z, :y, :x]

    def pad(self, image: Tensor) -> Tensor:
        """The image, padded with zeros at the end of each axis to a multiple of the network's stride."""
        missing = [-size % stride for size, stride in zip(image.shape[2:], self.strides[-1], strict=True)]
        if not any(missing):
            return image
        return F.pad(image, [amount for extra in reversed(missing) for amount in (0, extra)])


def cumulative_strides(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """Per level and axis, how many voxels of the image one of its voxels covers; the last is the network's stride."""
    strides = [plan.strides[0]]
    for stride in plan.strides[1:]:
        strides.append(tuple(before * step for before, step in zip(strides[-1], stride, strict=True)))
    return [tuple(stride) for stride in strides]


def logits_strides(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """Per level and axis, how many voxels of the image one voxel of its logits covers; 1 at the first level.

    Where the first level is coarser than the image, its logits are brought back to the image's resolution.
    """
    return [(1, 1, 1), *cumulative_strides(plan)[1:]]


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _encoder_level(plan: NetworkPlan, level: int, *, last: bool) -> list[Block]:
    blocks, skip = [], None if last else f"skip{level}"
    for index in range(plan.convolutions_per_level):
        first, final = index == 0, index == plan.convolutions_per_level - 1
        below = _entering_channels(plan) if level == 0 else plan.features[level - 1]
        stride = plan.strides[level] if first else (1, 1, 1)
        pooled = plan.pooling == "max" and max(stride) > 1
        if pooled:
            # A block of its own: with an expanded patch it belongs to the part that keeps nothing.
            blocks.append(Block(f"encoder{level}_pooling", nn.MaxPool3d(stride)))
        module = ConvolutionNormActivation(
            below if first else plan.features[level],
            plan.features[level],
            plan.kernels[level],
            (1, 1, 1) if pooled else stride,
            plan.norm,
        )
        stash = skip if final and plan.squeeze_excitation is None else None
        blocks.append(Block(f"encoder{level}_convolution{index}", module, stash=stash))
    return blocks + _excitation(plan, f"encoder{level}", plan.features[level], stash=skip)


def _decoder_level(plan: NetworkPlan, level: int) -> list[Block]:
    skip, features, stride = plan.features[level], plan.decoder[level], plan.strides[level + 1]
    below = plan.decoder_and_bottleneck[level + 1]
    if plan.upsampling == "nearest":
        upsample, arriving = nn.Upsample(scale_factor=stride, mode="nearest"), below
    else:
        upsample, arriving = nn.ConvTranspose3d(below, skip, stride, stride), skip
    joined = (f"skip{level}", prior_name(level)) if prior_name(level) in program_inputs(plan) else (f"skip{level}",)
    prior = plan.prior_channels if len(joined) > 1 else 0
    blocks = [Block(f"decoder{level}_upsample", UpsampleAndJoin(upsample), pops=joined)]
    for index in range(plan.convolutions_per_level):
        channels_in = arriving + skip + prior if index == 0 else features
        module = ConvolutionNormActivation(channels_in, features, plan.kernels[level], norm=plan.norm)
        blocks.append(Block(f"decoder{level}_convolution{index}", module))
    return blocks + _excitation(plan, f"decoder{level}", features)


def _excitation(plan: NetworkPlan, level: str, channels: int, *, stash: str | None = None) -> list[Block]:
    """What ends a level of an SE-U-Net; nothing in a plain one.

    It stashes the level's skip, which is therefore the excited activation.
    """
    if plan.squeeze_excitation is None:
        return []
    # A block of its own and no part of the last convolution: a pipeline that is cut before it hands on one tensor, not
    # an activation and its skip, and its stages come out more even. The price is one more tensor per level that
    # checkpointing keeps. Weights of the convolutions have the names that they have in the plain U-Net.
    return [Block(f"{level}_excitation", squeeze_excitation(channels, plan.squeeze_excitation), stash=stash)]


def _head(plan: NetworkPlan, level: int) -> list[Block]:
    """What turns the activation of a decoder level into logits."""
    features, restored = plan.decoder_and_bottleneck[level], plan.restored_features
    if level > 0 or restored is None:
        return [Block(f"head{level}", nn.Conv3d(features, plan.classes, 1), emits=head_name(level))]
    stride, kernel = plan.strides[0], plan.kernels[0]
    if plan.upsampling == "nearest":
        upsample = nn.Upsample(scale_factor=stride, mode="nearest")
    else:
        upsample = nn.Sequential(nn.ConvTranspose3d(features, restored, stride, stride), InPlaceLeakyReLU(0.01))
    # Wider than one voxel: the copies that `nearest` makes of a voxel differ by their neighbours alone.
    head = nn.Conv3d(restored, plan.classes, kernel, padding=tuple(extent // 2 for extent in kernel))
    return [Block("full_upsample", upsample), Block("head0", head, emits=head_name(0))]


def _entering_channels(plan: NetworkPlan) -> int:
    """Channels that the first convolution sees."""
    return plan.input_channels if plan.fusion == "pre" else plan.channels


def _nearest(prior: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Of each cell of `stride` voxels the one behind its centre, as `training.loss.downsample_target` takes it."""
    return prior[(..., *(slice(step // 2, None, step) for step in stride))]
