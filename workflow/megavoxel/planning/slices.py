"""What the planner decides for networks that see single slices: nnU-Net's 2D configuration.

Such a network is a program like any other, with patches of one voxel along the first axis, and kernels and strides of 1
along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megavoxel.config.training import Augmentation

ELONGATED = 1.5
"""Ratio of the sides of a slice from which on it is turned by small angles alone, so that it stays in its place."""
SMALL_ANGLE, ANY_ANGLE = 15.0, 180.0


def plan_augmentation(keys: Augmentation, patch: Sequence[int], dimensions: int) -> tuple[Augmentation, list[str]]:
    """The augmentation keys as nnU-Net has them for slices, and a note; other networks keep theirs.

    A slice is not mirrored along the axis across slices: prediction would do everything twice.
    """
    if dimensions == 3:
        return keys, []
    degrees = SMALL_ANGLE if max(patch[1:]) / min(patch[1:]) > ELONGATED else ANY_ANGLE
    degrees = degrees if keys.rotation_degrees is None else keys.rotation_degrees
    mirrored = tuple(axis for axis in keys.mirror_axes if axis != 0)
    ways = f"mirrored along axis {' and '.join(map(str, mirrored))}" if mirrored else "not mirrored"
    note = f"augmentation: slices are turned by up to {degrees:g}°, and {ways}"
    return replace(keys, rotation_degrees=degrees, mirror_axes=mirrored), [note]
