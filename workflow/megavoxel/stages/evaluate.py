"""Score label maps per case and label, as a table and as CSV; or the probabilities of a classifier.

Two folders, matched by file name:
  megavoxel evaluate PREDICTIONS REFERENCES --tolerance 2.0 --output scores.csv
A part of a study:
  megavoxel evaluate PREDICTIONS --cases cases.json --splits splits.json --split validation --fold 0 --setting NAME
  --output scores.csv
All parts of a study in one file:
  megavoxel evaluate --collect A.csv B.csv --output scores.csv
Tolerances of a part of a study are those of cases.json, unless --nsd-tolerance gives others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import DEFAULT, METRICS

if TYPE_CHECKING:
    from megavoxel.evaluation.pairs import Pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "predictions", type=Path, nargs="?", help="folder of predicted label maps (.nii.gz); of a classifier, its CSV"
    )
    parser.add_argument("references", type=Path, nargs="?", help="folder of reference label maps of the same names")
    parser.add_argument("--output", type=Path, help="score file to write: setting,split,fold,case,label,metric,value")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(METRICS)}; default: {' and '.join(DEFAULT)}; LABEL=NAME,NAME: those of a label",
    )
    parser.add_argument(
        "--lesions", type=Path, help="table to write: size and match of every component, where a metric counts them"
    )
    parser.add_argument("--processes", type=int, default=1, help="processes that share the cases (default: 1)")
    parser.add_argument("--allow-extra", action="store_true", help="leave out predictions that are not to be scored")
    parser.add_argument(
        "--existing", action="store_true", help="score the predictions that are there, and say which are missing"
    )
    parser.add_argument("--setting", help="first column of the score file (two folders: name of PREDICTIONS)")
    folders = parser.add_argument_group("two folders")
    folders.add_argument("--tolerance", nargs="+", metavar="MM", help="tolerance of NSD in mm, or NAME=MM per label")
    folders.add_argument("--labels", nargs="+", metavar="NAME=VALUE", help="default: all values in REFERENCES but 0")
    study = parser.add_argument_group("part of a study")
    study.add_argument("--cases", type=Path, help="cases.json: label maps, labels and tolerances")
    study.add_argument("--splits", type=Path, help="splits.json")
    study.add_argument("--split", choices=["validation", "test"], help="cases to score")
    study.add_argument("--fold", default="all", help="fold that predicted, or all (default)")
    study.add_argument(
        "--nsd-tolerance", nargs="+", metavar="MM", help="like --tolerance, in place of the tolerances of cases.json"
    )
    collect = parser.add_argument_group("all parts of a study")
    collect.add_argument("--collect", type=Path, nargs="+", metavar="CSV", help="score files to join")
    collect.add_argument("--tolerances", type=Path, help="where to write --nsd-tolerance of each label")


def run(arguments: argparse.Namespace) -> None:
    """Scores two folders or a part of a study, or joins score files."""
    if arguments.collect:
        _collect(arguments)
    elif arguments.cases:
        from megavoxel.tasks import task_of

        _check_study_options(arguments)
        task_of(arguments.cases, what="list of cases").score(arguments)
    else:
        _score_folders(arguments)


def _collect(arguments: argparse.Namespace) -> None:
    from megavoxel.evaluation.tidy import collect_scores
    from megavoxel.evaluation.tolerances import write_tolerances

    if arguments.output is None or arguments.predictions is not None:
        raise UserError("--collect needs --output and no folders")
    if arguments.lesions is not None:
        raise UserError("--lesions: not together with --collect, which joins score files alone; leave it out")
    lines = collect_scores(arguments.collect, arguments.output)
    if arguments.tolerances is not None:
        write_tolerances(arguments.tolerances, arguments.nsd_tolerance or (), scores=arguments.output)
    print(f"{lines} values of {len(arguments.collect)} files in {arguments.output}")


def _score_folders(arguments: argparse.Namespace) -> None:
    from megavoxel.evaluation.choice import parse_choice
    from megavoxel.evaluation.pairs import match_folders, require_comparable
    from megavoxel.evaluation.scoring import score_pairs
    from megavoxel.evaluation.targets import parse_targets, scored_by
    from megavoxel.tasks.segmentation.score import finish, require_components

    if arguments.predictions is None or arguments.references is None:
        raise UserError("give PREDICTIONS and REFERENCES, or PREDICTIONS and --cases, or --collect")
    pairs = match_folders(
        arguments.predictions,
        arguments.references,
        allow_extra=arguments.allow_extra,
        existing=arguments.existing,
    )
    for pair in pairs:  # before voxels are read, which are more than the file seems to hold where it packs well
        require_comparable(pair)
    labels = _labels_of_folders(arguments, pairs)
    choice = parse_choice(arguments.metrics or (), labels)
    metrics = choice.of_all(labels)
    needy = [metric.shown for metric in metrics if metric.takes_tolerance]
    if needy and not arguments.tolerance:
        raise UserError(
            f"--tolerance is missing: {needy[0]} has no meaning without one; give it in mm, such as --tolerance 2"
        )
    require_components(arguments, metrics)
    targets = scored_by(parse_targets(labels, arguments.tolerance or ["0"]), choice)
    scored = score_pairs(pairs, targets, metrics, processes=arguments.processes)
    finish(arguments, scored, targets, metrics, {}, setting=arguments.predictions.resolve().name, split="all")


def _labels_of_folders(arguments: argparse.Namespace, pairs: Sequence[Pair]) -> dict[str, int]:
    """Values by name: what `--labels` says, or all values of the references."""
    from megavoxel.evaluation.pairs import label_values
    from megavoxel.evaluation.targets import parse_labels

    if arguments.labels:
        return parse_labels(arguments.labels)
    values = label_values([pair.reference for pair in pairs], processes=arguments.processes)
    predicted = label_values([pair.prediction for pair in pairs], processes=arguments.processes)
    strange = sorted(set(predicted) - set(values))
    if strange:
        print(f"values of predictions that no reference has, which are not scored: {', '.join(map(str, strange))}")
    if not values:
        raise UserError(f"{arguments.references}: no label map holds a value but 0; name what to score with --labels")
    return {str(value): value for value in values}


def _check_study_options(arguments: argparse.Namespace) -> None:
    needed = {"PREDICTIONS": arguments.predictions, "--splits": arguments.splits, "--split": arguments.split}
    needed |= {"--setting": arguments.setting, "--output": arguments.output}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise UserError(f"--cases scores a part of a study, which also needs {', '.join(missing)}")
    known = {"REFERENCES": arguments.references, "--labels": arguments.labels, "--tolerance": arguments.tolerance}
    superfluous = [name for name, value in known.items() if value is not None]
    if superfluous:
        raise UserError(f"{', '.join(superfluous)}: not together with --cases, which says it already; leave it out")
