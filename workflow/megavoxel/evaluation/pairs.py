"""Predictions and the label maps that they are held against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.memory import free_memory
from megavoxel.parallel import map_cases
from megavoxel.planning.splits import Splits
from megavoxel.volumes.checks import require_sound, undeclared_faults, values_in, values_of
from megavoxel.volumes.grid import Geometry, compare_grids
from megavoxel.volumes.no_scans import is_no_scan
from megavoxel.volumes.open import SUFFIXES, is_data_of_header, open_volume, stem_of, suffix_of
from megavoxel.volumes.volume import Volume

SUFFIX = ".nii.gz"
BYTES_OF_VOXEL = 10
"""Memory of a comparison for a voxel at the least: two maps, their labels by position, and one of them as int32."""
ALL_FOLDS = "all"


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
    labels: dict[str, int] | None = None
    """Values that the maps may have besides background, by name; None: any."""
    background: tuple[int, ...] = ()
    """Values besides 0 that count as background."""
    ignored: int | None = None
    """Value of voxels that nobody annotated in the reference; None: there are none."""

    def annotated(self, prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both maps with background where nobody annotated the reference: what lies there counts for nothing."""
        if self.ignored is None:
            return prediction, reference
        kept = reference != self.ignored
        return prediction * kept, reference * kept


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The cases of a split that are scored, and those that are not."""

    pairs: tuple[Pair, ...]
    """The labelled cases."""
    unlabelled: tuple[str, ...]
    """Cases without a label map: predicted, not scored."""


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Prediction and reference (z, y, x) in canonical order, and the reference's grid.

    Raises:
        UserError: a file cannot be read, the grids differ, memory does not hold both maps, or a map has a value that is
            not declared.
    """
    predicted, referred = require_comparable(pair)
    geometry = referred.geometry
    prediction, reference = predicted.labels(), referred.labels()
    ignored = set() if pair.ignored is None else {pair.ignored}
    for path, labels, others in ((pair.prediction, prediction, set()), (pair.reference, reference, ignored)):
        if pair.labels is not None:
            where, background = f"case {pair.case}: {path}", {0, *pair.background, *others}
            faults = undeclared_faults(values_in(labels), where, pair.labels, background)
            require_sound(faults, "mend the label map, or declare the value in the dataset file")
    return prediction, reference, geometry


def require_comparable(pair: Pair) -> tuple[Volume, Volume]:
    """Prediction and reference, opened by their headers alone.

    Raises:
        UserError: a header cannot be read, the grids differ, or memory does not hold both maps.
    """
    predicted, referred = open_volume(pair.prediction), open_volume(pair.reference)
    check_same_grid(pair, predicted.geometry, referred.geometry)
    _require_memory(pair, math.prod(referred.geometry.shape))
    return predicted, referred


def _require_memory(pair: Pair, voxels: int) -> None:
    """Refuses maps that memory does not hold; a file of 2 MB may have 2 000 000 000 voxels."""
    needed, free = BYTES_OF_VOXEL * voxels, free_memory()
    if needed > free:
        raise UserError(
            f"case {pair.case}: comparing two label maps of {voxels} voxels takes {needed / 1e9:.0f} GB of memory or "
            f"more, and {free / 1e9:.0f} GB are free; take a machine with more, or cut both maps to their labels"
        )


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


def match_folders(predictions: Path, references: Path, *, allow_extra: bool, existing: bool = False) -> list[Pair]:
    """Pairs of two folders by file name, in order of their names.

    Args:
        existing: leave out references without a prediction, and say which.

    Raises:
        UserError: a folder is missing, `references` is empty, a prediction is missing, or there is one too many.
    """
    if not allow_extra:
        for folder in (predictions, references):
            _refuse_not_understood(folder)
    wanted = label_maps(references)
    if not wanted:
        raise UserError(f"{references}: there are no *{SUFFIX} files, or label maps in other formats, to score against")
    found = check_complete(predictions, wanted, known=wanted, allow_extra=allow_extra, existing=existing)
    return [
        Pair(case=name, prediction=found[name], reference=reference)
        for name, reference in wanted.items()
        if name in found
    ]


