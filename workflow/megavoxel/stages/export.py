"""Make a model to take away of trained runs: one self-contained directory, or a MONAI Bundle.

One setting with all its folds, or with some of them, which are averaged:
  megavoxel export results/STUDY/SETTING --to models/NAME
  megavoxel export results/STUDY/SETTING/fold-0 results/STUDY/SETTING/fold-1 --to models/NAME
An ensemble of settings:
  megavoxel export results/STUDY/ensembles/NAME --study my/study.yaml --to models/NAME
The network of all cases, of a setting whose folds have 'all' among them:
  megavoxel export results/STUDY/SETTING/fold-all --to models/NAME
For ONNX Runtime or OpenVINO in place of PyTorch:
  megavoxel export results/STUDY/SETTING --to models/NAME --format onnx
For MONAI:
  megavoxel export results/STUDY/SETTING --to bundles/NAME --format bundle
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megavoxel.config.setting import ALL
from megavoxel.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="results/STUDY/SETTING, or fold-K folders of one setting, or results/STUDY/ensembles/NAME",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format",
        choices=["model", "onnx", "openvino", "bundle"],
        default="model",
        help="a directory for 'megavoxel predict --model' with the weights of PyTorch (default), or with networks that "
        "ONNX Runtime or OpenVINO runs; or a MONAI Bundle",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="FILE",
        help="dataset file, for licence and reference; default: the one of that name in config/datasets",
    )
    parser.add_argument(
        "--study", type=Path, metavar="FILE", help="study file of an ensemble, which says of which settings it is"
    )
    parser.add_argument("--authors", default="", help="who made the model, for its card")


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder, whole or not at all."""
    from megavoxel.models.directory import next_command
    from megavoxel.models.gather import is_ensemble

    if len(arguments.runs) == 1 and is_ensemble(arguments.runs[0]):
        _export_ensemble(arguments)
    else:
        _export_setting(arguments)
    if arguments.format != "bundle":
        print(next_command(arguments.to), flush=True)


def _export_ensemble(arguments: argparse.Namespace) -> None:
    from megavoxel.models.directory import describe_ensemble, write_ensemble
    from megavoxel.models.gather import dataset_facts, find_ensemble

    if arguments.format == "bundle":
        raise UserError("--format bundle: a MONAI Bundle has the networks of one setting; leave it out, or export one")
    ensemble = find_ensemble(arguments.runs[0], arguments.study)
    facts = dataset_facts(ensemble.members[0].plan.dataset, arguments.dataset)
    description = describe_ensemble(ensemble, facts, arguments.authors)
    write_ensemble(ensemble, description, arguments.to, kind=arguments.format)
    print(
        f"{arguments.to}: {description.name}, the mean of {', '.join(own.setting.name for own in ensemble.members)}",
        flush=True,
    )


def _export_setting(arguments: argparse.Namespace) -> None:
    from megavoxel.models.directory import describe, write_model
    from megavoxel.models.gather import dataset_facts, find_runs, folds_left_out

    if arguments.study:
        raise UserError("--study: says of which settings an ensemble is; leave it out")
    runs = find_runs(arguments.runs)
    description = describe(runs, dataset_facts(runs.plan.dataset, arguments.dataset), arguments.authors)
    if arguments.format == "bundle":
        from megavoxel.models.bundle import write_bundle

        write_bundle(runs, description, arguments.to)
    else:
        write_model(runs, description, arguments.to, kind=arguments.format)
    print(f"{arguments.to}: {description.name}, {_named(runs.folds)}", flush=True)
    if ALL in runs.folds:
        print("note: fold all is trained on all cases, so that nothing of this model is validated", flush=True)
    if left_out := folds_left_out(runs):
        print(f"note: {_named(left_out)} of the study's splits.json: not in this model", flush=True)


def _named(folds: Sequence[int | str]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
