"""nnU-Net's ResEnc U-Net (Isensee et al., arXiv:2404.09556) as a program: residual blocks down, the plain decoder up.

A residual block is that of ResNet-D (He et al., arXiv:1812.01187): its shortcut halves by average pooling.
"""

from __future__ import annotations

from torch import nn

from megavoxel.network.blocks import ConvolutionNorm, ConvolutionNormActivation, MeanOfCells, ResidualSum
from megavoxel.network.decoder import decoder_blocks, excitation, skip_name
from megavoxel.network.program import Block, Place
from megavoxel.planning.plan import NetworkPlan

ONES = (1, 1, 1)


def residual_blocks(plan: NetworkPlan) -> list[Block]:
    """One block per convolution of the main path, so that the network can be cut between any two."""
    entering = plan.input_channels if plan.fusion == "pre" else plan.channels
    stem = ConvolutionNormActivation(entering, plan.features[0], plan.kernels[0], norm=plan.norm)
    place = Place(side="encoder", level=0, kind="convolution")
    encoder = [Block("encoder0_stem", stem, place=place)]
    for level in range(len(plan.features)):
        encoder += _encoder_level(plan, level)
    return [*encoder, *decoder_blocks(plan)]


def _encoder_level(plan: NetworkPlan, level: int) -> list[Block]:
    skip, features = skip_name(plan, level), plan.features[level]
    blocks, last = [], plan.blocks[level] - 1
    for unit in range(plan.blocks[level]):
        below = features if unit > 0 else plan.features[max(0, level - 1)]
        stride = plan.strides[level] if unit == 0 else ONES
        stash = skip if unit == last and plan.squeeze_excitation is None else None
        blocks += _residual_block(plan, level, unit, below, stride, stash)
    return blocks + excitation(plan, "encoder", level, features, stash=skip)


def _residual_block(
    plan: NetworkPlan, level: int, unit: int, below: int, stride: tuple[int, ...], stash: str | None
) -> list[Block]:
    features, kernel, norm = plan.features[level], plan.kernels[level], plan.norm
    name, given = f"encoder{level}_block{unit}_convolution", f"shortcut{level}_{unit}"
    place = Place(side="encoder", level=level, kind="convolution", unit=unit)
    first = ConvolutionNormActivation(below, features, kernel, stride, norm)
    second = ResidualSum(features, kernel, _shortcut(below, features, stride, norm), norm)
    return [
        Block(f"{name}0", first, keeps=given, place=place),
        Block(f"{name}1", second, pops=(given,), stash=stash, place=place),
    ]


def _shortcut(channels: int, features: int, stride: tuple[int, ...], norm: str) -> nn.Module:
    """The mean of the voxels that one becomes and, where the width changes, a linear layer and a norm."""
    parts: list[nn.Module] = [MeanOfCells(stride)] if max(stride) > 1 else []
    if channels != features:
        parts.append(ConvolutionNorm(channels, features, ONES, norm=norm, bias=False))
    return nn.Sequential(*parts)
