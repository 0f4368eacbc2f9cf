"""The decoder of a network of levels and its heads, and what ends a level, whatever the encoder is made of."""

from __future__ import annotations

from typing import Literal

from torch import nn

from megavoxel.network.blocks import (
    SLOPE,
    Convolution,
    ConvolutionNormActivation,
    InPlaceLeakyReLU,
    UpsampleAndJoin,
    squeeze_excitation,
)
from megavoxel.network.program import Block, Place, head_name, prior_name
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import shape_of


def skip_name(plan: NetworkPlan, level: int) -> str | None:
    """The name under which an encoder level stashes its output; None: it is the lowest."""
    return f"skip{level}" if level < len(plan.features) - 1 else None


def decoder_blocks(plan: NetworkPlan) -> list[Block]:
    """All blocks behind the encoder, one per convolution and excitation."""
    deepest, blocks = len(plan.features) - 1, []
    for level in range(deepest - 1, -1, -1):
        blocks += _decoder_level(plan, level)
        if level in shape_of(plan).head_levels:
            blocks += _head(plan, level)
    return blocks if deepest > 0 else _head(plan, 0)


def _decoder_level(plan: NetworkPlan, level: int) -> list[Block]:
    shape, skip, stride = shape_of(plan), plan.features[level], plan.strides[level + 1]
    features, below = shape.decoder_and_bottleneck[level : level + 2]
    if plan.upsampling == "nearest":
        upsample, arriving = nn.Upsample(scale_factor=stride, mode="nearest"), below
    else:
        upsample, arriving = nn.ConvTranspose3d(below, skip, stride, stride), skip
    has_prior = level in shape.prior_levels
    joined = (f"skip{level}", prior_name(level)) if has_prior else (f"skip{level}",)
    prior = plan.prior_channels if has_prior else 0
    place = Place(side="decoder", level=level, kind="upsampling")
    blocks = [Block(f"decoder{level}_upsample", UpsampleAndJoin(upsample), pops=joined, place=place)]
    for index in range(plan.convolutions_per_level):
        channels_in = arriving + skip + prior if index == 0 else features
        module = ConvolutionNormActivation(channels_in, features, plan.kernels[level], norm=plan.norm)
        place = Place(side="decoder", level=level, kind="convolution")
        blocks.append(Block(f"decoder{level}_convolution{index}", module, place=place))
    return blocks + excitation(plan, "decoder", level, features)


def excitation(
    plan: NetworkPlan, side: Literal["encoder", "decoder"], level: int, channels: int, *, stash: str | None = None
) -> list[Block]:
    """The block that ends a level of an SE-U-Net and stashes its skip; a plain U-Net has none."""
    if plan.squeeze_excitation is None:
        return []
    # A block of its own and no part of the last convolution: a pipeline that is cut before it hands on one tensor, not
    # an activation and its skip, and its stages come out more even. The price is one more tensor per level that
    # checkpointing keeps. Weights of the convolutions have the names that they have in the plain U-Net.
    module = squeeze_excitation(channels, plan.squeeze_excitation)
    place = Place(side=side, level=level, kind="excitation")
    return [Block(f"{side}{level}_excitation", module, stash=stash, place=place)]


def _head(plan: NetworkPlan, level: int) -> list[Block]:
    """The blocks that turn the activation of a decoder level into logits."""
    place = Place(side="head", level=level, kind="logits")
    features, restored = shape_of(plan).decoder_and_bottleneck[level], shape_of(plan).restored_features
    if level > 0 or restored is None:
        return [Block(f"head{level}", Convolution(features, plan.classes, 1), emits=head_name(level), place=place)]
    stride, kernel = plan.strides[0], plan.kernels[0]
    if plan.upsampling == "nearest":
        upsample = nn.Upsample(scale_factor=stride, mode="nearest")
    else:
        upsample = nn.Sequential(nn.ConvTranspose3d(features, restored, stride, stride), InPlaceLeakyReLU(SLOPE))
    # Wider than one voxel: the copies that `nearest` makes of a voxel differ by their neighbours alone.
    head = Convolution(restored, plan.classes, kernel, padding=tuple(extent // 2 for extent in kernel))
    finer = Place(side="head", level=0, kind="upsampling")
    return [Block("full_upsample", upsample, place=finer), Block("head0", head, emits=head_name(0), place=place)]
