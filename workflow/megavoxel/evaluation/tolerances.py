"""Tolerances of NSD per label: `tolerances.json` beside a `scores.csv`, those that its values were worked out with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megavoxel.datasets.cases import Cases
from megavoxel.errors import expect
from megavoxel.evaluation.targets import parse_tolerances
from megavoxel.evaluation.tidy import read_scores
from megavoxel.files import read_json, write_json

TOLERANCES = "tolerances.json"


def write_tolerances(path: Path, words: Sequence[str], *, scores: Path) -> None:
    """Writes the tolerance in mm of each label in a score file.

    Args:
        path: of the file to write.
        words: one number in mm for all labels, or `NAME=MM` for each; names that are not scored are left out.
        scores: the score file.

    Raises:
        UserError: a tolerance is no number from 0, or a label has none.
    """
    labels = sorted(read_scores(scores)["label"].unique())
    write_json(path, parse_tolerances(words, labels, others=True))


def scored_tolerances(results: Path, cases: Cases | None) -> dict[str, float]:
    """Tolerance in mm by label that the scores in a study's folder were worked out with.

    Args:
        results: the study's folder.
        cases: its cases, whose tolerances count where the folder has no `tolerances.json`; None: they are not known.

    Raises:
        UserError: the file is damaged.
    """
    path = results / TOLERANCES
    if not path.is_file():
        return {} if cases is None else cases.nsd_tolerance_mm
    found = read_json(path, what="table of tolerances")
    sound = isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values())
    expect(sound, str(path), "a number of mm for each label, as 'megavoxel evaluate --collect' writes them")
    return {str(name): float(value) for name, value in found.items()}
