"""Labels that a fold's training cases do not have: its network cannot learn them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.preprocessing.store import stored_classes


def labels_never_seen(plan: PreprocessingPlan, folder: Path, cases: Sequence[str]) -> list[str]:
    """Names of the labels without a voxel in any of the preprocessed cases.

    Args:
        plan: names the labels; their classes are their places in it, counted from 1.
        folder: the preprocessed cases.
        cases: ids of the fold's training cases.
    """
    seen: set[int] = set()
    for case in cases:
        seen |= stored_classes(folder, case)
    return [label for number, label in enumerate(plan.labels, start=1) if number not in seen]
