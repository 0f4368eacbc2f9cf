"""Prediction of a whole image at once against the sliding window, for the six networks of LAMP.

An image of 128 x 128 x 192 voxels and windows of 64 voxels along each axis, a quarter of which overlaps: 36 windows,
whose voxels are 3 times those of the image; no mirror images. The published ratios beside ours are those of table 3 of
Zhu et al. (MICCAI 2020): whole CT images, larger ones, against windows of 64 voxels, on several GPUs.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.made import CONFIG, plan_of_study
from benchmarks.measure import Row, paired_seconds, smaller_is_better
from megavoxel.config.setting import Inference
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan
from megavoxel.reporting.published import SECONDS, read_published

STUDY = "zhu-2020-lamp-han"
PUBLISHED = CONFIG / "published" / f"{STUDY}.csv"
NETWORKS = ("unet-32", "unet-64", "unet-128", "se-unet-32", "se-unet-64", "se-unet-128")
SHAPE, WINDOW, STEP = (128, 128, 192), (64, 64, 64), 0.75
PRECISION = "bfloat16"
REPEATS = {"32": 5, "64": 3, "128": 2}
"""By width: the widest takes minutes."""


def run() -> list[Row]:
    """One row per network."""
    return [row(network) for network in NETWORKS]


def row(network: str) -> Row:
    """Median seconds of both ways, called in turns."""
    plan = replace(plan_of_study(STUDY, f"{network}-small"), patch=WINDOW)
    image = np.random.default_rng(0).normal(size=(plan.network.channels, *SHAPE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.pt"
        save_weights(weights, SegmentationNetwork(plan.network), plan_hash=plan.hash, precision=PRECISION)
        whole, sliding = (predictor(plan, weights, window) for window in ("whole", None))
    ours, theirs = paired_seconds(
        lambda: predict(whole, image), lambda: predict(sliding, image), repeats=REPEATS[network.rpartition("-")[2]]
    )
    title = f"seconds per image, {network}, whole image; published: {published_ratio(network):.2f} times as fast"
    print(f"{title}; here {theirs / ours:.2f} ({ours:.2f} against {theirs:.2f} s)", flush=True)
    return smaller_is_better(title, f"its sliding window of {WINDOW[0]}³", ours, theirs, "s")


def predictor(plan: Plan, weights: Path, window: str | None) -> CasePredictor:
    """One that takes windows of the patch, or the image at once."""
    inference = Inference(step=STEP, mirror=False, window=window)
    return CasePredictor.from_files(replace(plan, inference=inference), [weights], torch.device("cpu"))


def predict(predictor: CasePredictor, image: np.ndarray) -> int:
    """Voxels that were given logits."""
    return sum(math.prod(slab.logits.shape[1:]) for slab in predictor.slabs(image))


def published_ratio(network: str) -> float:
    """Published seconds of windows of 64 voxels over those of the whole image."""
    table = read_published(PUBLISHED)
    seconds = table[table["metric"] == SECONDS].set_index("row")["value"]
    return float(seconds[f"{network}-small"] / seconds[f"{network}-whole"])
