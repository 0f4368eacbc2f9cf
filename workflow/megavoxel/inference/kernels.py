"""The choice of kernels of a prediction: what a study's keys leave open is measured on a GPU when it starts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from megavoxel.network.device import Precision, pass_seconds
from megavoxel.network.kernels import (
    Kernels,
    Timed,
    measured,
    rounds_to_tf32,
    tried,
    ways_of_convolutions,
    why_not_measured,
)
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.patch import WHOLE, prediction_window
from megavoxel.planning.plan import Plan


def kernels_of_windows(
    plan: Plan, network: SegmentationNetwork, device: torch.device, precision: Precision, *, alone: bool
) -> Kernels:
    """How a GPU computes windows: as the keys say by which it trains, and what they leave open by a measurement.

    Windows of whole images differ from case to case. cuDNN would search anew for each, so that it only does where the
    study says so, and layouts are timed on a patch.

    Args:
        network: with its weights; it is moved to the device.
        alone: whether this process holds all of the network and of a window.
    """
    training, is_whole = plan.training, plan.inference.window == WHOLE
    search = False if is_whole and training.cudnn_benchmark is None else training.cudnn_benchmark
    ways = ways_of_convolutions(training.memory_layout, search)
    tf32 = rounds_to_tf32(device, precision, allowed=training.tf32)
    chosen = Kernels(tf32=tf32, reason="as the study says", **ways[0].fields)
    if len(ways) == 1:
        return chosen
    if unmeasured := why_not_measured(device, whole=alone):
        return replace(chosen, reason=f"the default {unmeasured}")
    window = plan.patch if is_whole else prediction_window(plan, plan.patch)
    shape = (1, plan.network.input_channels, *window)

    def time_of(kernels: Kernels) -> Timed:
        layout = kernels.memory_format
        seconds = partial(pass_seconds, network, shape, precision, device, layout, trains=False)
        return tried(device, kernels, seconds)

    number, told = measured(chosen, ways, time_of)
    return replace(chosen, **ways[number].fields, reason=f"measured: {told}")
