"""Predictions and the label maps that they are held against, as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megavoxel.datasets.check import compare_grids
from megavoxel.errors import UserError
from megavoxel.parallel import map_cases
from megavoxel.volumes.nifti import Geometry, read_labels

SUFFIX = ".nii.gz"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prediction and the label map that it is held against."""

    case: str
    """Name of the case, for the table and for errors."""
    prediction: Path
    """Label map in NIfTI."""
    reference: Path
    """Label map in NIfTI, on the same grid."""
    skipped: tuple[str, ...] = ()
    """Names of the labels that are not scored, because the reference has no annotation of them."""


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Prediction and reference (z, y, x) in canonical order, and the reference's grid.

    Raises:
        UserError: a file cannot be read, or the grids differ.
    """
    prediction, predicted = read_labels(pair.prediction)
    reference, geometry = read_labels(pair.reference)
    check_same_grid(pair, predicted, geometry)
    return prediction, reference, geometry


def check_same_grid(pair: Pair, predicted: Geometry, reference: Geometry) -> None:
    """Refuses a prediction on another grid than its reference, within the tolerances of `megavoxel check`.

    Raises:
        UserError: names the case and what differs.
    """
    differences = compare_grids(reference, predicted)
    if differences:
        check, message = differences[0]
        raise UserError(
            f"case {pair.case}: {pair.reference} and {pair.prediction} lie on different grids ({check}): {message}; "
            "a prediction must be on the grid of its reference: resample it there"
        )


def match_folders(predictions: Path, references: Path, *, allow_extra: bool) -> list[Pair]:
    """Pairs of two folders by file name, in order of their names.

    Raises:
        UserError: a folder is missing, `references` is empty, a prediction is missing, or there is one too many.
    """
    names = case_names(references)
    if not names:
        raise UserError(f"{references}: there are no *{SUFFIX} files to score against")
    check_complete(predictions, names, known=names, allow_extra=allow_extra)
    return [
        Pair(case=name, prediction=predictions / f"{name}{SUFFIX}", reference=references / f"{name}{SUFFIX}")
        for name in names
    ]


def check_complete(predictions: Path, needed: Iterable[str], *, known: Iterable[str], allow_extra: bool) -> None:
    """Refuses a folder of predictions that lacks a case of `needed`, or holds a case that is not in `known`.

    Raises:
        UserError: names all such cases.
    """
    present = set(case_names(predictions))
    missing, extra = sorted(set(needed) - present), sorted(present - set(known))
    if missing:
        raise UserError(
            f"{predictions}: predictions are missing for {len(missing)} of the cases to score: {', '.join(missing)}; "
            "predict them first, a mean over the rest would be another quantity"
        )
    if extra and not allow_extra:
        raise UserError(
            f"{predictions}: predictions of {len(extra)} cases that are not to be scored: {', '.join(extra)}; "
            "remove them, or pass --allow-extra"
        )


def case_names(folder: Path) -> list[str]:
    """Names of the .nii.gz files of a folder without their suffix, sorted; hidden files are left out.

    Raises:
        UserError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder")
    files = (file.name for file in Path(folder).glob(f"*{SUFFIX}"))
    return sorted(name.removesuffix(SUFFIX) for name in files if not name.startswith("."))


def label_values(paths: Sequence[Path], *, processes: int = 1) -> list[int]:
    """All values but 0 that the label maps hold, in ascending order.

    Raises:
        UserError: a file cannot be read.
    """
    found = map_cases(_values, paths, processes=processes, title="reading labels")
    return sorted(set().union(*found) - {0})


def _values(path: Path) -> set[int]:
    return {int(value) for value in np.unique(read_labels(path)[0])}
