"""Label images by the sliding window, or classify them: the cases of a study's fold or test split, or any scans.

New scans by a model that 'megavoxel export' wrote:
  megavoxel predict --model DIR --input SCAN... --output FOLDER
New scans by the networks of a study, the second stage of a cascade included:
  megavoxel predict --plan PLAN --weights MODEL... --input SCAN... --output FOLDER
The parts of a study's test split, which several jobs predicted, as one folder:
  megavoxel predict --collect PART... --output FOLDER
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.errors import UserError
from megavoxel.files import file_sha256
from megavoxel.inference.finished import CONFIDENCE, LOGITS
from megavoxel.planning.plan import Plan, load_plan, require_first_stage
from megavoxel.tasks import task_of

if TYPE_CHECKING:  # PyTorch is loaded when there is something to predict
    from megavoxel.evaluation.postprocessing import Postprocessing
    from megavoxel.models.compound import Run
    from megavoxel.models.label import Labelling
    from megavoxel.models.prepare import Reading
    from megavoxel.models.scans import Scan

OF_A_STUDY = (
    "cases", "preprocessed", "splits", "split", "fold", "stage1", "resume", "keep", "confidence", "collect",
    "collect_logits", "collect_confidence",
)  # fmt: skip
NOT_WITH_MODEL = ("plan", "weights", "logits", "stage1_labels", *OF_A_STUDY)
OF_NEW_SCANS = (
    "modality",
    "large_voxels",
    "stage1_labels",
    "probabilities",
    "uncertainty",
    "pictures",
    "any_modality",
    "series",
    "assume_orientation",
    "assume_spacing",
    "incomplete_series",
    "one_file_per_case",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options, those of every day first."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "megavoxel predict --model DIR --input SCAN [SCAN ...] --output FOLDER [--pictures] [options below]"
    _add_everyday(parser.add_argument_group("every day"))
    _add_odd_scans(parser.add_argument_group("scans that do not say all of themselves"))
    _add_networks(parser.add_argument_group("networks of a study in place of --model"))
    _add_cases(parser.add_argument_group("cases of a study, as Snakemake runs it"))


def _add_everyday(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", type=Path, metavar="DIR", help="a folder that 'megavoxel export' wrote")
    group.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="SCAN",
        help=".nii.gz, .nii, .nrrd, .mha, .tif, folders of them, a folder per case, and DICOM folders; finished cases "
        "are skipped. For a classifier: images, or folders of images",
    )
    group.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="gets a label map per scan, in the scan's format; of a classifier, a CSV file",
    )
    group.add_argument(
        "--pictures",
        action="store_true",
        help="also CASE.png (three slices with the labels), CASE.volumes.json, and volumes.csv of all cases, in mL",
    )
    group.add_argument("--probabilities", action="store_true", help="also CASE.probabilities.nii.gz")
    group.add_argument(
        "--uncertainty",
        action="store_true",
        help="also CASE.uncertainty.nii.gz: how far the networks of the folds disagree, in nats",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto (default), cpu, cuda, cuda:0, …; several GPUs share the scans, if none is named",
    )
    group.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")
    group.add_argument(
        "--large-voxels",
        type=int,
        metavar="N",
        help="scans of N voxels and more go block by block, whatever the memory; default: 134217728 (512 x 512 x 512)",
    )
    group.add_argument(
        "--leave-out", action="store_true", help="say what is no scan and leave it out, without an error at the end"
    )


def _add_odd_scans(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--modality", help="what all of them are, where the plan's dataset has several: CT, MR, …")
    group.add_argument("--any-modality", action="store_true", help="take scans of another modality than the model's")
    group.add_argument(
        "--series", nargs="+", default=[], metavar="UID", help="which DICOM series, where a folder has several"
    )
    group.add_argument(
        "--incomplete-series", action="store_true", help="take DICOM series that seem to lack slices at their ends"
    )
    group.add_argument(
        "--assume-orientation", metavar="RAS", help="where the axes i, j, k run in scans that do not say it"
    )
    group.add_argument(
        "--assume-spacing",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="voxel size in mm along the axes i, j, k in scans that do not say it",
    )
    group.add_argument(
        "--one-file-per-case", action="store_true", help="a number at the end of a file's name is no channel's"
    )


def _add_networks(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--plan", type=Path, help="plan.json of the setting")
    group.add_argument("--weights", type=Path, nargs="+", help="model.pt of one or several folds")
    group.add_argument(
        "--stage1-labels",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="for the second stage of a cascade: label maps of the scans by each first-stage setting",
    )
    group.add_argument("--logits", type=Path, help="folder for the logits, which an ensemble needs")


def _add_cases(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preprocessed", type=Path, help="folder of the preprocessed cases")
    group.add_argument("--cases", type=Path, help="cases.json, for a classifier")
    group.add_argument("--splits", type=Path, help="splits.json of the study")
    group.add_argument("--split", choices=["validation", "test"], help="which cases")
    group.add_argument("--fold", type=int, help="the fold of --split validation")
    group.add_argument("--stage1", type=Path, nargs="+", default=[], help="folder that 'megavoxel stage1' wrote")
    group.add_argument("--part", type=int, default=0, help="which share of the cases, counted from 0; default: 0")
    group.add_argument("--parts", type=int, default=1, help="number of shares; default: 1")
    group.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="where finished cases are kept until all are done; a run that is started again takes them from it",
    )
    group.add_argument(
        "--keep",
        action="store_true",
        help="with --resume: keep them there afterwards as well, as second names of the files of the output",
    )
    group.add_argument(
        "--confidence",
        type=Path,
        metavar="FOLDER",
        help="gets CASE.json, of how far the probabilities of each case can be trusted, for 'megavoxel temperature'",
    )
    group.add_argument(
        "--collect", type=Path, nargs="+", default=[], metavar="FOLDER", help="the --output of all parts, to be one"
    )
    for product in (LOGITS, CONFIDENCE):
        group.add_argument(
            f"--collect-{product}",
            type=Path,
            nargs="+",
            default=[],
            metavar="FOLDER",
            help=f"the --{product} of all parts",
        )


def run(arguments: argparse.Namespace) -> None:
    """Predicts; of a study, the folder of label maps appears when all are done, new scans are written one by one."""
    if arguments.collect:
        _collect(arguments)
        return
    if arguments.model:
        _label_by_model(arguments)
        return
    if not (arguments.plan and arguments.weights):
        raise UserError("give either --model, or --plan and --weights")
    task = task_of(arguments.plan, what="plan")
    if arguments.input and task.labels_scans:
        _label_by_plan(load_plan(arguments.plan), arguments)
        return
    not_of_images = () if task.labels_scans else (LOGITS, CONFIDENCE)
    _refuse_options(arguments, f"for cases of a study, or in {task.name}", (*OF_NEW_SCANS, *not_of_images))
    task.predict(arguments)


def _collect(arguments: argparse.Namespace) -> None:
    from megavoxel.files import linked_together

    more = {name: (getattr(arguments, name), getattr(arguments, f"collect_{name}")) for name in (LOGITS, CONFIDENCE)}
    for name, (target, parts) in more.items():
        if bool(target) != bool(parts):
            raise UserError(f"--{name} and --collect-{name}: give both or neither")
    count = linked_together(arguments.collect, arguments.output)
    for target, parts in more.values():
        if target:
            linked_together(parts, target)
    print(f"{count} files of {len(arguments.collect)} parts in {arguments.output}")


def _label_by_model(arguments: argparse.Namespace) -> None:
    from megavoxel.models.compound import label_by_model
    from megavoxel.models.directory import load_model

    _refuse_options(arguments, "with --model", NOT_WITH_MODEL)
    if not arguments.input:
        raise UserError("--model needs --input: the scans, or folders of them")
    model = load_model(arguments.model)
    if model.members and arguments.uncertainty:
        raise UserError(
            f"--uncertainty: it is how far the networks of one setting disagree, and {arguments.model} is an ensemble "
            f"of settings; leave it out, or take one of the models in {arguments.model / 'members'}"
        )
    labelling = replace(
        _labelling(arguments, model.identity, model.postprocessing, networks=len(model.weights)),
        temperature=model.temperature,
    )
    label_by_model(model, _scans(arguments), labelling, _run_of(arguments))


def _label_by_plan(plan: Plan, arguments: argparse.Namespace) -> None:
    from megavoxel.models.compound import label_by_networks

    _refuse_options(arguments, "with --input", OF_A_STUDY)
    require_first_stage(plan, arguments.stage1_labels, option="--stage1-labels")
    sums = {f"weights {number}": file_sha256(path) for number, path in enumerate(arguments.weights, start=1)}
    identity = {"model": f"{plan.study}-{plan.setting}", "plan": plan.hash, **sums}
    labelling = _labelling(arguments, identity, None, networks=len(arguments.weights))
    label_by_networks(plan, arguments.weights, _scans(arguments), labelling, _run_of(arguments))


def _labelling(
    arguments: argparse.Namespace, identity: dict[str, str], postprocessing: Postprocessing | None, *, networks: int
) -> Labelling:
    from megavoxel.models.label import Labelling

    if arguments.uncertainty and networks < 2:
        raise UserError(
            f"--uncertainty: it is how far the networks of several folds disagree, and {identity['model']} has one; "
            "leave it out, or take a model of several folds"
        )
    return Labelling(
        output=arguments.output,
        model=identity,
        postprocessing=postprocessing,
        reading=_reading(arguments),
        logits=arguments.logits,
        first_stage=tuple(arguments.stage1_labels),
        probabilities=arguments.probabilities,
        uncertainty=arguments.uncertainty,
        pictures=arguments.pictures,
    )


def _scans(arguments: argparse.Namespace) -> list[Scan]:
    from megavoxel.models.scans import find_scans

    return find_scans(arguments.input, one_file_per_case=arguments.one_file_per_case, leave_out=arguments.leave_out)


def _run_of(arguments: argparse.Namespace) -> Run:
    """What labels scans by networks, on the devices that the user has named."""

    def run(plan: Plan, weights: Sequence[Path], scans: Sequence[Scan], labelling: Labelling) -> None:
        from megavoxel.forecast.prediction import explained_predictor
        from megavoxel.inference.run_times import device_of
        from megavoxel.models.label import label_scans
        from megavoxel.models.shares import label_by_devices, sharing_devices

        device = device_of(weights, arguments.device)
        if devices := sharing_devices(plan, device, len(scans)):
            label_by_devices(scans, plan, weights, labelling, devices, arguments.threads)
            return
        named = argparse.Namespace(**vars(arguments) | {"device": device})
        with explained_predictor(plan, weights, "predict", named) as predictor:
            if predictor is not None:
                label_scans(scans, predictor, labelling)

    return run


def _reading(arguments: argparse.Namespace) -> Reading:
    from megavoxel.models.prepare import Reading, check_orientation_code
    from megavoxel.volumes.slabs import LARGE_VOXELS

    orientation, large = arguments.assume_orientation, arguments.large_voxels
    return Reading(
        modality=arguments.modality,
        any_modality=arguments.any_modality,
        series=tuple(arguments.series),
        orientation=check_orientation_code(orientation) if orientation else None,
        sides=_sides(arguments.assume_spacing),
        incomplete_series=arguments.incomplete_series,
        large_voxels=LARGE_VOXELS if large is None else large,
    )


def _sides(given: Sequence[float] | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    if not all(math.isfinite(side) and side > 0 for side in given):
        raise UserError(f"--assume-spacing {' '.join(map(str, given))}: allowed: three sizes in mm above 0")
    return tuple(given)


def _refuse_options(arguments: argparse.Namespace, where: str, names: Sequence[str]) -> None:
    values = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in names}
    given = [name for name, value in values.items() if not (value is None or value is False or value == [])]
    if given:
        raise UserError(f"{', '.join(given)}: not {where}; leave it out")
