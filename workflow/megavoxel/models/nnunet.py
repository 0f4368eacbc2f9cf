"""A trained folder of nnU-Net v2 as a model of ours, which predicts what nnU-Net's own predictor does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel
import torch

from megavoxel import __version__
from megavoxel.config.setting import ALL
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, file_sha256, write_text
from megavoxel.models.description import DatasetFacts, FoldFacts, ModelDescription, model_card, save_description
from megavoxel.models.directory import CARD, DESCRIPTION, PLAN, USAGE
from megavoxel.models.nnunet_plans import PLANS, READER_OF_RAS, Trained, plan_of, read_trained
from megavoxel.models.prepare import check_orientation_code
from megavoxel.network.donors import Donor, plain_name, read_donor
from megavoxel.network.segmentation import SegmentationNetwork, parameter_count
from megavoxel.network.tensor_files import save_tensors
from megavoxel.planning.plan import Plan, save_plan
from megavoxel.volumes.open import open_volume

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be imported."""

    folder: Path
    folds: tuple[str, ...] = ()
    """Which; empty: the numbered ones that are there, else the one of all cases."""
    checkpoint: str = "checkpoint_final.pth"
    orientation: str | None = None
    """Where the axes i, j, k of the training images run; None: as in the validation cases of the folds."""
    precision: Precision = "float16"
    authors: str = ""


def import_model(request: Request, target: Path) -> ModelDescription:
    """Writes the directory of a model, whole or not at all.

    Raises:
        UserError: the folder is none of nnU-Net, has something that is not imported, weights that are not those of its
            plans, or folds that do not fit together; or there is content at `target`.
    """
    trained = read_trained(request.folder)
    donors = {fold: read_donor(path) for fold, path in _checkpoints(request).items()}
    orientation = _orientation(trained, request)
    axes, turned = frame_of(orientation)
    plan = plan_of(
        trained, axes=axes, turned=turned, mirrored=_mirrored(donors), epochs=_epochs(next(iter(donors.values())))
    )
    with torch.device("meta"):
        network = SegmentationNetwork(plan.network)
    description = _description(request, trained, plan, donors, parameters=parameter_count(network))
    with atomic_directory(target) as folder:
        save_plan(folder / PLAN, plan)
        for fold, donor in donors.items():
            weights = exact_weights(network, donor)
            content = {"weights": weights, "plan_hash": plan.hash, "precision": request.precision}
            save_tensors(folder / f"fold-{fold}.pt", content)
        sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        save_description(folder / DESCRIPTION, replace(description, sha256=sums))
        write_text(folder / CARD, model_card(description, plan, USAGE))
    return description


def exact_weights(network: SegmentationNetwork, donor: Donor) -> dict[str, torch.Tensor]:
    """A network's weights, all of which a checkpoint must have, and no others but the heads that we do not make.

    Raises:
        UserError: it is a checkpoint of another network.
    """
    own = {name: plain_name(name) for name in network.state_dict()}
    shapes = {own[name]: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in donor.weights.items()}
    wrong = [name for name in shapes if found.get(name) != shapes[name]]
    wrong += [name for name in found if name not in shapes and not name.startswith("head")]
    if wrong or donor.unknown or donor.origin != "nnU-Net":
        name = [*wrong, *donor.unknown, "network_weights"][0]
        raise UserError(
            f"{donor.path}: not a network as its plans.json describes it: {name} has the shape {found.get(name)}, "
            f"expected {shapes.get(name)}; such networks are not imported"
        )
    return {name: donor.weights[plain].float().contiguous() for name, plain in own.items()}


def frame_of(orientation: str) -> tuple[str, tuple[int, ...]]:
    """Axes of images that nnU-Net reads as they lie in files.

    Args:
        orientation: where the axes i, j, k of the files run, such as RAS.

    Returns:
        where x, y and z run in them, such as RAS; and for each axis of its arrays, which are (k, j, i), our canonical
        axis, of which 0 is z.
    """
    pairs = ("LR", "AP", "IS")
    of_world = [next(letter for letter in orientation if letter in pair) for pair in pairs]
    turned = tuple(2 - next(n for n, pair in enumerate(pairs) if letter in pair) for letter in orientation[::-1])
    return "".join(of_world), turned


