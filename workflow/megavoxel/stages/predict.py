"""Label images by the sliding window, or classify them: the cases of a study's fold or test split, or any images.

New scans by a model that 'megavoxel export' wrote:
  megavoxel predict --model DIR --input SCAN... --output FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavoxel.errors import UserError
from megavoxel.files import atomic_directory
from megavoxel.planning.plan import Plan, load_plan, require_first_stage
from megavoxel.planning.splits import cases_of, load_splits
from megavoxel.progress import progress
from megavoxel.tasks.classification.cases import is_classification

if TYPE_CHECKING:  # PyTorch is loaded when there is something to predict
    from megavoxel.inference.predict import CasePredictor
    from megavoxel.models.prepare import Reading

NOT_WITH_MODEL = (
    "plan",
    "weights",
    "logits",
    "cases",
    "preprocessed",
    "splits",
    "split",
    "fold",
    "stage1",
    "stage1_labels",
)
ONLY_WITH_MODEL = ("probabilities", "pictures", "any_modality", "series", "assume_orientation", "one_file_per_case")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--plan", type=Path, help="plan.json of the setting")
    parser.add_argument("--weights", type=Path, nargs="+", help="model.pt of one or several folds")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the label maps CASE.nii.gz; of a classifier, a CSV"
    )
    parser.add_argument("--logits", type=Path, help="folder for the logits, which an ensemble needs")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")
    study = parser.add_argument_group("cases of a study")
    study.add_argument("--preprocessed", type=Path, help="folder of the preprocessed cases")
    study.add_argument("--cases", type=Path, help="cases.json, for a classifier")
    study.add_argument("--splits", type=Path, help="splits.json of the study")
    study.add_argument("--split", choices=["validation", "test"], help="which cases")
    study.add_argument("--fold", type=int, help="the fold of --split validation")
    study.add_argument("--stage1", type=Path, nargs="+", default=[], help="folder that 'megavoxel stage1' wrote")
    images = parser.add_argument_group("any images")
    images.add_argument("--input", type=Path, nargs="+", help="images, or folders of images (.nii.gz or .nii)")
    images.add_argument(
        "--large-voxels",
        type=int,
        metavar="N",
        help="images of N voxels and more go block by block, whatever the memory; default: 134217728 (512 x 512 x 512)",
    )
    images.add_argument("--modality", help="what all of them are, where the plan's dataset has several: CT, MR, …")
    images.add_argument(
        "--stage1-labels",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="for the second stage of a cascade: label maps of the images by each first-stage setting",
    )
    _add_model_arguments(parser.add_argument_group("new scans by an exported model"))


def _add_model_arguments(model: argparse._ArgumentGroup) -> None:
    model.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="in place of --plan and --weights: a folder of 'megavoxel export'. --input then takes .nii.gz, .nii, "
        ".nrrd, .mha, folders of them, a folder per case, and DICOM folders; finished cases are skipped",
    )
    model.add_argument("--probabilities", action="store_true", help="also CASE.probabilities.nii.gz")
    model.add_argument("--pictures", action="store_true", help="also CASE.png: three slices, labels, volumes in mL")
    model.add_argument("--any-modality", action="store_true", help="take scans of another modality than the model's")
    model.add_argument(
        "--series", nargs="+", default=[], metavar="UID", help="which DICOM series, where a folder has several"
    )
    model.add_argument(
        "--assume-orientation", metavar="RAS", help="where the axes i, j, k run in scans that do not say it"
    )
    model.add_argument(
        "--one-file-per-case", action="store_true", help="a number at the end of a file's name is no channel's"
    )


def run(arguments: argparse.Namespace) -> None:
    """Predicts; the folder of label maps appears when all are done, or, with --model, case by case."""
    if arguments.model:
        _predict_by_model(arguments)
        return
    if not (arguments.plan and arguments.weights):
        raise UserError("give either --model, or --plan and --weights")
    _refuse_options(arguments, "with --plan and --weights", ONLY_WITH_MODEL)
    if is_classification(arguments.plan, what="plan"):
        from megavoxel.stages.classification.predict import run_predict

        run_predict(arguments)
        return
    plan = load_plan(arguments.plan)
    if arguments.input:
        require_first_stage(plan, arguments.stage1_labels, option="--stage1-labels")
    else:
        require_first_stage(plan, arguments.stage1, option="--stage1")
    items = _images(plan, arguments) if arguments.input else _study_cases(arguments)
    if not items:
        print("no cases to predict", flush=True)
        with _folders(arguments):
            return
    from megavoxel.forecast.predictor import explained_predictor

    with explained_predictor(plan, arguments.weights, "predict", arguments) as predictor:
        if predictor is not None:
            with _folders(arguments) as (output, logits):
                _predict(predictor, items, arguments, output, logits)


def _predict_by_model(arguments: argparse.Namespace) -> None:
    from megavoxel.models.directory import load_model
    from megavoxel.models.label import Labelling, label_scans, unfinished
    from megavoxel.models.scans import find_scans

    _refuse_options(arguments, "with --model", NOT_WITH_MODEL)
    if not arguments.input:
        raise UserError("--model needs --input: the scans, or folders of them")
    model = load_model(arguments.model)
    labelling = Labelling(
        output=arguments.output,
        model=model.identity,
        postprocessing=model.postprocessing,
        reading=_reading(arguments),
        probabilities=arguments.probabilities,
        pictures=arguments.pictures,
    )
    scans = find_scans(arguments.input, one_file_per_case=arguments.one_file_per_case)
    left = unfinished(scans, labelling)
    if not left:
        return
    from megavoxel.forecast.predictor import explained_predictor

    with explained_predictor(model.plan, model.weights, "predict", arguments) as predictor:
        if predictor is not None:
            label_scans(left, predictor, labelling)


def _reading(arguments: argparse.Namespace) -> Reading:
    from megavoxel.models.prepare import Reading, check_orientation_code
    from megavoxel.volumes.slabs import LARGE_VOXELS

    orientation, large = arguments.assume_orientation, arguments.large_voxels
    return Reading(
        modality=arguments.modality,
        any_modality=arguments.any_modality,
        series=tuple(arguments.series),
        orientation=check_orientation_code(orientation) if orientation else None,
        large_voxels=LARGE_VOXELS if large is None else large,
    )


def _refuse_options(arguments: argparse.Namespace, where: str, names: Sequence[str]) -> None:
    values = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in names}
    given = [name for name, value in values.items() if not (value is None or value is False or value == [])]
    if given:
        raise UserError(f"{', '.join(given)}: not {where}; leave it out")


@contextmanager
def _folders(arguments: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """Those of label maps and logits; both appear when all is done."""
    with ExitStack() as folders:
        output = folders.enter_context(atomic_directory(arguments.output))
        yield output, folders.enter_context(atomic_directory(arguments.logits)) if arguments.logits else None


def _predict(
    predictor: CasePredictor, items: list, arguments: argparse.Namespace, output: Path, logits: Path | None
) -> None:
    from megavoxel.forecast.whole_image import WholeImages

    plan, whole_images = predictor.plan, WholeImages.of(predictor)
    with progress("predict", len(items)) as shown:
        for read in items:
            with tempfile.TemporaryDirectory(prefix=".case-", dir=output) as scratch:
                image, properties = read(Path(scratch))
                image = _with_first_stage(image, properties, plan, arguments)
                whole_images.check(properties.case, image.shape[1:])
                predictor.write(image, properties, output, logits)
            shown.advance(line=properties.case)


def _study_cases(arguments: argparse.Namespace) -> list:
    if not (arguments.preprocessed and arguments.splits and arguments.split):
        raise UserError("give either --input, or --preprocessed, --splits and --split")
    names = cases_of(load_splits(arguments.splits), arguments.split, arguments.fold)
    return [partial(_read_stored, arguments.preprocessed, name) for name in names]


def _images(plan: Plan, arguments: argparse.Namespace) -> list:
    files = list(_files(arguments.input))
    names = [case_name(path) for path in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--input: two images are called {twice[0]}; predict them into different folders")
    return [partial(_read_file, path, plan, arguments.modality, arguments.large_voxels) for path in files]


def _read_stored(folder: Path, name: str, _scratch: Path) -> tuple[Any, Any]:
    """A preprocessed case: its image, not read yet, and its properties."""
    from megavoxel.preprocessing.store import open_case

    case = open_case(folder, name)
    return case.image, case.properties


def _read_file(
    path: Path, plan: Plan, modality: str | None, large_voxels: int | None, scratch: Path
) -> tuple[Any, Any]:
    """An image file, preprocessed in memory or, where it is large, to an array in `scratch`, and its properties."""
    from megavoxel.preprocessing.case import preprocess_image, preprocess_large_image
    from megavoxel.preprocessing.large import is_large
    from megavoxel.volumes.nifti import read_image
    from megavoxel.volumes.slabs import LARGE_VOXELS

    name = case_name(path)
    if is_large([path], LARGE_VOXELS if large_voxels is None else large_voxels):
        preprocess_large_image([path], plan.preprocessing, name, modality, scratch, plan.patch)
        return _read_stored(scratch, name, scratch)
    image, geometry = read_image(path)
    return preprocess_image(image, geometry, plan.preprocessing, name, modality)


def _with_first_stage(image: Any, properties: Any, plan: Plan, arguments: argparse.Namespace) -> Any:
    """What the network is given of a case: in the second stage of a cascade, its first stage's labels as well."""
    from megavoxel.inference.first_stage import ImageWithFirstStage, with_first_stage
    from megavoxel.preprocessing.first_stage import first_stage_classes

    if not (plan.stage1 and arguments.input):
        return with_first_stage(plan, image, properties, arguments.stage1)
    paths = [folder / f"{properties.case}.nii.gz" for folder in arguments.stage1_labels]
    labels = first_stage_classes(paths, properties, plan)
    return ImageWithFirstStage(image=image, first_stage=labels, classes=plan.network.classes)


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        found = sorted(file for file in path.iterdir() if _is_image(file)) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise UserError(f"--input {path}: no such image, or a folder without .nii.gz or .nii files")
        yield from found


def _is_image(path: Path) -> bool:
    return path.name.endswith((".nii.gz", ".nii")) and not path.name.startswith(".")


def case_name(path: Path) -> str:
    """The file's name without .nii.gz or .nii."""
    return path.name.removesuffix(".gz").removesuffix(".nii")
