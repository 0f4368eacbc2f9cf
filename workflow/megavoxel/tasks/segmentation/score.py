"""Scores of a study's label maps."""

from __future__ import annotations

import argparse
from collections import Counter

from megavoxel.datasets.cases import load_cases
from megavoxel.evaluation.choice import parse_choice
from megavoxel.evaluation.metrics import Metric
from megavoxel.evaluation.pairs import Target, print_means, score_pairs, scored_by, select_pairs, targets_of
from megavoxel.evaluation.tidy import Row, write_scores
from megavoxel.planning.splits import load_splits


def score(arguments: argparse.Namespace) -> None:
    """Scores the label maps of a part of a study, prints means and writes the score file.

    Raises:
        UserError: a label map is missing, or there is one of another case.
    """
    cases = load_cases(arguments.cases)
    choice = parse_choice(arguments.metrics or (), cases.structures)
    targets = scored_by(targets_of(cases, arguments.nsd_tolerance or ()), choice)
    selection = select_pairs(
        cases,
        load_splits(arguments.splits),
        split=arguments.split,
        fold=arguments.fold,
        predictions=arguments.predictions,
        allow_extra=arguments.allow_extra,
        existing=arguments.existing,
    )
    metrics = choice.of_all(cases.structures)
    rows = score_pairs(selection.pairs, targets, metrics, processes=arguments.processes)
    if selection.unlabelled:
        print(f"{len(selection.unlabelled)} cases of the {arguments.split} split have no label map and are not scored")
    skipped = Counter(label for pair in selection.pairs for label in pair.skipped)
    finish(arguments, rows, targets, metrics, skipped, setting=arguments.setting, split=arguments.split)


def finish(
    arguments: argparse.Namespace,
    rows: list[Row],
    targets: list[Target],
    metrics: tuple[Metric, ...],
    skipped: dict[str, int],
    *,
    setting: str,
    split: str,
) -> None:
    """Prints the means of scores, and writes the score file where `--output` says."""
    if rows:
        print_means(rows, targets, metrics, skipped)
    if arguments.output is not None:
        setting = arguments.setting or setting
        write_scores(arguments.output, rows, setting=setting, split=split, fold=arguments.fold)