def _checkpoints(request: Request) -> dict[str, Path]:
    """The checkpoint of each fold."""
    found = request.folder.glob(f"fold_*/{request.checkpoint}")
    there = {path.parent.name.removeprefix("fold_"): path for path in found}
    numbered = sorted((fold for fold in there if fold.isdecimal()), key=int)
    folds = request.folds or tuple(numbered) or tuple(there)
    for fold in folds:
        if fold not in there:
            raise UserError(
                f"{request.folder}/fold_{fold}/{request.checkpoint}: there is no such file; trained folds are: "
                f"{', '.join(sorted(there)) or 'none'}"
            )
        if not (fold.isdecimal() or fold == ALL):
            raise UserError(f"{request.folder}/fold_{fold}: expected a number or 'all' behind fold_; name --folds")
    if not folds:
        raise UserError(
            f"{request.folder}: there is no fold_*/{request.checkpoint} in it; name a folder "
            "TRAINER__PLANS__CONFIGURATION below nnUNet_results, or another --checkpoint"
        )
    return {fold: there[fold] for fold in dict.fromkeys(folds)}


def _orientation(trained: Trained, request: Request) -> str:
    """Where the axes i, j, k of the training images run, as far as the network is concerned."""
    if trained.reader == READER_OF_RAS:
        return "RAS"
    if request.orientation is not None:
        return check_orientation_code(request.orientation, option="--orientation")
    maps = sorted(trained.folder.glob(f"fold_*/validation/*{trained.ending}"))
    found = {"".join(nibabel.aff2axcodes(open_volume(path).geometry.affine)) for path in maps}
    if len(found) == 1:
        return found.pop()
    seen = (
        f"they run to {' and '.join(sorted(found))} in the cases of fold_*/validation"
        if found
        else ("there are no label maps in fold_*/validation that say it")
    )
    raise UserError(
        f"{trained.folder}: nnU-Net takes images as they lie in their files, and the model has to know where the axes "
        f"i, j, k of the training images run: {seen}; give --orientation, such as RAS or LPS"
    )


def _mirrored(donors: Mapping[str, Donor]) -> tuple[int, ...]:
    """Axes over which nnU-Net averages mirrored predictions."""
    found = {}
    for donor in donors.values():
        axes = donor.facts.get("inference_allowed_mirroring_axes")
        if not (axes is None or (isinstance(axes, list | tuple) and all(axis in (0, 1, 2) for axis in axes))):
            raise UserError(f"{donor.path}: inference_allowed_mirroring_axes is {axes}; expected some of 0, 1 and 2")
        found[tuple(sorted(axes or ()))] = donor.path
    if len(found) > 1:
        first, second, *_ = found
        raise UserError(
            f"{found[second]}: it mirrors the axes {list(second)}, {found[first]} mirrors {list(first)}; import folds "
            "of one trainer"
        )
    return next(iter(found))


def _epochs(donor: Donor) -> int:
    epochs = donor.facts.get("current_epoch")
    return epochs if isinstance(epochs, int) and epochs > 0 else 0


def _description(
    request: Request, trained: Trained, plan: Plan, donors: Mapping[str, Donor], *, parameters: int
) -> ModelDescription:
    dataset, trainer = trained.dataset, next(iter(donors.values())).facts.get("trainer_name", "a trainer")
    texts = {
        key: value for key in ("description", "licence", "reference") if isinstance(value := dataset.get(key), str)
    }
    return ModelDescription(
        name=f"{plan.dataset}-{plan.setting}",
        study=plan.study,
        setting=plan.setting,
        channels=plan.preprocessing.channels,
        labels=plan.preprocessing.labels,
        regions=plan.preprocessing.regions,
        dataset=DatasetFacts(name=plan.dataset, **texts),
        folds=tuple(_fold_facts(request, trained, fold, donor, parameters) for fold, donor in donors.items()),
        authors=request.authors,
        origin=f"nnU-Net v2 ({trainer}, {trained.plans.get('plans_name', PLANS)}, {plan.setting})",
        sha256={},
    )


def _fold_facts(request: Request, trained: Trained, fold: str, donor: Donor, parameters: int) -> FoldFacts:
    cases = trained.dataset.get("numTraining")
    cases = cases if isinstance(cases, int) else 0
    maps = trained.folder.glob(f"fold_{fold}/validation/*{trained.ending}")
    validated = 0 if fold == ALL else len(list(maps))
    return FoldFacts(
        fold=ALL if fold == ALL else int(fold),
        weights=f"fold-{fold}.pt",
        training_cases=max(0, cases - validated),
        validation_cases=validated,
        epochs=_epochs(donor),
        hours=None,
        seed=None,
        precision=request.precision,
        parameters=parameters,
        data_sha256=None,
        hardware="not stated",
        version=__version__,
        commit=None,
        versions={},
    )
