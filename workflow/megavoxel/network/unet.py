"""The 3D U-Net, by default that of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021), as a program of blocks."""

from __future__ import annotations

from megavoxel.network.blocks import ConvolutionNormActivation, MaxOfCells
from megavoxel.network.decoder import decoder_blocks, excitation, skip_name
from megavoxel.network.program import Block, Place
from megavoxel.planning.plan import NetworkPlan


def unet_blocks(plan: NetworkPlan) -> list[Block]:
    """The blocks of the U-Net, one per convolution and excitation, so that it can be cut between any two."""
    encoder = [block for level in range(len(plan.features)) for block in _encoder_level(plan, level)]
    return [*encoder, *decoder_blocks(plan)]


def _encoder_level(plan: NetworkPlan, level: int) -> list[Block]:
    blocks, skip = [], skip_name(plan, level)
    for index in range(plan.convolutions_per_level):
        first, final = index == 0, index == plan.convolutions_per_level - 1
        entering = plan.input_channels if plan.fusion == "pre" else plan.channels
        below = entering if level == 0 else plan.features[level - 1]
        stride = plan.strides[level] if first else (1, 1, 1)
        pooled = plan.pooling == "max" and max(stride) > 1
        if pooled:
            # A block of its own: with an expanded patch it belongs to the part that keeps nothing.
            place = Place(side="encoder", level=level, kind="pooling")
            blocks.append(Block(f"encoder{level}_pooling", MaxOfCells(stride), place=place))
        module = ConvolutionNormActivation(
            below if first else plan.features[level],
            plan.features[level],
            plan.kernels[level],
            (1, 1, 1) if pooled else stride,
            plan.norm,
        )
        stash = skip if final and plan.squeeze_excitation is None else None
        place = Place(side="encoder", level=level, kind="convolution")
        blocks.append(Block(f"encoder{level}_convolution{index}", module, stash=stash, place=place))
    return blocks + excitation(plan, "encoder", level, plan.features[level], stash=skip)
