"""A larger patch than nnU-Net's rules choose, by the shape of the images: something to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megavoxel.config.dataset import Dataset
from megavoxel.config.setting import Setting
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.planning.spacing import times
from megavoxel.planning.topology import shape_of

TIMES = 2
"""Voxels of the larger patch in relation to that of the rules."""


def larger_patch(dataset: Dataset, setting: Setting) -> tuple[tuple[int, ...], str] | None:
    """A patch of twice the voxels that the rules choose, or of as many as the median image has.

    It grows along the axis in which it is shortest in mm, by steps that the network needs, and no further than the
    image. Its axes are in network order.

    Args:
        dataset: declares the size of its cases.
        setting: leaves the patch to the rules.

    Returns:
        The patch, and what it is in relation to the images; None where the rules' patch holds the median image.

    Raises:
        UserError: as `plan_setting`.
    """
    cases, fingerprint = declared_dataset(dataset)
    preprocessing = plan_preprocessing(cases, fingerprint, setting.preprocessing)
    plan = plan_setting(cases, preprocessing, setting, study="init", seed=0)
    steps = shape_of(plan.network).divisor
    grown = _grown(plan.patch, steps, preprocessing.median_shape, preprocessing.spacing)
    if math.prod(grown) == math.prod(plan.patch):
        return None
    ratio = math.prod(grown) / math.prod(plan.patch)
    median = times([round(size) for size in preprocessing.median_shape])
    return grown, f"{ratio:.2g} times the voxels of theirs ({times(plan.patch)}); the median image has {median}"


def _grown(
    patch: Sequence[int], steps: Sequence[int], image: Sequence[float], spacing: Sequence[float]
) -> tuple[int, ...]:
    grown, most = list(patch), TIMES * math.prod(patch)
    while math.prod(grown) < most:
        free = [axis for axis, (size, step) in enumerate(zip(grown, steps, strict=True)) if size + step <= image[axis]]
        if not free:
            break
        axis = min(free, key=lambda axis: grown[axis] * spacing[axis])
        grown[axis] += steps[axis]
    return tuple(grown)
