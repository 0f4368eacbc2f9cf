"""Patch, batch and windows: the largest for a memory target by the rules of nnU-Net, and whether they suit a network.

Isensee et al., Nat. Methods 18:203, 2021, Methods and Supplementary Note 2; constants as in nnU-Net v2. "Memory" here
is nnU-Net's measure, the number of convolution outputs scaled to a reference, and no forecast of bytes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from megavoxel.config.setting import Network, NetworkParts, Parallel, Setting
from megavoxel.errors import UserError
from megavoxel.planning.architectures import ARCHITECTURES, Architecture, Reference
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.spacing import times
from megavoxel.planning.topology import (
    SMALLEST_EDGE,
    Topology,
    kernels_of,
    shape_of,
)

START_SIDES = {2: 2048, 3: 256}
"""Side in voxels of the square or cube that is as large as the patch that the search begins with, by the dimensions of
the network; then it is clipped to the median shape."""
MOST_FEATURES = {2: 512, 3: 320}
"""Upper bound of the channels of a level, by the dimensions of the network."""
REFERENCE_MEMORY_GIB = 8.0
"""What nnU-Net plans its own network for."""
SMALLEST_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A patch with the network that belongs to it."""

    patch: tuple[int, ...]
    """Voxels per axis, a multiple of the network's stride."""
    network: NetworkPlan

    @property
    def divisor(self) -> tuple[int, ...]:
        """Stride of the whole network per axis."""
        return shape_of(self.network).divisor

    @property
    def elements(self) -> int:
        """Convolution outputs of one sample."""
        return ARCHITECTURES[self.network.architecture].elements(self.network, self.patch)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a network has to fit, whatever its patch. Axes in network order."""

    setting: str
    """Name, for errors."""
    spacing: tuple[float, ...]
    """mm per axis."""
    median_shape: tuple[float, ...]
    """Voxels per axis of the median case."""
    channels: int
    """Input channels."""
    classes: int
    """Output classes, background counted."""
    memory_gib: float
    """Memory that the planner aims at."""
    keys: Network
    """What the study says of the network."""
    dimensions: Literal[2, 3] = 3
    """2: of slices across the first axis, which patches have one voxel of."""

    @property
    def first_axis(self) -> int:
        """First of the axes that the network sees."""
        return 3 - self.dimensions

    @property
    def architecture(self) -> Architecture:
        """The planner's half of the network."""
        return ARCHITECTURES[self.keys.architecture]

    @property
    def reference(self) -> Reference:
        """What patch and batch are planned by."""
        return reference_of(self.keys, self.dimensions)

    @property
    def reference_elements(self) -> float:
        """Convolution outputs of one sample that fit at the reference's batch."""
        return self.reference.elements * self.memory_gib / self.reference.memory_gib

    def topology(self, patch: Sequence[float]) -> Topology:
        """The U-Net for a patch, or for the one that the study names, with no more levels than the study asks for, and
        with the strides and kernels that it fixes."""
        keys, seen = self.keys, slice(self.first_axis, None)
        spacing = self.spacing[seen]
        if keys.strides is None:
            topology = self.architecture.topology(spacing, (patch if keys.for_patch is None else keys.for_patch)[seen])
            levels = keys.fixed_levels
            topology = topology if levels is None else topology.truncated(levels)
        else:
            strides = tuple(steps[seen] for steps in keys.strides)
            topology = Topology(kernels=kernels_of(spacing, strides), strides=strides)
        topology = topology if self.dimensions == 3 else topology.across_slices()
        return topology if keys.kernels is None else replace(topology, kernels=keys.kernels[: topology.levels])

    def candidate(self, patch: Sequence[float]) -> Candidate:
        """The network for a patch, and the patch rounded up to what its strides need."""
        topology, keys = self.topology(patch), self.keys
        most = keys.max_features or MOST_FEATURES[self.dimensions]
        doubled = tuple(min(most, keys.base_features * 2**level) for level in range(topology.levels))
        parts = {part.name: getattr(keys, part.name) for part in fields(NetworkParts)}
        blocks = self.architecture.blocks if keys.blocks is None else keys.blocks
        if keys.decoder_features is not None:
            parts["decoder_features"] = keys.decoder_features[: topology.levels - 1]
        network = NetworkPlan(
            channels=self.channels,
            classes=self.classes,
            features=doubled if keys.features is None else keys.features[: topology.levels],
            kernels=topology.kernels,
            strides=topology.strides,
            blocks=blocks[: topology.levels],
            convolutions_per_level=keys.convolutions_per_level or self.architecture.convolutions_per_level,
            **parts,
        )
        return Candidate(patch=shape_of(network).padded(patch), network=network)


