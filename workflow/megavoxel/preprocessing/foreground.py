"""Voxels of every class, drawn once per case, from which training takes the centres of its foreground patches."""

from __future__ import annotations

import numpy as np

from megavoxel.data.cases import case_generator

MOST = 10_000
"""Voxels kept of a class, unless 1 % of it is more."""


def sample_foreground(classes: np.ndarray, case_id: str) -> dict[int, np.ndarray]:
    """Coordinates of random voxels of each class that is present.

    Of a class with n voxels, max(min(10 000, n), 1 % of n) are drawn without replacement, as in nnU-Net. The draw
    depends on the case's id and nothing else.

    Args:
        classes: (z, y, x), 0 is background.
        case_id: seeds the draw.

    Returns:
        int32 (drawn, 3) per class.
    """
    random = case_generator(case_id)
    where = np.flatnonzero(classes)
    values = classes.reshape(-1)[where]
    sampled = {}
    for label in np.unique(values):
        voxels = where[values == label]
        count = max(min(MOST, len(voxels)), -(-len(voxels) // 100))
        drawn = voxels[random.choice(len(voxels), count, replace=False)]
        sampled[int(label)] = np.stack(np.unravel_index(drawn, classes.shape), axis=1).astype(np.int32)
    return sampled
