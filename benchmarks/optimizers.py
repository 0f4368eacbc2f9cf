"""An update of a network's weights with all tensors at once, against PyTorch's default on a processor, one by one."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, in_process, paired_seconds, smaller_is_better
from megavoxel.config.training import Training
from megavoxel.forecast.calibration import Probe, plan_of
from megavoxel.network.segmentation import SegmentationNetwork, parameter_count
from megavoxel.training.optimizer import build_optimizer

PROBE = Probe(patch=(64, 64, 64), batch=2, levels=6, base_features=32)
REPEATS = 9
DEFAULT = "loop"


def run() -> list[Row]:
    """A row for each optimiser and each way."""
    rows = []
    for optimizer in ("sgd", "adamw", "adam"):
        for way in ("foreach", "fused"):
            count, ours, theirs = in_process(milliseconds, optimizer, way)
            title = f"update of {count / 1e6:.0f} million weights, {optimizer}, {way}"
            rows.append(smaller_is_better(title, DEFAULT, ours, theirs, "ms"))
    return rows


def milliseconds(optimizer: str, way: str) -> tuple[int, float, float]:
    """Weights, and medians of an update: in the way, and in the default one."""
    optimizers = []
    for kernels in (way, DEFAULT):
        network = SegmentationNetwork(plan_of(PROBE).network).to(memory_format=torch.channels_last_3d)
        for weights in network.parameters():
            weights.grad = torch.randn_like(weights) / 100
        training = Training(optimizer=optimizer, optimizer_kernels=kernels)
        optimizers.append(build_optimizer(network.parameters(), training))
    ours, theirs = paired_seconds(*(optimizer.step for optimizer in optimizers), repeats=REPEATS)
    return parameter_count(network), 1e3 * ours, 1e3 * theirs
