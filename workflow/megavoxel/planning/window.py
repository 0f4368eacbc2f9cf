"""The sliding window of prediction: of the size of the patch, of another one, or around the whole image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megavoxel.planning.plan import Plan
from megavoxel.planning.topology import divisor_of, padded_patch

WHOLE = "whole"
"""In place of the voxels of a patch or window: the whole image."""


def predicting_devices(plan: Plan) -> int:
    """Devices over which a prediction goes: a window with more voxels than the patch takes the pipeline of training."""
    window = plan.inference.window
    larger = window == WHOLE or (window is not None and math.prod(window) > math.prod(plan.patch))
    return plan.parallel.pipeline if larger else 1


def prediction_window(plan: Plan, shape: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis of a window over an image.

    One that holds the whole image is a multiple of the network's stride. It is no smaller than the patch: what a
    network was shown around images in training is there in prediction as well, and its normalisation sees it.

    Args:
        plan: the setting.
        shape: of the image (z, y, x), in network order.
    """
    if plan.inference.window is None:
        return plan.patch
    if plan.inference.window != WHOLE:
        return tuple(plan.inference.window)
    sides = [max(size, patch) for size, patch in zip(shape, plan.patch, strict=True)]
    return padded_patch(sides, divisor_of(plan.network.strides))
