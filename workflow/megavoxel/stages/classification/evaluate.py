"""Scores of a classifier's probabilities."""

from __future__ import annotations

import argparse

from megavoxel.evaluation.tidy import write_scores
from megavoxel.planning.splits import cases_of
from megavoxel.tasks.classification.cases import load_image_cases
from megavoxel.tasks.classification.probabilities import read_probabilities
from megavoxel.tasks.classification.scores import image_rows
from megavoxel.tasks.classification.splits import load_image_splits


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Writes the score file and prints the metrics."""
    cases = load_image_cases(arguments.cases)
    fold = None if arguments.fold == "all" else int(arguments.fold)
    wanted = cases.select(cases_of(load_image_splits(arguments.splits), arguments.split, fold))
    table = read_probabilities(arguments.predictions, cases.classes)
    rows, metrics = image_rows(table, wanted, source=arguments.predictions)
    place = {"setting": arguments.setting, "split": arguments.split, "fold": arguments.fold}
    write_scores(arguments.output, rows, **place)
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
