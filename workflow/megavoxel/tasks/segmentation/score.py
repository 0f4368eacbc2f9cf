"""Scores of a study's label maps."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.evaluation.choice import parse_choice
from megavoxel.evaluation.lesions import write_lesions
from megavoxel.evaluation.metrics import METRICS, Metric
from megavoxel.evaluation.pairs import select_pairs
from megavoxel.evaluation.scoring import Scored, print_means, score_pairs
from megavoxel.evaluation.targets import Target, scored_by, targets_of
from megavoxel.evaluation.tidy import write_scores
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
    require_components(arguments, metrics)
    scored = score_pairs(selection.pairs, targets, metrics, processes=arguments.processes)
    if selection.unlabelled:
        print(f"{len(selection.unlabelled)} cases of the {arguments.split} split have no label map and are not scored")
    skipped = Counter(label for pair in selection.pairs for label in pair.skipped)
    finish(arguments, scored, targets, metrics, skipped, setting=arguments.setting, split=arguments.split)


def require_components(arguments: argparse.Namespace, metrics: Sequence[Metric]) -> None:
    """Refuses `--lesions` where no metric counts components."""
    if arguments.lesions is not None and not any(metric.of_components for metric in metrics):
        able = " or ".join(metric.key for metric in METRICS.values() if metric.of_components)
        raise UserError(f"--lesions: no label is scored by {able}; add one of them to --metrics")


def finish(
    arguments: argparse.Namespace,
    scored: Scored,
    targets: list[Target],
    metrics: tuple[Metric, ...],
    skipped: dict[str, int],
    *,
    setting: str,
    split: str,
) -> None:
    """Prints the means of scores, and writes score file and table of lesions where `--output` and `--lesions` say."""
    if scored.rows:
        print_means(scored.rows, targets, metrics, skipped)
    part = {"setting": arguments.setting or setting, "split": split, "fold": arguments.fold}
    if arguments.output is not None:
        write_scores(arguments.output, scored.rows, **part)
    if arguments.lesions is not None:
        write_lesions(arguments.lesions, scored.lesions, **part)
