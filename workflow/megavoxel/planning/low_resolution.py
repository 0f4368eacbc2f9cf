"""The low-resolution stage of a dataset whose cases are large beside the patch, by the rules of nnU-Net.

Isensee et al., Nat. Methods 18:203, 2021, Methods (the cascade's first stage); constants as in nnU-Net v2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megavoxel.config.setting import Network, Preprocessing
from megavoxel.errors import UserError
from megavoxel.planning.patch import REFERENCE_MEMORY_GIB, SMALLEST_BATCH, Candidate, Frame, largest_patch
from megavoxel.planning.spacing import times

ENOUGH = 0.25
"""Share of the median case that a patch has to hold; below it, a low-resolution stage is looked for."""
STEP = 1.03
"""Factor by which the spacing grows until the patch holds enough."""
SIMILAR = 2.0
"""While the coarsest axis is more than this times as coarse as another one, only such finer axes grow."""
LEAST_GAIN = 2.0
"""Voxels at full over voxels at low resolution below which the stage is not worth its name."""


@dataclass(frozen=True, kw_only=True)
class LowResolution:
    """The stage."""

    frame: Frame
    """The dataset at the stage's spacing; its median shape is that of full resolution, scaled and rounded."""
    candidate: Candidate
    """Patch and network."""

    @property
    def reason(self) -> str:
        """Half a sentence that says where its spacing comes from."""
        patch, memory = times(self.candidate.patch), self.frame.memory_gib
        return f"the low resolution at which the patch {patch}, planned for {memory:g} GiB, holds a quarter of the case"


@dataclass(frozen=True, kw_only=True)
class NoLowResolution:
    """There is no such stage."""

    reason: str
    """Half a sentence that says why."""


def low_resolution(frame: Frame) -> LowResolution | NoLowResolution:
    """Makes voxels larger by 3 % at a time until the planner's patch holds a quarter of the median case.

    Args:
        frame: the dataset at full resolution.

    Returns:
        The stage; or why there is none: the patch of full resolution holds enough, or the stage would have more than
        half as many voxels.

    Raises:
        UserError: no patch fits into the frame's memory.
    """
    candidate, stage = largest_patch(frame, SMALLEST_BATCH), frame
    full = voxels = math.prod(frame.median_shape)
    if math.prod(candidate.patch) / voxels >= ENOUGH:
        own = f"nnU-Net's own patch, {times(candidate.patch)},"
        return NoLowResolution(reason=_held(candidate.patch, frame.median_shape, own))
    while math.prod(candidate.patch) / voxels < ENOUGH:
        spacing = coarser(stage.spacing)
        shape = [size * old / new for size, old, new in zip(frame.median_shape, frame.spacing, spacing, strict=True)]
        voxels = math.prod(shape)
        stage = replace(frame, spacing=spacing, median_shape=tuple(float(max(1, round(size))) for size in shape))
        candidate = largest_patch(stage, SMALLEST_BATCH)
    if full / voxels < LEAST_GAIN:
        gain = f"{full / voxels:.3g}"
        return NoLowResolution(
            reason=f"it would have {gain} times fewer voxels, and below {LEAST_GAIN:g} it is dropped"
        )
    return LowResolution(frame=stage, candidate=candidate)


def require_low_resolution(frame: Frame, keys: Preprocessing, dataset: str) -> LowResolution:
    """The stage that a study asks for.

    Args:
        frame: the dataset at full resolution.

    Raises:
        UserError: there is no such stage, or the study gives a spacing as well.
    """
    if keys.spacing is not None:
        raise UserError(
            "preprocessing.resolution is 'low', which works the spacing out, and preprocessing.spacing is given as "
            "well; leave out one of them"
        )
    stage = low_resolution(frame)
    if isinstance(stage, NoLowResolution):
        raise UserError(
            f"preprocessing.resolution is 'low', but dataset {dataset} has no low-resolution stage ({stage.reason}); "
            "leave it out, or set it to 'full'"
        )
    return stage


def low_resolution_note(frame: Frame, patch: Sequence[int], keys: Preprocessing) -> str:
    """A note for a setting's plan about the stage.

    The stage is that of nnU-Net's own network and 8 GiB, whatever the setting has, because `preprocessing.resolution:
    low` gives it to all settings alike.
    """
    if keys.dimensions == 2:
        return "low resolution: none, nnU-Net has slices at full resolution alone"
    if keys.resolution == "low":
        return f"low resolution: the setting is trained at it, and {_held(patch, frame.median_shape)}"
    if math.prod(patch) >= ENOUGH * math.prod(frame.median_shape):
        return f"low resolution: not needed, {_held(patch, frame.median_shape)}"
    stage = low_resolution(replace(frame, memory_gib=REFERENCE_MEMORY_GIB, keys=Network()))
    if isinstance(stage, NoLowResolution):
        return f"low resolution: none when planned for {REFERENCE_MEMORY_GIB:g} GiB, {stage.reason}"
    low = stage.frame
    return f"low resolution: {times(low.spacing)} mm, median {times(low.median_shape)}, {stage.reason}"


def dice_of_whole_batch(frame: Frame, patch: Sequence[int], keys: Preprocessing) -> tuple[bool, str]:
    """Whether nnU-Net takes Dice sums over the whole batch, and a note that says why.

    It does of slices, and at full resolution of a dataset with a low-resolution stage. The stage is that of
    nnU-Net's own network of the setting's architecture and preset, and the setting's memory, 8 GiB at least.
    """
    if keys.dimensions == 2:
        return True, "dice: of the whole batch, as nnU-Net of slices, which often lack labels"
    if keys.resolution == "low":
        return False, "dice: of each sample, as nnU-Net at low resolution"
    large = math.prod(patch) >= ENOUGH * math.prod(frame.median_shape)
    keys_of_peer = Network(architecture=frame.keys.architecture, preset=frame.keys.preset)
    peer = replace(frame, memory_gib=max(frame.memory_gib, REFERENCE_MEMORY_GIB), keys=keys_of_peer)
    if large or isinstance(low_resolution(peer), NoLowResolution):
        return False, "dice: of each sample, as nnU-Net where there is no low-resolution stage"
    return True, "dice: of the whole batch, as nnU-Net where there is a low-resolution stage: patches often lack labels"


def coarser(spacing: Sequence[float]) -> tuple[float, ...]:
    """The next spacing in mm: axes less than half as coarse as the coarsest one grow; where there are none, all do."""
    behind = [max(spacing) / size > SIMILAR for size in spacing]
    return tuple(size * STEP if grows or not any(behind) else size for size, grows in zip(spacing, behind, strict=True))


def _held(patch: Sequence[int], median_shape: Sequence[float], which: str = "the patch") -> str:
    """Which share of the median case a patch holds, in words."""
    return f"{which} holds {math.prod(patch) / math.prod(median_shape):.0%} of the median case"
