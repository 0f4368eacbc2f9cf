"""Connected components of masks."""

from __future__ import annotations

import cc3d
import numpy as np


def labelled_components(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """Number of the connected component of each voxel, in array order from 1; 0 outside of the mask.

    Args:
        mask: bool (z, y, x).
        connectivity: 6, 18 or 26 neighbours.
    """
    # With 26 neighbours cc3d ends with an error on some masks of a single line of voxels; with a border it does not.
    padded = np.pad(mask, 1)
    return cc3d.connected_components(padded, connectivity=connectivity, binary_image=True)[1:-1, 1:-1, 1:-1]
