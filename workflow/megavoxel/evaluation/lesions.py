"""`lesions.csv`: a line for each connected component of a label, such as a lesion, with its size and its match."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from megavoxel.csv_files import write_csv
from megavoxel.errors import UserError
from megavoxel.evaluation.compared import Compared
from megavoxel.evaluation.tidy import read_text

COLUMNS = ["setting", "split", "fold", "case", "label", "map", "component", "voxels", "volume_ml", "same_as", "iou"]
Lesion = tuple[str, str, str, int, int, float, int | None, float | None]
"""Case, label, `reference` or `prediction`, number of the component from 1, voxels, volume in ml, the component of the
other map that is the same, and their intersection over union; None where there is no such component."""


def lesions_of(case: str, name: str, label: Compared) -> list[Lesion]:
    """The components of a label in the reference, then those in the prediction; none where neither map has it."""
    if not (label.predicted or label.referred):
        return []
    found = label.components
    back = {own: (other, iou) for other, (own, iou) in found.same.items()}
    lesions: list[Lesion] = []
    for which, sizes, same in (("reference", found.referred, found.same), ("prediction", found.predicted, back)):
        for number, voxels in enumerate(map(int, sizes)):
            other, iou = same.get(number, (None, None))
            number_of_other = None if other is None else other + 1
            lesions.append((case, name, which, number + 1, voxels, voxels * label.voxel_ml, number_of_other, iou))
    return lesions


def write_lesions(path: Path, lesions: Iterable[Lesion], *, setting: str, split: str, fold: str) -> None:
    """Writes the components of a part of a study, in their order; whole or not at all."""
    table = pd.DataFrame([(setting, split, fold, *lesion) for lesion in lesions], columns=COLUMNS)
    write_csv(path, table.astype({"same_as": "Int64"}))


def read_lesions(path: Path) -> pd.DataFrame:
    """Reads a table of lesions; `volume_ml` is float64, all other columns are text.

    Raises:
        UserError: the file is missing, has other columns, or a volume that is not a number.
    """
    table = read_text(
        path,
        COLUMNS,
        missing="no such table of lesions; run 'megavoxel evaluate' with --lesions",
        unreadable="cannot be read as CSV ({fault}); run 'megavoxel evaluate' again",
    )
    volumes = pd.to_numeric(table["volume_ml"], errors="coerce")
    if volumes.isna().any():
        line = int(volumes.isna().to_numpy().argmax())
        raise UserError(f"{path}: line {line + 2}: '{table['volume_ml'][line]}' is not a number")
    return table.assign(volume_ml=volumes.astype(float))
