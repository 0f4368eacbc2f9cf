"""What a fold's training cases do not teach: its network cannot learn it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.store import stored_classes
from megavoxel.training.annotation import unannotated_classes


def labels_never_seen(plan: Plan, folder: Path, cases: Sequence[str]) -> list[str]:
    """Names of the labels without an annotated voxel in any of the preprocessed cases.

    Args:
        plan: the setting; says which labels are not annotated.
        folder: the preprocessed cases.
        cases: ids of the fold's training cases.
    """
    seen: set[int] = set()
    for case in cases:
        seen |= stored_classes(folder, case) - set(unannotated_classes(plan, case))
    return [label for number, label in enumerate(plan.preprocessing.labels, start=1) if number not in seen]


def cases_without_annotation(plan: Plan, cases: Sequence[str]) -> dict[str, int]:
    """How many of the cases lack the annotation of a label, by its name; labels that all cases have are left out."""
    missing = Counter(label for case in cases for label in plan.unannotated.get(case, ()))
    return {label: missing[label] for label in plan.preprocessing.labels if missing[label]}


def background_never_seen(plan: Plan, cases: Sequence[str]) -> bool:
    """Whether each of the cases lacks the annotation of some label, so that no voxel is known to be background."""
    return all(plan.unannotated.get(case) for case in cases)
