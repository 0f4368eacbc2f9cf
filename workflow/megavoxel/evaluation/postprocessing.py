"""Post-processing: keep the largest component, where cross-validation says that it helps.

The rule is that of nnU-Net (Isensee et al. 2021, Nature Methods 18:203, "Postprocessing"): first for the foreground
as a whole, then label by label, or region by region. Components are connected by faces, edges and corners (26
neighbours).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from megavoxel.config.records import from_plain, to_plain
from megavoxel.errors import UserError, expect
from megavoxel.evaluation.compared import Values, dice_per_label, mask_of
from megavoxel.evaluation.pairs import Pair, read_pair
from megavoxel.files import read_json, write_json
from megavoxel.parallel import map_cases
from megavoxel.volumes.masks import labelled_components
from megavoxel.volumes.open import read_labels
from megavoxel.volumes.write import write_labels

CONNECTIVITIES = (6, 18, 26)
CONNECTIVITY = 26


@dataclass(frozen=True, kw_only=True)
class KeepLargest:
    """The parts of a label map of which only the largest component is kept."""

    foreground: bool = False
    """Whether this is done for all labels together, before single labels."""
    labels: tuple[str, ...] = ()
    """Labels for which it is done, each on its own."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One step that was tried."""

    step: str
    """`foreground` or `label`."""
    label: str | None = None
    """The label of a `label` step."""
    before: float | None
    """Mean DSC without the step: over cases, then (for `foreground`) over labels; None where there is none."""
    after: float | None
    """Mean DSC with the step."""
    kept: bool
    """Whether the step is part of the post-processing."""


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """`postprocessing.json`."""

    keep_largest: KeepLargest = field(default_factory=KeepLargest)
    evidence: tuple[Evidence, ...] = ()
    """The steps that were tried, in order."""
    cases: int = 0
    """Cross-validation cases that decided."""
    connectivity: int = CONNECTIVITY
    """Neighbours of a voxel: 6 (faces), 18 (and edges) or 26 (and corners)."""
    reason: str = ""
    """Why nothing was tried, if so."""

    @property
    def changes_anything(self) -> bool:
        """Whether applying it can change a label map."""
        return self.keep_largest.foreground or bool(self.keep_largest.labels)


def save_postprocessing(path: Path, postprocessing: Postprocessing) -> None:
    """Writes `postprocessing.json`."""
    write_json(path, to_plain(postprocessing))


def load_postprocessing(path: Path) -> Postprocessing:
    """Reads `postprocessing.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel postprocess --determine` writes.
    """
    values = read_json(path, what="post-processing")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected what 'megavoxel postprocess --determine' writes; run it again")
    found = from_plain(Postprocessing, values, where=str(path))
    expect(found.connectivity in CONNECTIVITIES, f"{path}: connectivity", "6, 18 or 26")
    return found


def apply_postprocessing(
    labels: np.ndarray, postprocessing: Postprocessing, label_values: Mapping[str, Values]
) -> np.ndarray:
    """A post-processed copy of a label map; voxels that are not kept become background (0).

    Args:
        labels: integers, three axes.
        label_values: value of each label by name, or values of each region.

    Raises:
        UserError: the post-processing names a label that `label_values` lacks.
    """
    result = labels.copy()
    if postprocessing.keep_largest.foreground:
        keep_largest_foreground(result, postprocessing.connectivity)
    for name in postprocessing.keep_largest.labels:
        if name not in label_values:
            known = ", ".join(label_values)
            raise UserError(f"the post-processing names the label '{name}', which this dataset lacks; it has: {known}")
        keep_largest_label(result, label_values[name], postprocessing.connectivity)
    return result


def keep_largest_foreground(labels: np.ndarray, connectivity: int = CONNECTIVITY) -> None:
    """Sets all of a label map to 0, in place, but for the largest component of what is not 0."""
    labels[~largest_component(labels != 0, connectivity)] = 0


def keep_largest_label(labels: np.ndarray, values: Values, connectivity: int = CONNECTIVITY) -> None:
    """Sets the voxels of a label or region to 0, in place, but for their largest component."""
    mask = mask_of(labels, values)
    labels[mask & ~largest_component(mask, connectivity)] = 0


