"""Time of a core for training patches, measured on patches of a case that is made for it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy import ndimage

from megavoxel.config.training import Augmentation
from megavoxel.forecast.loading import COSTS, turned_share
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.store import CaseProperties, save_case
from megavoxel.training.patches import TRAINING, PatchDataset, Share, patch_loader

SAMPLES = 12
"""Patches of which the mean time is taken; blur and low resolution change every other one."""
NOTHING = Augmentation(rotation=0.0, scaling=0.0, mirror_axes=(), **dict.fromkeys(COSTS, 0.0))
CASE = "noise"


def loading_milliseconds(plan: Plan) -> tuple[float, float]:
    """Milliseconds of a core per megavoxel of one channel: to read it, and to augment it on average by default.

    Args:
        plan: of one channel, whose patch is read.
    """
    with _one_thread(), TemporaryDirectory() as folder:
        _store_case(Path(folder), plan)

        def seconds(**drawn: float) -> float:
            return _seconds_per_patch(replace(plan, augmentation=replace(NOTHING, **drawn)), Path(folder))

        keys, reading = plan.augmentation, seconds()
        turning = turned_share(keys) * max(0.0, seconds(rotation=1.0, scaling=1.0) - reading)
        others = [getattr(keys, name) * max(0.0, seconds(**{name: 1.0}) - reading) for name in COSTS]
    milliseconds = 1e3 / (math.prod(plan.patch) / 1e6)
    return milliseconds * reading, milliseconds * (turning + sum(others))


def _seconds_per_patch(plan: Plan, folder: Path) -> float:
    dataset = PatchDataset(plan, folder, (CASE,), fold=0, stream=TRAINING, count=SAMPLES + 1)
    batches = iter(patch_loader(dataset, Share(batch=1), workers=0, pin=False))
    next(batches)
    begin = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - begin) / SAMPLES


def _store_case(folder: Path, plan: Plan) -> None:
    """Smooth noise with one label in a ball, half as large again as the patch."""
    shape = tuple(3 * size // 2 for size in plan.patch)
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1).astype(np.float32)
    z, y, x = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    labels = (z**2 + y**2 + x**2 < 0.5).astype(np.uint8)
    properties = CaseProperties(
        case=CASE, file_shape=shape[::-1], affine=tuple(map(tuple, np.eye(4))), full_shape=shape,
        box=tuple((0, size) for size in shape), spacing=(1.0, 1.0, 1.0), shape=shape,
    )  # fmt: skip
    save_case(folder, properties, image[None], labels, {}, plan.patch)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a process that loads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