def reference_of(keys: Network, dimensions: int) -> Reference:
    """What patch and batch of a network are planned by."""
    architecture = ARCHITECTURES[keys.architecture]
    return (architecture.references if dimensions == 3 else architecture.references_of_slices)[keys.preset]


def start_patch(frame: Frame) -> tuple[float, ...]:
    """The patch of 256³ voxels, or 2048² of a slice, whose sides are as long in mm, clipped to the median shape."""
    seen = slice(frame.first_axis, None)
    spacing, median = frame.spacing[seen], frame.median_shape[seen]
    scale = (START_SIDES[frame.dimensions] ** frame.dimensions * math.prod(spacing)) ** (1 / frame.dimensions)
    sides = (min(round(scale / step), size) for step, size in zip(spacing, median, strict=True))
    return (*(1,) * frame.first_axis, *sides)


def largest_patch(frame: Frame, batch: int) -> Candidate:
    """Shrinks the start patch until a batch fits into the memory target.

    Each time it is the axis that is largest in proportion to the median shape that loses one stride of the network.

    Raises:
        UserError: nothing fits.
    """
    most = frame.reference_elements * frame.reference.batch / batch
    candidate = frame.candidate(start_patch(frame))
    while candidate.elements > most:
        shrunk = [_shrunk(frame, candidate, axis) for axis in range(len(candidate.patch))]
        axes = [axis for axis, patch in enumerate(shrunk) if patch[axis] >= SMALLEST_EDGE]
        if not axes:
            raise UserError(
                f"setting {frame.setting}: memory_gib {frame.memory_gib:g} is too small for any patch at batch "
                f"{batch}; raise it, lower 'batch' or 'network.base_features', or give 'patch'"
            )
        axis = max(axes, key=lambda axis: (candidate.patch[axis] / frame.median_shape[axis], axis))
        candidate = frame.candidate(shrunk[axis])
    return candidate


def batch_by_memory(frame: Frame, candidate: Candidate) -> int:
    """Samples that fit into the memory target; may be 0."""
    return round(frame.reference_elements / candidate.elements * frame.reference.batch)


def batch_by_dataset(frame: Frame, patch: Sequence[int], dataset_voxels: float) -> int:
    """Samples that hold the largest share of the dataset's voxels that a batch may have; may be 0."""
    return round(dataset_voxels * frame.reference.most_of_dataset / math.prod(patch))


def _shrunk(frame: Frame, candidate: Candidate, axis: int) -> tuple[int, ...]:
    """The patch with one stride less along an axis: that of the network which the smaller patch would have.

    A smaller patch may have a smaller stride, and subtracting the larger one would leave out sizes that are allowed.
    """
    patch, step = candidate.patch, candidate.divisor[axis]
    step = frame.topology(_less(patch, axis, step)).divisor[axis]
    return _less(patch, axis, step)


def _less(patch: Sequence[int], axis: int, step: int) -> tuple[int, ...]:
    return tuple(size - step if index == axis else size for index, size in enumerate(patch))


WHOLE = "whole"
"""Stands for the whole image where a patch or window is asked for."""


def predicting_devices(plan: Plan) -> int:
    """Devices over which a window goes: one, or those that hold a patch together in training.

    A device that takes a step of training with a patch, or with a tile of it, has room for as many voxels of a window.
    Larger windows go over all of them.
    """
    window = plan.patch if plan.inference.window is None else plan.inference.window
    larger = window == WHOLE or math.prod(window) * plan.parallel.tiles > math.prod(plan.patch)
    return plan.parallel.devices_of_a_patch if larger else 1


def on_one_device(plan: Plan) -> Plan:
    """The plan with all of each window on one device: the same label maps, where it has the memory."""
    return replace(plan, parallel=Parallel(), stages=())


