"""The labels and regions that are scored, each with its values, tolerance and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.evaluation.choice import Choice
from megavoxel.evaluation.compared import Values
from megavoxel.evaluation.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Target:
    """A label or region to score."""

    name: str
    values: Values
    """What it is in the label maps, from 1."""
    tolerance: float
    """Tolerance of NSD in mm."""
    metrics: tuple[Metric, ...] | None = None
    """What it is scored by; None: by all metrics."""


def targets_of(cases: Cases, tolerances: Sequence[str] = ()) -> list[Target]:
    """What is scored of a dataset: its regions, or its labels in ascending order of their values.

    Args:
        cases: the dataset.
        tolerances: as for `parse_tolerances`, in place of those of the cases; empty: those of the cases.

    Raises:
        UserError: a tolerance is no number from 0, or a label has none.
    """
    names = list(cases.structures)
    by_name = parse_tolerances(tolerances, names, others=True) if tolerances else cases.nsd_tolerance_mm
    return [Target(name=name, values=values, tolerance=by_name[name]) for name, values in cases.structures.items()]


def parse_targets(labels: dict[str, int], tolerances: Sequence[str]) -> list[Target]:
    """Labels with their tolerances, in ascending order of their values.

    Args:
        tolerances: one number in mm for all, or `NAME=MM` for each label.

    Raises:
        UserError: a tolerance is no number from 0, is missing, or belongs to no label.
    """
    by_name = parse_tolerances(tolerances, list(labels))
    order = sorted(labels.items(), key=lambda item: item[1])
    return [Target(name=name, values=value, tolerance=by_name[name]) for name, value in order]


def scored_by(targets: Sequence[Target], choice: Choice) -> list[Target]:
    """What is scored, with the metrics that are chosen for it."""
    return [replace(target, metrics=choice.of(target.name)) for target in targets]


def parse_labels(words: Sequence[str]) -> dict[str, int]:
    """Values by name from words such as `liver=1`.

    Raises:
        UserError: a word is not NAME=VALUE, or a name or value comes twice.
    """
    labels: dict[str, int] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        if not name or not value.isdecimal() or not 1 <= int(value) <= 65535:
            raise UserError(f"--labels {word}: expected NAME=VALUE with a whole number from 1 to 65535")
        if name in labels or int(value) in labels.values():
            raise UserError(f"--labels {word}: this name or value was given before; give each once")
        labels[name] = int(value)
    return labels


def parse_tolerances(words: Sequence[str], names: Sequence[str], *, others: bool = False) -> dict[str, float]:
    """Tolerance in mm of each label.

    Args:
        words: one number for all, or `NAME=MM` for each.
        names: of the labels.
        others: whether words may name other labels, which are left out.

    Raises:
        UserError: a tolerance is no number from 0, is missing, or belongs to no label.
    """
    if len(words) == 1 and "=" not in words[0]:
        return dict.fromkeys(names, _millimetres(words[0], words[0]))
    by_name: dict[str, float] = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        if not equals:
            raise UserError(f"--tolerance {word}: expected one number in mm, or NAME=MM for each label")
        if name not in names and others:
            continue
        if name not in names:
            raise UserError(f"--tolerance {word}: there is no label '{name}'; there are: {', '.join(names)}")
        by_name[name] = _millimetres(number, word)
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"--tolerance: no tolerance for {', '.join(missing)}; add {missing[0]}=MM")
    return by_name


def _millimetres(text: str, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UserError(f"--tolerance {word}: '{text}' is not a number of mm from 0")
    return number
