"""The 3D U-Net, by default that of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021), as a program of blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavoxel.network.blocks import ConvolutionNormActivation, UpsampleAndJoin, initialise
from megavoxel.network.program import Block, Program
from megavoxel.planning.plan import NetworkPlan


def unet_blocks(plan: NetworkPlan) -> list[Block]:
    """The blocks of the U-Net, one per convolution, so that it can be cut between any two."""
    deepest = len(plan.features) - 1
    blocks = [block for level in range(deepest + 1) for block in _encoder_level(plan, level, last=level == deepest)]
    for level in range(deepest - 1, -1, -1):
        blocks += _decoder_level(plan, level)
        if level in supervised_levels(plan):
            blocks.append(_head(plan, level))
    return blocks if deepest > 0 else [*blocks, _head(plan, 0)]


def supervised_levels(plan: NetworkPlan) -> list[int]:
    """Decoder levels with a head: the first and, under deep supervision, all others but the lowest.

    nnU-Net gives the lowest decoder level a head and its loss the weight 0; here that head does not exist.
    """
    deepest = len(plan.features) - 1
    return list(range(max(1, deepest - 1))) if plan.deep_supervision else [0]


def head_name(level: int) -> str:
    """The name under which the head of a decoder level emits its logits."""
    return f"level{level}"


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
            self.program = Program(unet_blocks(plan))
            self.program.apply(initialise)
        self.plan = plan
        self.checkpointing = checkpointing
        self.strides = cumulative_strides(plan)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits per decoder level, full resolution first.

        Args:
            image: (batch, channels, z, y, x).

        Returns:
            (batch, classes, ceil(z / s), …) for each level with a head, s being the level's stride. In evaluation mode
            the first one only.
        """
        shape = image.shape[2:]
        emitted = self.program(self._pad(image), checkpointing=self.checkpointing)
        levels = [level for level in range(len(self.strides)) if head_name(level) in emitted]
        return [
            _crop(emitted[head_name(level)], shape, self.strides[level])
            for level in (levels if self.training else levels[:1])
        ]

    def _pad(self, image: Tensor) -> Tensor:
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


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _encoder_level(plan: NetworkPlan, level: int, *, last: bool) -> list[Block]:
    blocks = []
    for index in range(plan.convolutions_per_level):
        first, final = index == 0, index == plan.convolutions_per_level - 1
        below = plan.channels if level == 0 else plan.features[level - 1]
        stride = plan.strides[level] if first else (1, 1, 1)
        pooled = plan.pooling == "max" and max(stride) > 1
        module: nn.Module = ConvolutionNormActivation(
            below if first else plan.features[level],
            plan.features[level],
            plan.kernels[level],
            (1, 1, 1) if pooled else stride,
            plan.norm,
        )
        if pooled:
            module = nn.Sequential(nn.MaxPool3d(stride), module)
        stash = f"skip{level}" if final and not last else None
        blocks.append(Block(f"encoder{level}_convolution{index}", module, stash=stash))
    return blocks


def _decoder_level(plan: NetworkPlan, level: int) -> list[Block]:
    skip, features, stride = plan.features[level], plan.decoder[level], plan.strides[level + 1]
    below = (*plan.decoder, plan.features[-1])[level + 1]
    if plan.upsampling == "nearest":
        upsample, arriving = nn.Upsample(scale_factor=stride, mode="nearest"), below
    else:
        upsample, arriving = nn.ConvTranspose3d(below, skip, stride, stride), skip
    blocks = [Block(f"decoder{level}_upsample", UpsampleAndJoin(upsample), pops=(f"skip{level}",))]
    for index in range(plan.convolutions_per_level):
        channels_in = arriving + skip if index == 0 else features
        module = ConvolutionNormActivation(channels_in, features, plan.kernels[level], norm=plan.norm)
        blocks.append(Block(f"decoder{level}_convolution{index}", module))
    return blocks


def _head(plan: NetworkPlan, level: int) -> Block:
    return Block(
        f"head{level}", nn.Conv3d((*plan.decoder, plan.features[-1])[level], plan.classes, 1), emits=head_name(level)
    )


def _crop(logits: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    z, y, x = (math.ceil(size / step) for size, step in zip(shape, stride, strict=True))
    return logits[:, :, :z, :y, :x]
