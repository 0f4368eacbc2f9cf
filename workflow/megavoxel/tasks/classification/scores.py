"""Rows of `scores.csv`: what a classifier said of every image, and the metrics of all of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import write_scores
from megavoxel.planning.splits import cases_of
from megavoxel.tasks.classification.cases import ImageCase, load_image_cases
from megavoxel.tasks.classification.metrics import values
from megavoxel.tasks.classification.probabilities import read_probabilities
from megavoxel.tasks.classification.splits import load_image_splits

PROBABILITY, TRUTH = "probability", "truth"
ALL = "all"
"""Stands in `case` and `label` where a metric is of all images."""


def score(arguments: argparse.Namespace) -> None:
    """Writes the score file of a part of a study and prints the metrics.

    Raises:
        UserError: a prediction is missing, or there is one of another image.
    """
    if arguments.metrics:
        raise UserError("--metrics: a classifier is always scored by all metrics of its task; leave it out")
    cases = load_image_cases(arguments.cases)
    fold = None if arguments.fold == "all" else int(arguments.fold)
    wanted = cases.select(cases_of(load_image_splits(arguments.splits), arguments.split, fold))
    table = read_probabilities(arguments.predictions, cases.classes)
    rows, metrics = image_rows(table, wanted, source=arguments.predictions)
    place = {"setting": arguments.setting, "split": arguments.split, "fold": arguments.fold}
    write_scores(arguments.output, rows, **place)
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def image_rows(
    table: pandas.DataFrame, cases: Sequence[ImageCase], *, source: Path
) -> tuple[list[tuple[str, str, str, float]], dict[str, float]]:
    """Case, label, metric and value: `probability` of each image and class, `truth` 1 of its own, and the metrics.

    Args:
        table: as `read_probabilities` gives it.
        cases: that should be predicted.
        source: names the file in errors.

    Raises:
        UserError: a prediction is missing, or there is one of another image.
    """
    names = [case.id for case in cases]
    missing, odd = sorted(set(names) - set(table.index)), sorted(set(table.index) - set(names))
    if missing or odd:
        what = f"has no line of {missing[0]}" if missing else f"has {odd[0]}, which is not to be scored"
        raise UserError(f"{source}: {what}; run 'megavoxel predict' again")
    if not names:
        return [], {}
    classes = list(table.columns)
    found = table.loc[names].to_numpy()
    rows = [
        (name, label, PROBABILITY, float(value))
        for name, own in zip(names, found, strict=True)
        for label, value in zip(classes, own, strict=True)
    ]
    rows += [(case.id, case.label, TRUTH, 1.0) for case in cases]
    metrics = values(np.array([classes.index(case.label) for case in cases]), found)
    return rows + [(ALL, ALL, name, value) for name, value in metrics.items()], metrics
