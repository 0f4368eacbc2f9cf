"""Where a random patch of a case begins, by the study's key `training.sampling`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megavoxel.config.study import Training
from megavoxel.preprocessing.store import Box, StoredCase, read_box
from megavoxel.volumes.grid import window_starts

ROULETTE_STEP = 0.5
"""Largest distance of the positions of `roulette` sampling, in patches (Wang et al. 2022, appendix A.7)."""
MOST_DRAWS = 100
"""Positions that `roulette` sampling looks at; the last one is taken as it is. With an acceptance of 0.1, one in 34,000
patches of a case without foreground gets there."""


def draw_start(
    case: StoredCase, patch: Sequence[int], training: Training, random: np.random.Generator
) -> tuple[int, ...]:
    """First voxel of a random patch, per axis; negative where the patch is larger than the case, which is then centred.

    Args:
        case: with labels.
        patch: voxels per axis.
        training: how it is drawn: `sampling` and the keys of that.
        random: what everything that is drawn comes from.
    """
    if training.sampling == "roulette":
        return roulette_start(case, patch, training.roulette_threshold, training.roulette_acceptance, random)
    return foreground_start(case, patch, training.foreground_fraction, random)


def foreground_start(
    case: StoredCase, patch: Sequence[int], foreground_fraction: float, random: np.random.Generator
) -> tuple[int, ...]:
    """A start anywhere in the case or, with probability `foreground_fraction`, one with foreground in the centre.

    The patch is then centred on a random voxel of a random class that is present, moved so that it stays inside the
    case (nnU-Net lets it reach beyond the far ends). The choice is per sample, so that a batch of one sees it as well
    (nnU-Net forces a fixed share of each batch, which is none at batch 1).
    """
    shape = case.properties.shape
    lowest = [min(0, -((extent - size) // 2)) for size, extent in zip(shape, patch, strict=True)]
    highest = [max(low, size - extent) for low, size, extent in zip(lowest, shape, patch, strict=True)]
    present = sorted(set(case.foreground) - set(case.unannotated))
    if random.random() < foreground_fraction and present:
        voxels = case.foreground[present[random.integers(len(present))]]
        centre = voxels[random.integers(len(voxels))]
        wanted = [int(voxel) - extent // 2 for voxel, extent in zip(centre, patch, strict=True)]
    else:
        wanted = [int(random.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    return tuple(min(max(start, low), high) for start, low, high in zip(wanted, lowest, highest, strict=True))


def roulette_start(
    case: StoredCase, patch: Sequence[int], threshold: float, acceptance: float, random: np.random.Generator
) -> tuple[int, ...]:
    """The start of a window of a half-overlapping grid: of those drawn one after the other, the first that is accepted.

    A window with enough foreground is accepted; of the others, some are, by a roulette check. Wang et al.,
    "Memory-efficient Segmentation of High-resolution Volumetric MicroCT Images" (MIDL 2022, appendix A.1), who give
    neither the threshold nor the probability. Their windows lie exactly half a patch apart, beyond the far ends of the
    image where need be; here they are those of the sliding window in prediction, spread evenly inside.

    Args:
        case: with labels, which are read.
        patch: voxels per axis.
        threshold: share of foreground among the voxels of the patch, those outside of the case included, from which on
            it is accepted.
        acceptance: probability that any other one is.
        random: what everything that is drawn comes from.
    """
    sides = zip(case.properties.shape, patch, strict=True)
    starts = [window_starts(size, extent, ROULETTE_STEP) for size, extent in sides]
    for _ in range(MOST_DRAWS):
        start = tuple(axis[random.integers(len(axis))] for axis in starts)
        # The check comes first: it is independent of the foreground, and the labels then need not be read.
        if random.random() < acceptance or foreground_share(case, Box(start=start, shape=tuple(patch))) >= threshold:
            break
    return start


def foreground_share(case: StoredCase, box: Box) -> float:
    """Share of annotated foreground among the voxels of a box; there is none outside of the case."""
    return float(np.isin(read_box(case.labels, box), [0, *case.unannotated], invert=True).mean())
