"""Label maps of a study's preprocessed cases."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megavoxel.config.records import to_plain
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, scratch_directory, write_json
from megavoxel.forecast.prediction import WholeImages, explained_predictor
from megavoxel.inference.confidence import confidence_of
from megavoxel.inference.finished import CONFIDENCE, LOGITS, MAPS, Finished
from megavoxel.inference.logits import Logits, write_label_map
from megavoxel.inference.overlap import overlapped, read_whole
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.first_stage import with_first_stage
from megavoxel.planning.plan import Plan, load_plan, require_first_stage
from megavoxel.planning.splits import cases_of, load_splits
from megavoxel.preprocessing.store import StoredCase, open_case
from megavoxel.progress import progress
from megavoxel.training.annotation import unannotated_classes


def predict(arguments: argparse.Namespace) -> None:
    """Predicts preprocessed cases of a split; the folders of label maps, and of what else is made, appear at the end.

    Raises:
        UserError: it is not said which cases, weights are of another plan, or memory ran out.
    """
    plan = load_plan(arguments.plan)
    require_first_stage(plan, arguments.stage1, option="--stage1")
    if not (arguments.preprocessed and arguments.splits and arguments.split):
        raise UserError("give either --input, or --preprocessed, --splits and --split")
    if not 0 <= arguments.part < arguments.parts:
        raise UserError(
            f"--part {arguments.part}: with --parts {arguments.parts} it must be 0 to {arguments.parts - 1}"
        )
    names = cases_of(load_splits(arguments.splits), arguments.split, arguments.fold)[arguments.part :: arguments.parts]
    kept = Finished.of(plan, arguments)
    try:
        _predict_all(plan, names, arguments, kept)
    finally:
        if arguments.resume is None:
            kept.forget(names, linked=False)


def _predict_all(plan: Plan, names: Sequence[str], arguments: argparse.Namespace, kept: Finished) -> None:
    missing = [name for name in names if not kept.has(name)]
    if not names:
        print("no cases to predict", flush=True)
    elif len(missing) < len(names):
        print(f"{len(names) - len(missing)} of {len(names)} cases are there already", flush=True)
    if missing:
        with explained_predictor(plan, arguments.weights, "predict", arguments) as predictor:
            if predictor is None:
                return
            _predict_cases(predictor, missing, arguments, kept)
    with _folders(arguments, kept.products) as folders:
        for name in names:
            kept.hand_over(name, folders)
    kept.forget(names, linked=arguments.keep)


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    """A case on its way from the networks to its files."""

    case: StoredCase
    logits: Logits
    folder: Path
    """For what is not to stay; with the logits, where these are to."""


def _predict_cases(
    predictor: CasePredictor, names: Sequence[str], arguments: argparse.Namespace, kept: Finished
) -> None:
    whole_images, plan = WholeImages.of(predictor), predictor.plan
    disagreement = CONFIDENCE in kept.products and len(predictor.networks) > 1

    def read(name: str) -> tuple[StoredCase, Any]:
        case = replace(
            open_case(arguments.preprocessed, name),
            unannotated=unannotated_classes(plan, name),
            ignored=plan.preprocessing.ignored_class,
        )
        return case, read_whole(with_first_stage(plan, case.image, case.properties, arguments.stage1))

    def predict_one(read: tuple[StoredCase, Any]) -> _Predicted:
        case, image = read
        whole_images.check(case.properties.case, image.shape[1:])
        folder = Path(tempfile.mkdtemp(dir=scratch))
        stays = folder / LOGITS if LOGITS in kept.products else None
        logits = predictor.logits(image, case.properties, stays, folder, disagreement=disagreement)
        return _Predicted(case=case, logits=logits, folder=folder)

    def write(predicted: _Predicted) -> str:
        logits, name = predicted.logits, predicted.case.properties.case
        with kept.adding(name) as folders:
            write_label_map(folders[MAPS], logits.header, logits.slabs())
            if CONFIDENCE in folders:
                confidence = confidence_of(logits, predicted.case)
                write_json(folders[CONFIDENCE] / f"{name}.json", to_plain(confidence))
            if LOGITS in folders:
                for path in list((predicted.folder / LOGITS).iterdir()):
                    os.replace(path, folders[LOGITS] / path.name)
        shutil.rmtree(predicted.folder, ignore_errors=True)
        return name

    kept.folder.mkdir(parents=True, exist_ok=True)
    with scratch_directory(kept.folder) as scratch, progress("predict", len(names)) as shown:
        for name in overlapped(names, read, predict_one, write):
            shown.advance(line=name)


@contextmanager
def _folders(arguments: argparse.Namespace, products: Sequence[str]) -> Iterator[dict[str, Path]]:
    """The folders of all cases by product; they appear when all is done."""
    with ExitStack() as folders:
        targets = {name: arguments.output if name == MAPS else getattr(arguments, name) for name in products}
        yield {name: folders.enter_context(atomic_directory(target)) for name, target in targets.items()}
