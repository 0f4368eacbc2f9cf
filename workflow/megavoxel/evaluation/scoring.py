"""Scores of predictions, case by case, and their means for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from tabulate import tabulate

from megavoxel.evaluation.compared import compared_labels
from megavoxel.evaluation.lesions import Lesion, lesions_of
from megavoxel.evaluation.metrics import Metric
from megavoxel.evaluation.pairs import Pair, read_pair
from megavoxel.evaluation.targets import Target
from megavoxel.evaluation.tidy import Row
from megavoxel.parallel import map_cases
from megavoxel.volumes.grid import rounded_spacing

DEFINITIONS = (
    "Means over cases; the last line takes the mean over labels within each case first. 'Both empty': values that are "
    "not numbers, left out of the means. 'Unannotated': cases without an annotation of the label, not scored for it."
)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What pairs are scored with."""

    rows: list[Row]
    """Values of metrics."""
    lesions: list[Lesion]
    """Components of the labels whose metrics count them."""


def score_pairs(
    pairs: Sequence[Pair], targets: Sequence[Target], metrics: Sequence[Metric], *, processes: int = 1
) -> Scored:
    """Values of all metrics of all pairs, case by case in the given order, whatever the number of processes.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its reference.
    """
    work = partial(score_pair, targets=targets, metrics=metrics)
    per_case = map_cases(work, pairs, processes=processes, title="scoring")
    return Scored(
        rows=[row for case in per_case for row in case.rows],
        lesions=[lesion for case in per_case for lesion in case.lesions],
    )


def score_pair(pair: Pair, targets: Sequence[Target], metrics: Sequence[Metric]) -> Scored:
    """Values of each label of a case but for those that are skipped; raises as `score_pairs` does."""
    targets = [target for target in targets if target.name not in pair.skipped]
    prediction, reference, geometry = read_pair(pair)
    labels = compared_labels(
        *pair.annotated(prediction, reference),
        [target.values for target in targets],
        tolerances=[target.tolerance for target in targets],
        # A float32 affine says 1.2500001 mm where 1.25 is meant, which would put whole surfaces beyond a tolerance.
        spacing=rounded_spacing(geometry.spacing),
    )
    rows, lesions = [], []
    for target, label in zip(targets, labels, strict=True):
        own = target.metrics or metrics
        rows += [(pair.case, target.name, metric.name, metric.of(label)) for metric in own]
        if any(metric.of_components for metric in own):
            lesions += lesions_of(pair.case, target.name, label)
    return Scored(rows=rows, lesions=lesions)


def print_means(
    rows: Sequence[Row], targets: Sequence[Target], metrics: Sequence[Metric], skipped: Mapping[str, int]
) -> None:
    """Prints the mean of each metric per label, and the means over labels.

    Args:
        rows: of all cases, as `score_pairs` gives them.
        metrics: of the rows; what a label is not scored by has no value.
        skipped: by label, in how many cases it was not scored; labels that were always scored may be left out.
    """
    table = pd.DataFrame(rows, columns=["case", "label", "metric", "value"])
    wide = table.pivot(index=["case", "label"], columns="metric", values="value")[[metric.name for metric in metrics]]
    heads = ["label", "tolerance in mm", "cases", "unannotated", "both empty", *(metric.head for metric in metrics)]
    lines = []
    for target in targets:
        own = wide[wide.index.get_level_values("label") == target.name]
        first = (target.metrics or metrics)[0].name
        counts = (len(own), skipped.get(target.name, 0), int(own[first].isna().sum()))
        lines.append([target.name, _tolerance(target, target.metrics or metrics), *counts, *map(_number, own.mean())])
    by_case = wide.groupby("case").mean()
    lines.append(["mean over labels", "", len(by_case), "", "", *map(_number, by_case.mean())])
    align = ["left"] + ["right"] * (len(heads) - 1)
    print(tabulate(lines, headers=heads, tablefmt="simple", disable_numparse=True, colalign=align))
    print(DEFINITIONS, *(f"{metric.shown}: {metric.title}, {metric.definition}." for metric in metrics))


def _tolerance(target: Target, metrics: Sequence[Metric]) -> str:
    return f"{target.tolerance:g}" if any(metric.takes_tolerance for metric in metrics) else ""


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"
