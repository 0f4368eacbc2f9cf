"""Levels, kernels and strides of a U-Net by the rules of nnU-Net, its cost, and what follows from its plan.

Isensee et al., Nat. Methods 18:203, 2021, Methods: an axis is halved as long as it keeps four voxels, axes that are
finer than the others first; kernels have the extent 1 along an axis until the others have become as coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from megavoxel.planning.plan import NetworkPlan

SMALLEST_EDGE = 4
"""Voxels that an axis must keep at the lowest level for its last halving."""
SIMILAR = 2.0
"""Ratio of spacings below which axes are treated alike."""
MOST_RESTORED_FEATURES = 32
EXPANDED_LEVEL = 1
"""Decoder level at which an expanded patch meets its loss, counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Shape of a U-Net; one entry per level, the finest first."""

    kernels: tuple[tuple[int, ...], ...]
    """Extent of the convolutions per axis."""
    strides: tuple[tuple[int, ...], ...]
    """Stride from the level above per axis, of level 0 from the image."""

    @property
    def levels(self) -> int:
        """Resolution levels, the bottleneck counted."""
        return len(self.strides)

    @property
    def divisor(self) -> tuple[int, ...]:
        """Per axis, of what a patch must be a multiple to pass without padding."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True))

    def truncated(self, levels: int) -> Topology:
        """The first `levels` levels; the lowest becomes the bottleneck, with kernels of 3 along all axes."""
        if levels >= self.levels:
            return self
        bottleneck = (3,) * len(self.kernels[0])
        return Topology(kernels=(*self.kernels[: levels - 1], bottleneck), strides=self.strides[:levels])

    def across_slices(self) -> Topology:
        """A topology of two axes with one before them, across slices, that nothing is convolved or halved along."""
        flat = {key: tuple((1, *sizes) for sizes in getattr(self, key)) for key in ("kernels", "strides")}
        return Topology(**flat)


