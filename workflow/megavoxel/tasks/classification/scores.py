"""What a classifier says of every image: its file of probabilities, and the rows of `scores.csv` with all metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from megavoxel.csv_files import as_written, write_csv
from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import write_scores
from megavoxel.files import table_text
from megavoxel.planning.splits import cases_of
from megavoxel.tasks.classification.cases import ImageCase, load_image_cases
from megavoxel.tasks.classification.metrics import values
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
    if arguments.lesions:
        raise UserError("--lesions: images of a classifier have no components; leave it out")
    if arguments.existing:
        raise UserError("--existing: a classifier's metrics are those of all its images; leave it out")
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


CASE = "case"
SUM_TOLERANCE = 1e-3


def write_probabilities(path: Path, names: Sequence[str], classes: Sequence[str], probabilities: np.ndarray) -> None:
    """Writes a line per image, in order of their names."""
    table = pandas.DataFrame(probabilities, columns=list(classes))
    table.insert(0, CASE, list(names))
    write_csv(path, table.sort_values(CASE))


def read_probabilities(path: Path, classes: Sequence[str] | None = None) -> pandas.DataFrame:
    """float64 by case (index) and class (columns).

    Args:
        classes: that it must have, in order; None: any.

    Raises:
        UserError: the file is missing, has other columns, a case twice, or numbers that are no probabilities.
    """
    try:
        table = (
            as_written(pandas.read_csv(table_text(path), dtype={CASE: str}, keep_default_na=False))
            .set_index(CASE)
            .astype(float)
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such probabilities; run 'megavoxel predict'") from None
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path}: cannot be read as probabilities by case and class ({fault})") from None
    if classes is not None and list(table.columns) != list(classes):
        raise UserError(f"{path}: its classes are {', '.join(table.columns)}; expected {', '.join(classes)}")
    if table.index.has_duplicates:
        raise UserError(f"{path}: case {table.index[table.index.duplicated()][0]} has two lines")
    wrong = ~((table >= 0).all(axis=1) & ((table.sum(axis=1) - 1).abs() < SUM_TOLERANCE))
    if wrong.any():
        raise UserError(f"{path}: case {table.index[wrong][0]}: its numbers are no probabilities that sum to 1")
    return table


def average_probabilities(members: Sequence[Path], output: Path) -> int:
    """Writes the mean of several files' probabilities; returns the number of images.

    Raises:
        UserError: as `mean_probabilities`.
    """
    mean = mean_probabilities(members)
    write_probabilities(output, list(mean.index), list(mean.columns), mean.to_numpy())
    return len(mean)


def mean_probabilities(members: Sequence[Path]) -> pandas.DataFrame:
    """The mean of several files' probabilities.

    Raises:
        UserError: they are of different cases or classes.
    """
    tables = [read_probabilities(path) for path in members]
    for path, table in zip(members, tables, strict=True):
        if list(table.columns) != list(tables[0].columns) or set(table.index) != set(tables[0].index):
            raise UserError(f"{members[0]} and {path} are of different cases or classes and cannot be averaged")
    return sum(table.loc[tables[0].index] for table in tables) / len(tables)
