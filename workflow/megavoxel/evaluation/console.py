"""Mean scores as a table on the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from megavoxel.evaluation.targets import Target
from megavoxel.evaluation.tidy import Score

DEFINITIONS = (
    "Means over cases; the last line takes the mean over labels within each case first. 'Both empty': values that are "
    "not numbers, left out of the means. 'Unannotated': cases without an annotation of the label, not scored for it. "
    "NSD: surface-based (Nikolov et al. 2018), tolerance as shown."
)


def print_means(scores: Sequence[Score], targets: Sequence[Target], skipped: Mapping[str, int]) -> None:
    """Prints mean DSC and NSD per label, and their mean over labels.

    Args:
        scores: of all cases.
        targets: the labels.
        skipped: by label, in how many cases it was not scored; those that it was in all may be left out.
    """
    table = Table("label", "tolerance in mm", "cases", "unannotated", "both empty", "DSC", "NSD")
    for column in table.columns[1:]:
        column.justify = "right"
    for target in targets:
        own = [score for score in scores if score.label == target.name]
        empty = sum(np.isnan(score.dsc) for score in own)
        counts = (len(own), skipped.get(target.name, 0), empty)
        table.add_row(target.name, f"{target.tolerance:g}", *map(str, counts), *_means(own))
    by_case: dict[str, list[Score]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score)
    dsc = _mean([_mean([score.dsc for score in own]) for own in by_case.values()])
    nsd = _mean([_mean([score.nsd for score in own]) for own in by_case.values()])
    table.add_section()
    table.add_row("mean over labels", "", str(len(by_case)), "", "", _number(dsc), _number(nsd))
    console = Console()
    console.print(table)
    console.print(DEFINITIONS)


def _means(scores: Sequence[Score]) -> tuple[str, str]:
    return _number(_mean([score.dsc for score in scores])), _number(_mean([score.nsd for score in scores]))


def _mean(values: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return float(np.nanmean(values)) if len(values) else float("nan")


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"