def check_complete(
    predictions: Path, needed: Iterable[str], *, known: Iterable[str], allow_extra: bool, existing: bool = False
) -> dict[str, Path]:
    """The label maps of a folder of predictions, by case.

    A folder that lacks a case of `needed`, or holds a case that is not in `known`, is refused.

    Args:
        existing: say which cases of `needed` are missing in place of refusing the folder, if any are there.

    Raises:
        UserError: names all such cases.
    """
    found = label_maps(predictions)
    present, wanted = set(found), set(needed)
    missing, extra = sorted(wanted - present), sorted(present - set(known))
    if missing and existing and len(missing) < len(wanted):
        print(
            f"{predictions}: {len(missing)} of {len(wanted)} cases have no prediction and are not scored, so means are "
            f"over the other {len(wanted) - len(missing)}; missing: {', '.join(missing)}"
        )
    elif missing:
        raise UserError(
            f"{predictions}: predictions are missing for {len(missing)} of the cases to score: {', '.join(missing)}; "
            "predict them first, since a mean over the rest is another quantity; --existing scores those that are there"
        )
    if extra and not allow_extra:
        raise UserError(
            f"{predictions}: predictions of {len(extra)} cases that are not to be scored: {', '.join(extra)}; "
            "remove them, or pass --allow-extra"
        )
    return found


def _refuse_not_understood(folder: Path) -> None:
    """Refuses files of a folder that are neither label maps nor known to be something else, and links to nothing."""
    entries = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    visible = [path for path in entries if not path.name.startswith(".") and not path.is_dir()]
    others = [path for path in visible if not suffix_of(path.name) and not is_no_scan(path)]
    odd = [path.name for path in others if not is_data_of_header(path)]
    if odd:
        raise UserError(
            f"{folder}: {', '.join(odd)}: neither label maps that can be read nor known to be something else; convert "
            f"them to one of {', '.join(SUFFIXES)}, remove them, or pass --allow-extra"
        )


def label_maps(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by their names without suffix, in order of the names; hidden files are left out.

    Raises:
        UserError: there is no such folder, or two files in it have the same name but for the suffix.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder")
    found: dict[str, Path] = {}
    for path in sorted(path for path in Path(folder).iterdir() if suffix_of(path.name)):
        name = stem_of(path.name)
        if name in found:
            raise UserError(f"{folder}: {found[name].name} and {path.name} are both of the case {name}; remove one")
        if not name.startswith("."):
            found[name] = path
    return dict(sorted(found.items()))


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


def select_pairs(
    cases: Cases, splits: Splits, *, split: str, fold: str, predictions: Path, allow_extra: bool, existing: bool = False
) -> Selection:
    """The labelled cases of a split with their predictions `CASE.nii.gz`; labels that are not annotated are skipped.

    Args:
        split: `validation` or `test`.
        fold: number of a fold, or `all`; validation then means the validation cases of all folds.
        existing: leave out cases without a prediction, and say which.

    Raises:
        UserError: there is no such fold, a prediction is missing, or there is one too many.
    """
    names = split_cases(splits, split=split, fold=fold)
    labelled = [name for name in names if cases.case(name).label is not None]
    options = {"known": names, "allow_extra": allow_extra, "existing": existing}
    found = check_complete(predictions, labelled, **options) if labelled else {}
    pairs = tuple(_pair(cases, name, found[name], cases.case(name).unannotated) for name in labelled if name in found)
    return Selection(pairs=pairs, unlabelled=tuple(name for name in names if name not in set(labelled)))


def split_cases(splits: Splits, *, split: str, fold: str) -> list[str]:
    """Names of the cases of a split, sorted; arguments and errors as in `select_pairs`."""
    if split == "test":
        return sorted(splits.test)
    if fold == ALL_FOLDS:
        return sorted({name for part in splits.folds for name in part.validation})
    if not fold.isdecimal() or int(fold) >= len(splits.folds):
        raise UserError(f"--fold {fold}: there is no such fold; allowed: 0 to {len(splits.folds) - 1}, or {ALL_FOLDS}")
    return sorted(splits.folds[int(fold)].validation)


def predicted_pairs(cases: Cases, folders: list[Path]) -> list[Pair]:
    """All predictions of several folders with their references, in order of the cases' names, to learn from them.

    So hidden labels are skipped as well as those that are not annotated.

    Raises:
        UserError: no predictions, a case in two folders, or one that is unknown or has no label map.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for name in case_names(folder):
            if name in found:
                raise UserError(
                    f"case {name} is in {found[name].parent} and in {folder}; each case is validated in one fold only: "
                    "remove the prediction that does not belong"
                )
            found[name] = folder / f"{name}{SUFFIX}"
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: there are no *{SUFFIX} predictions; run 'megavoxel predict'")
    return [_pair(cases, name, found[name], cases.case(name).unseen) for name in sorted(found)]


def _pair(cases: Cases, name: str, prediction: Path, skipped: tuple[str, ...]) -> Pair:
    case = cases.case(name)
    if case.label is None:
        raise UserError(f"case {name}: {prediction} has no label map to be held against; remove it from the folder")
    return Pair(
        case=name,
        prediction=prediction,
        reference=Path(cases.root) / case.label,
        skipped=skipped,
        labels=cases.labels,
        background=cases.background_values,
        ignored=cases.ignore_value,
    )


def _values(path: Path) -> set[int]:
    return values_of(open_volume(path))