def has_turns(plan: Plan) -> bool:
    """Whether one device works out the tiles of a window in turn."""
    return math.prod(plan.inference.tiles) > 1


def prediction_window(plan: Plan, shape: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis of a window over an image.

    One that holds the whole image is a multiple of the network's stride. It is no smaller than the patch: what a
    network was shown around images in training is there in prediction as well, and its normalisation sees it.

    Args:
        shape: of the image (z, y, x), in network order.
    """
    if plan.inference.window is None:
        return plan.patch
    if plan.inference.window != WHOLE:
        return tuple(plan.inference.window)
    sides = [max(size, patch) for size, patch in zip(shape, plan.patch, strict=True)]
    if plan.preprocessing.dimensions == 2:  # several slices at once would be normalised together
        sides[0] = 1
    return shape_of(plan.network).padded(sides)


def padding_notes(plan: Plan) -> list[str]:
    """A note for each patch of a plan that is not a multiple of the network's stride: those of all phases, and the
    expanded one."""
    shape = shape_of(plan.network)
    named = [("patch", phase.patch) for phase in plan.by_phase()]
    if plan.expanded_patch is not None:
        named.append(("expanded patch", plan.expanded_patch))
    return [
        f"{name}: not a multiple of the network's stride; padded inside from {times(size)} to {times(inside)}, logits "
        "are cropped"
        for name, size in dict.fromkeys((name, tuple(size)) for name, size in named)
        if (inside := shape.padded(size)) != size
    ]


def check_sizes(plan: Plan) -> None:
    """Refuses what leaves a single voxel at the lowest level, of which there is no deviation to normalise by.

    Raises:
        UserError: with the stride that a patch or window has to be above.
    """
    shape = shape_of(plan.network)
    for name, size in _sizes(plan):
        if shape.padded(size) == shape.divisor:
            raise UserError(
                f"setting {plan.setting}: {name} {times(size)} leaves one voxel at the lowest of "
                f"{len(plan.network.strides)} levels, which cannot be normalised; take one of more than "
                f"{times(shape.divisor)} voxels along some axis, or fewer levels in 'network'"
            )
    check_window(plan)


def check_window(plan: Plan) -> None:
    """Refuses windows that the network pads along an axis: there would be many of them, for nothing.

    Raises:
        UserError: with the size that they must have at least.
    """
    window, divisor = plan.inference.window, shape_of(plan.network).divisor
    if isinstance(window, str | None) or all(map(operator.ge, window, divisor)):
        return
    raise UserError(
        f"setting {plan.setting}: inference.window {times(window)} is smaller than the network's stride, "
        f"{times(divisor)}, along an axis; take at least that along each, or leave it out"
    )


def _sizes(plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (("patch", phase.patch) for phase in plan.by_phase())
    if plan.inference.window is not None and not isinstance(plan.inference.window, str):
        yield "inference.window", plan.inference.window


def check_levels(frame: Frame, setting: Setting, patch: Sequence[int]) -> None:
    """Refuses more levels than a patch allows.

    Raises:
        UserError: with the number that it does allow.
    """
    wanted, possible = setting.network.fixed_levels, frame.topology(patch).levels
    if wanted is not None and wanted > possible:
        raise UserError(
            f"setting {setting.name}: network has {wanted} levels, but patch "
            f"{times(setting.network.for_patch or patch)} at spacing "
            f"{times(frame.spacing)} mm allows at most {possible}; lower it, or leave it out"
        )


def network_note(candidate: Candidate, setting: Setting) -> str:
    """How many levels the network has, and why."""
    keys = setting.network
    if keys.fixed_levels:
        reason = "fixed by the study"
    elif keys.for_patch:
        reason = f"as many as the patch {times(keys.for_patch)} and the spacing allow, for which the network is made"
    else:
        reason = "as many as patch and spacing allow"
    return f"network: {len(candidate.network.features)} levels ({reason}), stride {times(candidate.divisor)}"


def preset_notes(frame: Frame) -> list[str]:
    """What a preset plans for, where there is one."""
    if frame.keys.preset is None:
        return []
    own, memory = frame.reference.memory_gib, frame.memory_gib
    scaled = "" if memory == own else f" in place of its {own:g} GiB"
    return [f"preset: {frame.keys.preset}, for {memory:g} GiB{scaled} where patch or batch are left to it"]
