"""Connected components against SciPy's, on masks of all shapes, single lines of voxels included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from megavoxel.volumes.masks import labelled_components


@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (18, 2), (26, 3)])
def test_components_are_scipys_also_of_a_single_line_of_voxels(connectivity, rank):
    random = np.random.default_rng(0)
    structure = ndimage.generate_binary_structure(3, rank)
    for shape in [(1, 3, 1), (1, 1, 6), (6, 1, 1), (1, 6, 1), (4, 5, 1), (5, 4, 6)] * 30:
        mask = random.random(shape) < random.random()
        ours, theirs = labelled_components(mask, connectivity), ndimage.label(mask, structure)[0]
        assert np.array_equal(ours > 0, mask)
        pairs = set(zip(ours[mask].tolist(), theirs[mask].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
