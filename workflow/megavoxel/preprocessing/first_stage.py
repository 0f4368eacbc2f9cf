"""A first stage's label maps on the grid of the second stage of a cascade.

Per case, in a folder of their own: `CASE.stage1.b2nd`, uint8 classes (branches, network grid), one branch per
first-stage setting, in the order of the plan's `stage1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.errors import UserError
from megavoxel.parallel import map_cases
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.case import preprocess_labels
from megavoxel.preprocessing.checksums import require_as_written, write_checksums
from megavoxel.preprocessing.store import CaseProperties, open_array, open_case, save_array
from megavoxel.volumes.grid import compare_grids
from megavoxel.volumes.open import open_volume
from megavoxel.volumes.volume import Hints, Volume

MOST_LABELS = 255
"""What uint8 holds beside the background."""


def first_stage_classes(
    paths: Sequence[Path],
    properties: CaseProperties,
    plan: Plan,
    hints: Hints = Hints(),  # noqa: B008
) -> np.ndarray:
    """Reads a case's first-stage label maps and brings them to the grid that its image has for the second stage.

    Args:
        paths: one label map per branch, on the grid of the case's image file, in the order of the plan's `stage1`.
        plan: of the second stage.
        hints: what the user said of the image file, which holds for its label maps as well.

    Returns:
        uint8 (branches, network grid), as `preprocess_labels` makes the classes of a label map.

    Raises:
        UserError: the plan has another number of branches or too many labels, or a label map is missing, damaged, on
            another grid, or holds a value that the plan does not know.
    """
    check_branches(len(paths), plan)
    classes = np.empty((len(paths), *properties.shape), dtype=np.uint8)
    for branch, path in zip(classes, paths, strict=True):
        branch[...] = _branch_classes(open_volume(path, hints), properties, plan)
    return classes


def check_branches(count: int, plan: Plan) -> None:
    """Refuses a number of predictions per case that is not the plan's number of branches.

    Raises:
        UserError: names the branches; or the plan has more labels than uint8 holds.
    """
    if count != len(plan.stage1):
        names = f"{len(plan.stage1)} ({', '.join(plan.stage1)})" if plan.stage1 else "none"
        raise UserError(
            f"setting {plan.setting}: predictions of {count} first-stage settings were given, its plan has {names}; "
            "give those of each first-stage setting, in this order"
        )
    if len(plan.preprocessing.labels) > MOST_LABELS:
        raise UserError(
            f"setting {plan.setting}: {len(plan.preprocessing.labels)} labels; a cascade can have {MOST_LABELS} at "
            "most: leave out 'stage1', or some of the labels"
        )


def store_first_stage(
    names: Sequence[str],
    *,
    plan: Plan,
    preprocessed: Path,
    predictions: Sequence[Path],
    output: Path,
    processes: int = 1,
) -> None:
    """Stores the first-stage classes of several cases as `output/CASE.stage1.b2nd`.

    Args:
        plan: of the second stage.
        preprocessed: its preprocessed cases.
        predictions: a folder of label maps CASE.nii.gz per branch, in the order of the plan's `stage1`.
        output: a folder that exists.
        processes: cases that are worked on at once; the result does not depend on it.

    Raises:
        UserError: as `first_stage_classes`; nothing is computed before all predictions are there.
    """
    check_branches(len(predictions), plan)
    _check_complete(names, plan, predictions)
    work = partial(_store_case, plan=plan, preprocessed=preprocessed, predictions=tuple(predictions), output=output)
    map_cases(work, names, processes=processes, title="stage1")


def open_first_stage(folders: Sequence[Path], case: str, shape: Sequence[int]) -> blosc2.NDArray:
    """Opens the first-stage classes of a case, which lie in exactly one of several folders, without reading them.

    Args:
        folders: outputs of `megavoxel stage1`, such as one per fold.
        shape: what the array must have: branches and the case's network grid.

    Returns:
        uint8 (branches, network grid).

    Raises:
        UserError: the file is in none of the folders, in several, damaged, or of another shape.
    """
    path = first_stage_path(folders, case)
    remedy = "delete its folder and run 'megavoxel stage1' again"
    require_as_written(path.with_suffix(".sha256"), case=case, remedy=remedy)
    array = open_array(path)
    if tuple(array.shape) != tuple(shape):
        raise UserError(
            f"{path}: shape {tuple(array.shape)} (branches and grid), expected {tuple(shape)}; it was made under "
            f"another plan: {remedy}"
        )
    return array


def first_stage_path(folders: Sequence[Path], case: str) -> Path:
    """The file with the first-stage classes of a case.

    Raises:
        UserError: it is in none of the folders, or in several.
    """
    paths = [Path(folder) / _file_name(case) for folder in folders]
    found = [path for path in paths if path.is_file()]
    if len(found) != 1:
        looked = ", ".join(map(str, folders)) or "no folder"
        number = f"{len(found)} of these folders hold" if found else "none of these folders holds"
        remedy = "name each folder once, of folds that share no case" if found else "run 'megavoxel stage1' on its fold"
        raise UserError(f"case {case}: {number} its first-stage labels {_file_name(case)} ({looked}); {remedy}")
    return found[0]


def _branch_classes(volume: Volume, properties: CaseProperties, plan: Plan) -> np.ndarray:
    path, labels = volume.path, volume.labels()
    differences = compare_grids(properties.geometry, volume.geometry)
    if differences:
        check, difference = differences[0]
        raise UserError(
            f"case {properties.case}: {path} does not lie on the grid of the case's image ({check}): {difference}; "
            "a first stage's label map must be on the image's own grid, as 'megavoxel predict' writes it"
        )
    try:
        return preprocess_labels(labels, properties, plan.preprocessing)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_complete(names: Sequence[str], plan: Plan, predictions: Sequence[Path]) -> None:
    for branch, folder in zip(plan.stage1, predictions, strict=True):
        missing = [name for name in names if not _prediction(folder, name).is_file()]
        if missing:
            raise UserError(
                f"case {missing[0]}: there is no {_prediction(folder, missing[0])} ({len(missing)} of {len(names)} "
                f"cases are missing there); run 'megavoxel predict' for setting {branch} first"
            )


def _store_case(name: str, *, plan: Plan, preprocessed: Path, predictions: Sequence[Path], output: Path) -> None:
    properties = open_case(preprocessed, name).properties
    paths = [_prediction(folder, name) for folder in predictions]
    path = output / _file_name(name)
    save_array(path, first_stage_classes(paths, properties, plan), plan.patch)
    write_checksums(path.with_suffix(".sha256"), [path], {})


def _prediction(folder: Path, case: str) -> Path:
    return Path(folder) / f"{case}.nii.gz"


def _file_name(case: str) -> str:
    return f"{case}.stage1.b2nd"