def largest_component(mask: np.ndarray, connectivity: int = CONNECTIVITY) -> np.ndarray:
    """The component of a mask with most voxels, the first in array order of several; empty for an empty mask."""
    kept = np.zeros_like(mask)
    boxes: Sequence = find_objects(mask.astype(np.uint8, copy=False))
    if boxes:
        components = labelled_components(mask[boxes[0]], connectivity)
        sizes = np.bincount(components.reshape(-1))
        sizes[0] = 0
        kept[boxes[0]] = components == sizes.argmax()
    return kept


def postprocess_file(
    paths: tuple[Path, Path], *, postprocessing: Postprocessing, label_values: Mapping[str, Values]
) -> None:
    """Reads the label map `paths[0]` and writes it post-processed, on the same grid, to `paths[1]`.

    Raises:
        UserError: the file cannot be read, or as `apply_postprocessing` does.
    """
    labels, geometry = read_labels(paths[0])
    write_labels(paths[1], apply_postprocessing(labels, postprocessing, label_values), geometry)


def determine_postprocessing(
    pairs: Sequence[Pair], label_values: Mapping[str, Values], *, processes: int = 1
) -> Postprocessing:
    """Tries to keep the largest component of the foreground, then of each label, as nnU-Net does.

    The foreground step is kept if the mean DSC over cases and labels rises strictly and no label's mean falls; the
    step of a label if the mean DSC of that label rises strictly. Means over cases leave out NaN (both maps empty) and
    the labels that a pair skips.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its reference.
    """
    trial = map_cases(
        partial(_try_foreground, label_values=label_values),
        pairs,
        processes=processes,
        title="keeping the largest foreground",
    )
    foreground = _judge_foreground(*_means(trial))
    kept: tuple[str, ...] = ()
    steps: list[Evidence] = []
    for names in _tried_together(label_values):
        done = KeepLargest(foreground=foreground.kept, labels=kept)
        trial = map_cases(
            partial(_try_labels, label_values=label_values, done=done, added=names),
            pairs,
            processes=processes,
            title="keeping the largest of each label",
        )
        found = [
            Evidence(step="label", label=name, before=_number(before), after=_number(after), kept=bool(after > before))
            for name, before, after in zip(label_values, *_means(trial), strict=True)
            if name in names
        ]
        steps += found
        kept += tuple(step.label for step in found if step.kept)
    return Postprocessing(
        keep_largest=KeepLargest(foreground=foreground.kept, labels=kept),
        evidence=(foreground, *steps),
        cases=len(pairs),
    )


def _tried_together(label_values: Mapping[str, Values]) -> list[tuple[str, ...]]:
    """Labels, of which none changes another, at once; regions one after the other, as in nnU-Net, each on top of those
    that are kept."""
    if any(isinstance(values, tuple) and len(values) > 1 for values in label_values.values()):
        return [(name,) for name in label_values]
    return [tuple(label_values)]


def disabled_postprocessing(reason: str) -> Postprocessing:
    """One that keeps everything, and says why."""
    return replace(Postprocessing(), reason=reason)


def _judge_foreground(before: np.ndarray, after: np.ndarray) -> Evidence:
    mean_before, mean_after = _nan_mean(before, axis=0), _nan_mean(after, axis=0)
    kept = bool(mean_after > mean_before) and not bool((after < before).any())
    return Evidence(step="foreground", before=_number(mean_before), after=_number(mean_after), kept=kept)


def _try_foreground(pair: Pair, label_values: Mapping[str, Values]) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference, _ = read_pair(pair)
    before = _dice(pair, prediction, reference, label_values)
    prediction = prediction.copy()
    keep_largest_foreground(prediction)
    return before, _dice(pair, prediction, reference, label_values)


def _try_labels(
    pair: Pair, label_values: Mapping[str, Values], done: KeepLargest, added: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference, _ = read_pair(pair)
    prediction = apply_postprocessing(prediction, Postprocessing(keep_largest=done), label_values)
    before = _dice(pair, prediction, reference, label_values)
    for name in added:
        keep_largest_label(prediction, label_values[name])
    return before, _dice(pair, prediction, reference, label_values)


def _dice(pair: Pair, prediction: np.ndarray, reference: np.ndarray, label_values: Mapping[str, Values]) -> np.ndarray:
    """DSC per label, NaN for those that the pair skips."""
    dice = dice_per_label(*pair.annotated(prediction, reference), list(label_values.values()))
    return np.where([label in pair.skipped for label in label_values], np.nan, dice)


def _means(trial: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean DSC per label over cases, before and after."""
    before, after = (np.array(part) for part in zip(*trial, strict=True))
    return _nan_mean(before, axis=0), _nan_mean(after, axis=0)


def _nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
