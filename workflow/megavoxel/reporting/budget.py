"""How much the viewer of the page shows: so much that the page stays below 30 MB.

The rule, in this order:

1. All cases and models are shown, on grids as fine as fits, but of no more than `MOST_VOXELS`.
2. Where a grid of `FEWEST_VOXELS` does not fit, models are left out, but no fewer than `FEWEST_MODELS` are shown.
3. Where that does not suffice, cases are left out: those with the best scores.

What a voxel takes is first guessed (`IMAGE_BYTES`, `MAP_BYTES`, measured on CHAOS and OpenKBP) and then seen on a few
cases (`refitted`). Where the others turn out larger, `within_budget` leaves out the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BYTES = 15_000_000
"""Of all cases, before base64 makes four characters of three bytes: 20 MB of the page."""
IMAGE_BYTES = 0.10
"""Of a voxel's intensity."""
MAP_BYTES = 0.014
"""Of a voxel's label in one map."""
MOST_VOXELS = 1_000_000
FEWEST_VOXELS = 100_000
FEWEST_MODELS = 8
FILLED = 0.95
"""Share of the bytes that is aimed at, since cases differ."""
SURFACE = 1.5
"""Power by which voxels go with the bytes of their outlines."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is shown."""

    cases: int
    models: int
    voxels: int
    """The most of a case's grid."""


def budget_for(cases: int, models: int) -> Budget:
    """The budget of a study with so many cases and models, at least one of each."""
    fewest = min(models, FEWEST_MODELS)
    fitting = int((BYTES / cases / FEWEST_VOXELS - IMAGE_BYTES) / MAP_BYTES) - 1
    shown_models = max(fewest, min(models, fitting))
    shown_cases = max(1, min(cases, int(BYTES / (FEWEST_VOXELS * bytes_of_voxel(shown_models)))))
    voxels = min(MOST_VOXELS, int(BYTES / shown_cases / bytes_of_voxel(shown_models)))
    return Budget(cases=shown_cases, models=shown_models, voxels=voxels)


def refitted(budget: Budget, bytes_of_case: float) -> int:
    """Voxels of a case's grid by what cases took on the grid of the budget, on average.

    Outlines grow with the surface of organs and not with their volume: half the bytes need less than half the voxels.
    """
    share = FILLED * BYTES / budget.cases / bytes_of_case
    voxels = int(budget.voxels * (share if share > 1 else share**SURFACE))
    return max(1, min(MOST_VOXELS, voxels))


def bytes_of_voxel(models: int) -> float:
    """Of the image, the reference and the predictions of so many models."""
    return IMAGE_BYTES + (1 + models) * MAP_BYTES


def within_budget(sizes: Sequence[int]) -> int:
    """How many of the cases, from the first on, take no more than `BYTES` together."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total > BYTES:
            return number
    return len(sizes)
