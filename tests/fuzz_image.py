"""The image of the scans that are handed in to be labelled: 10 x 9 x 8 voxels of 2 x 1.5 x 3 mm."""

from __future__ import annotations

import numpy as np

from fuzz_example import GIVEN, Example, Truth

COUNT, ROWS, COLUMNS = 8, 9, 10
SPACING = (2.0, 1.5, 3.0)
ORIGIN = (-12.0, 5.0, 30.0)
"""First voxel in the axes of the patient (LPS), mm."""
STACK = np.random.default_rng(0).integers(-900, 1200, (COUNT, ROWS, COLUMNS)).astype(np.int16)
"""(z, y, x) in the axes of the patient (LPS)."""
SIZE = tuple((extent - 1) * step for extent, step in zip((COLUMNS, ROWS, COUNT), SPACING, strict=True))
TRUTH = Truth(
    voxels=STACK[:, ::-1, ::-1].astype(float),
    first=(-ORIGIN[0] - SIZE[0], -ORIGIN[1] - SIZE[1], ORIGIN[2]),
    last=(-ORIGIN[0], -ORIGIN[1], ORIGIN[2] + SIZE[2]),
)
Files = dict[str, bytes]


def example(what: str, files: Files, is_sound: bool | None, truth: Truth | None = TRUTH) -> Example:
    """Files of one scan in a folder of its own; `what` begins with the kind of scan."""
    placed = {f"{GIVEN}/{name}": content for name, content in files.items()}
    return Example(
        what=what, files=placed, read=lambda bench: bench.label(truth, may_be_refused=not is_sound), is_sound=is_sound
    )
