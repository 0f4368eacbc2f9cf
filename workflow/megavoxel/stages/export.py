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
An image of Apptainer or Docker that labels a folder of scans, built in the folder:
  megavoxel export results/STUDY/SETTING --to containers/NAME --format container
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
        choices=["model", "onnx", "openvino", "container", "bundle"],
        default="model",
        help="a directory for 'megavoxel predict --model' with the weights of PyTorch (default), or with networks that "
        "ONNX Runtime or OpenVINO runs; that with what Apptainer and Docker build an image by; or a MONAI Bundle",
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
    from megavoxel.models.container import build_command, write_container
    from megavoxel.models.directory import next_command

    said: list[str] = []
    if arguments.format == "container":
        write_container(lambda folder: said.extend(_export(arguments, folder, "model")), arguments.to)
    else:
        said.extend(_export(arguments, arguments.to, arguments.format))
    print(f"{arguments.to}: " + "\n".join(said), flush=True)
    if arguments.format != "bundle":
        print((build_command if arguments.format == "container" else next_command)(arguments.to), flush=True)


def _export(arguments: argparse.Namespace, target: Path, kind: str) -> list[str]:
    """Writes a model; what is in it, and notes about that."""
    from megavoxel.models.gather import is_ensemble

    if len(arguments.runs) == 1 and is_ensemble(arguments.runs[0]):
        return _export_ensemble(arguments, target, kind)
    return _export_setting(arguments, target, kind)


def _export_ensemble(arguments: argparse.Namespace, target: Path, kind: str) -> list[str]:
    from megavoxel.models.directory import describe_ensemble, write_ensemble
    from megavoxel.models.gather import dataset_facts, find_ensemble

    if kind == "bundle":
        raise UserError("--format bundle: a MONAI Bundle has the networks of one setting; leave it out, or export one")
    ensemble = find_ensemble(arguments.runs[0], arguments.study)
    facts = dataset_facts(ensemble.members[0].plan.dataset, arguments.dataset)
    description = describe_ensemble(ensemble, facts, arguments.authors)
    write_ensemble(ensemble, description, target, kind=kind)
    return [f"{description.name}, the mean of {', '.join(own.setting.name for own in ensemble.members)}"]


def _export_setting(arguments: argparse.Namespace, target: Path, kind: str) -> list[str]:
    from megavoxel.models.directory import describe, write_model
    from megavoxel.models.gather import dataset_facts, find_runs, folds_left_out

    if arguments.study:
        raise UserError("--study: says of which settings an ensemble is; leave it out")
    runs = find_runs(arguments.runs)
    description = describe(runs, dataset_facts(runs.plan.dataset, arguments.dataset), arguments.authors)
    if kind == "bundle":
        from megavoxel.models.bundle import write_bundle

        write_bundle(runs, description, target)
    else:
        write_model(runs, description, target, kind=kind)
    said = [f"{description.name}, {_named(runs.folds)}"]
    if ALL in runs.folds:
        said.append("note: fold all is trained on all cases, so that nothing of this model is validated")
    if left_out := folds_left_out(runs):
        said.append(f"note: {_named(left_out)} of the study's splits.json: not in this model")
    return said


def _named(folds: Sequence[int | str]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
