"""Make a model to take away of trained runs: one self-contained directory, or a MONAI Bundle.

One setting with all its folds, or with some of them, which are averaged:
  megavoxel export results/STUDY/SETTING --to models/NAME
  megavoxel export results/STUDY/SETTING/fold-0 results/STUDY/SETTING/fold-1 --to models/NAME
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="results/STUDY/SETTING, or fold-K folders of one setting"
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
    parser.add_argument("--authors", default="", help="who made the model, for its card")


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder, whole or not at all."""
    from megavoxel.models.directory import describe, next_command, write_model
    from megavoxel.models.gather import dataset_facts, find_runs, folds_left_out

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
    if arguments.format != "bundle":
        print(next_command(arguments.to), flush=True)


def _named(folds: Sequence[int | str]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
