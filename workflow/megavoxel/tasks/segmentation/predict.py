"""Label maps of a study's preprocessed cases."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, scratch_directory
from megavoxel.forecast.prediction import WholeImages, explained_predictor
from megavoxel.inference.finished import Finished
from megavoxel.inference.logits import Logits, write_label_map
from megavoxel.inference.overlap import overlapped, read_whole
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.first_stage import with_first_stage
from megavoxel.planning.plan import Plan, load_plan, require_first_stage
from megavoxel.planning.splits import cases_of, load_splits
from megavoxel.preprocessing.store import CaseProperties, open_case
from megavoxel.progress import progress


def predict(arguments: argparse.Namespace) -> None:
    """Predicts preprocessed cases of a split; the folders of label maps and of logits appear when all are done.

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
    with _folders(arguments) as (output, logits):
        for name in names:
            kept.hand_over(name, output, logits)
    kept.forget(names, linked=arguments.keep)


def _predict_cases(
    predictor: CasePredictor, names: Sequence[str], arguments: argparse.Namespace, kept: Finished
) -> None:
    whole_images = WholeImages.of(predictor)

    def read(name: str) -> tuple[CaseProperties, Any]:
        case = open_case(arguments.preprocessed, name)
        image = with_first_stage(predictor.plan, case.image, case.properties, arguments.stage1)
        return case.properties, read_whole(image)

    def predict_one(read: tuple[CaseProperties, Any]) -> tuple[Path, Logits]:
        properties, image = read
        whole_images.check(properties.case, image.shape[1:])
        folder = Path(tempfile.mkdtemp(dir=scratch))
        return folder, predictor.logits(image, properties, folder if arguments.logits else None, folder)

    def write(predicted: tuple[Path, Logits]) -> str:
        folder, logits = predicted
        case = logits.header.properties.case
        with kept.adding(case) as (output, kept_logits):
            write_label_map(output, logits.header, logits.slabs())
            for path in list(folder.iterdir()) if kept_logits else ():
                os.replace(path, kept_logits / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        return case

    kept.folder.mkdir(parents=True, exist_ok=True)
    with scratch_directory(kept.folder) as scratch, progress("predict", len(names)) as shown:
        for name in overlapped(names, read, predict_one, write):
            shown.advance(line=name)


@contextmanager
def _folders(arguments: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """The folders of label maps and logits; both appear when all is done."""
    with ExitStack() as folders:
        output = folders.enter_context(atomic_directory(arguments.output))
        yield output, folders.enter_context(atomic_directory(arguments.logits)) if arguments.logits else None