def build_topology(spacing: Sequence[float], patch: Sequence[float]) -> Topology:
    """The deepest U-Net for a patch.

    Args:
        spacing: mm per axis.
        patch: voxels per axis; need not be a multiple of anything.
    """
    step, size = list(spacing), list(patch)
    strides = [(1,) * len(size)]
    while halved := _axes_to_halve(step, size):
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(size))))
        for axis in halved:
            step[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    return Topology(kernels=kernels_of(spacing, strides), strides=tuple(strides))


def kernels_of(spacing: Sequence[float], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Extents of the convolutions per level and axis: 1 along an axis until the others have become as coarse, then 3.

    Args:
        spacing: mm per axis, at full resolution.
        strides: from the level above, per level and axis.
    """
    step, kernel, kernels = list(spacing), [1] * len(spacing), []
    for stride in strides[:-1]:
        step = [size * factor for size, factor in zip(step, stride, strict=True)]
        kernel = [
            3 if extent == 3 or size / min(step) < SIMILAR else 1 for extent, size in zip(kernel, step, strict=True)
        ]
        kernels.append(tuple(kernel))
    return (*kernels, (3,) * len(spacing))


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What follows from a network's plan; worked out once, by `shape_of`."""

    strides: tuple[tuple[int, ...], ...]
    """Per level and axis, how many voxels of the image one of its voxels covers."""
    logits_strides: tuple[tuple[int, ...], ...]
    """Per level and axis, how many voxels of the image one voxel of its logits covers. The first level has 1: where it
    is coarser than the image, its logits are brought back to the image's resolution."""
    supervised_levels: tuple[int, ...]
    """Decoder levels whose logits have a loss: the first and, under deep supervision, all others but the lowest.
    nnU-Net gives the lowest one a head and its loss the weight 0; here that head does not exist."""
    head_levels: tuple[int, ...]
    """Decoder levels with a head: the supervised ones, and the one that an expanded patch needs."""
    prior_levels: tuple[int, ...]
    """Decoder levels that a first stage's labels join (`post` fusion)."""
    decoder_and_bottleneck: tuple[int, ...]
    """Channels of the activation that each level hands upwards, the finest first."""
    restored_features: int | None
    """Channels at the image's resolution behind a first level that is coarser; None where it is not. Half those of the
    level and at most 32, as in the code published with LAMP (Zhu et al., MICCAI 2020)."""

    @property
    def divisor(self) -> tuple[int, ...]:
        """Stride of the whole network per axis: sizes that are a multiple of it pass without padding."""
        return self.strides[-1]

    def padded(self, size: Sequence[float]) -> tuple[int, ...]:
        """Voxels per axis of an image or patch, each rounded up to a multiple of the network's stride."""
        return padded_patch(size, self.divisor)


@cache
def shape_of(network: NetworkPlan) -> NetworkShape:
    """What follows from the plan of a network."""
    deepest = len(network.features) - 1
    supervised = tuple(range(max(1, deepest - 1))) if network.deep_supervision else (0,)
    expanded = {EXPANDED_LEVEL} if network.expanded_head else set()
    strides = accumulate(network.strides, lambda above, step: tuple(map(math.prod, zip(above, step, strict=True))))
    strides = tuple(map(tuple, strides))
    decoder = network.features[:-1] if network.decoder_features is None else network.decoder_features
    features = (*decoder, network.features[-1])
    restored = features[0] if network.upsampling == "nearest" else min(max(1, features[0] // 2), MOST_RESTORED_FEATURES)
    return NetworkShape(
        strides=strides,
        decoder_and_bottleneck=features,
        restored_features=None if max(strides[0]) == 1 else restored,
        logits_strides=((1,) * len(strides[0]), *strides[1:]),
        supervised_levels=supervised,
        head_levels=tuple(sorted({*supervised, *expanded})),
        prior_levels=tuple(range(deepest)) if network.prior_channels and network.fusion == "post" else (),
    )


def padded_patch(patch: Sequence[float], divisor: Sequence[int]) -> tuple[int, ...]:
    """The patch, each axis rounded up to a multiple of the network's stride."""
    return tuple(math.ceil(size / step) * step for size, step in zip(patch, divisor, strict=True))


def convolution_elements(network: NetworkPlan, patch: Sequence[int]) -> int:
    """nnU-Net's measure of a U-Net's cost: the output elements of all convolutions for one sample.

    Counted are convolutions, transposed convolutions and the segmentation head of the full resolution, and nothing
    else, whatever the network: squeeze-and-excitation has next to no operations, and its memory is for the forecast.

    Args:
        patch: voxels per axis, a multiple of the network's stride.
    """
    sides = zip(network.features, _voxels_of_levels(network, patch), strict=True)
    encoder = sum(network.convolutions_per_level * features * voxels for features, voxels in sides)
    return encoder + _elements_of_decoder(network, patch)


def residual_elements(network: NetworkPlan, patch: Sequence[int]) -> int:
    """nnU-Net's measure of the cost of residual encoders, as `convolution_elements`.

    The stem is at the image's resolution, whatever the first stride. A block with a stride counts the convolution of a
    shortcut, which it does not have where it keeps the width.
    """
    elements, before = network.features[0] * math.prod(patch), network.features[0]
    levels = zip(network.blocks, network.features, network.strides, _voxels_of_levels(network, patch), strict=True)
    for blocks, features, stride, voxels in levels:
        shortcut = features != before or max(stride) > 1
        elements += (2 * blocks + shortcut) * features * voxels
        before = features
    return elements + _elements_of_decoder(network, patch)


def _elements_of_decoder(network: NetworkPlan, patch: Sequence[int]) -> int:
    """Output elements of the convolutions of decoder and head."""
    shape, elements = shape_of(network), 0
    levels = zip(network.features, shape.decoder_and_bottleneck[:-1], _voxels_of_levels(network, patch), strict=False)
    for skip, features, voxels in levels:
        transposed = skip if network.upsampling == "transposed" else 0
        elements += (network.convolutions_per_level * features + transposed) * voxels
    restored = (shape.restored_features or 0) if network.upsampling == "transposed" else 0
    return elements + (network.classes + restored) * math.prod(patch)


def _voxels_of_levels(network: NetworkPlan, patch: Sequence[int]) -> list[int]:
    return [math.prod(patch) // math.prod(stride) for stride in shape_of(network).strides]


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    large = [axis for axis, voxels in enumerate(size) if voxels >= 2 * SMALLEST_EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    axes = [axis for axis in large if spacing[axis] / finest < SIMILAR]
    if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE:
        return []
    return axes
