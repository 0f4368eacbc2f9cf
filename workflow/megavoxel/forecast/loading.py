"""Time of the processor for training patches, and whether it or the device sets the pace.

A patch costs a core what reading costs, by voxel and channel, and what augmentation costs on average: of each transform
its cost times its probability. Both are measured per megavoxel of one channel, augmentation with the default
probabilities (`megavoxel calibrate`). How its cost is made up is taken to be the same on all processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Augmentation
from megavoxel.planning.plan import Plan
from megavoxel.training.augmentation import Augmenter

COSTS = {
    "noise": 3.2, "blur": 1.1, "brightness": 0.3, "contrast": 1.6, "low_resolution": 2.0, "gamma": 6.0,
    "gamma_inverted": 7.0,
}  # fmt: skip
"""Milliseconds of a core per megavoxel and channel that an intensity transform takes where it is drawn, on one CPU
(AMD EPYC): what matters is their proportion."""
TURNED, TURNED_LABELS, DISPLACED, IN_PLANE = 15.0, 45.0, 7.0, 0.18
"""Milliseconds that rotation, scaling, shear and elastic deformation take together, per channel and for the labels,
those of elastic displacements besides, and the share of them that remains where patches turn in-plane only."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Training patches of a step on their way to a device."""

    core_seconds: float
    """Time of a core for all of them."""
    workers: int
    """Processes that share it; 0: the training process does it between two steps."""
    cores: int | None
    """Cores on which training itself computes, beside those processes; None: it computes on a GPU."""

    def pace(self, step_seconds: float) -> float:
        """Seconds between two steps of which each takes `step_seconds` on the device.

        On a CPU, a process that loads takes the time of a core that all threads of a step wait for.
        """
        if self.workers == 0:
            return step_seconds + self.core_seconds
        if self.cores is not None:
            return step_seconds + self.core_seconds / min(self.workers, self.cores)
        return max(step_seconds, self.core_seconds / self.workers)

    def cores_to_keep_up(self, step_seconds: float) -> int:
        """Processes with which loading keeps up with the device."""
        return math.ceil(self.core_seconds / step_seconds)


def loading_of(plan: Plan, parallel: Parallel, device: Device) -> Loading:
    """What a process of training loads in a step; tiles of a patch, and stages of a pipeline, share its patches.

    Args:
        plan: the setting, or a phase of it.
    """
    samples = plan.batch / (parallel.data * parallel.tiles)
    return Loading(
        core_seconds=samples * sample_seconds(plan, device),
        workers=plan.training.loaders(device.workers),
        cores=None if device.gpus else device.cpus_per_job,
    )


def sample_seconds(plan: Plan, device: Device) -> float:
    """Time of a core to read a training patch and, unless the device does so, to augment it, on average."""
    keys, megavoxels, channels = plan.augmentation, math.prod(plan.sampled_patch) / 1e6, plan.network.channels
    relative = relative_cost(keys, channels, in_plane=Augmenter(keys, plan.sampled_patch).in_plane)
    augmenting = 0.0 if keys.on_device else device.augmentation_milliseconds * relative
    return megavoxels * (channels * device.reading_milliseconds + augmenting) / 1e3


def relative_cost(keys: Augmentation, channels: int = 1, *, in_plane: bool = False) -> float:
    """Cost of augmentation per voxel over that of one channel, turned about all axes, with default probabilities."""
    return _cost(keys, channels, in_plane=in_plane) / _cost(Augmentation(), 1, in_plane=False)


def turned_share(keys: Augmentation) -> float:
    """Share of the patches that are rotated, scaled, sheared or deformed."""
    return 1 - math.prod(1 - share for share in (keys.rotation, keys.scaling, keys.shear, keys.elastic))


def _cost(keys: Augmentation, channels: int, *, in_plane: bool) -> float:
    intensity = sum(getattr(keys, name) * cost for name, cost in COSTS.items())
    turning = turned_share(keys) * (TURNED_LABELS + channels * TURNED) + keys.elastic * DISPLACED
    return (IN_PLANE if in_plane else 1.0) * turning + channels * intensity


def slow_loading(loading: Loading, step_seconds: float) -> str | None:
    """What to say where a GPU waits for its patches; None: it does not."""
    cores = loading.cores_to_keep_up(step_seconds)
    if loading.cores is not None or loading.pace(step_seconds) <= step_seconds or cores <= loading.workers:
        return None
    return (
        f"the loader, not the GPU, sets the pace: {cores} cores would keep up with it, and training.workers gives "
        f"{loading.workers}; more of them, or augmentation.on_device, would help"
    )
