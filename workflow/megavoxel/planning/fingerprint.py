"""Spacings, shapes and foreground intensities of the training cases of a dataset: `fingerprint.json`.

Large cases are read once, in slabs, into arrays on disk.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.config.fields import Several, Shape, Spacing, refuse
from megavoxel.config.records import read_record, record, rule, to_plain
from megavoxel.datasets.cases import Case, Cases, case_generator, naming_case
from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.parallel import map_cases
from megavoxel.volumes.grid import Geometry, rounded_spacing
from megavoxel.volumes.masks import Box, bounding_box, crop, nonzero_mask
from megavoxel.volumes.slabs import LARGE_VOXELS, Place, slab_places
from megavoxel.volumes.spool import spool_image, spool_labels

MOST_VOXELS = 10_000_000
"""Foreground voxels of the whole dataset that are looked at, in equal shares of the cases."""


@record
class CaseFingerprint:
    """Shape of a case in canonical order (z, y, x)."""

    id: str
    spacing: Spacing
    """mm per axis."""
    shape: Shape
    """Voxels per axis."""
    cropped_shape: Shape
    """Voxels per axis of the box in which any channel differs from 0."""

    @property
    def crop_ratio(self) -> float:
        """Voxels after cropping over voxels before."""
        return math.prod(self.cropped_shape) / math.prod(self.shape)


@record
class Intensities:
    """Foreground of one channel over all cases, each case with the same weight; in units of the image."""

    mean: float
    median: float
    std: float
    minimum: float
    maximum: float
    percentile_0_5: float
    percentile_99_5: float


@record
class Fingerprint:
    """The training cases of a dataset."""

    dataset: str
    channels: Several[str]
    cases: Several[CaseFingerprint]
    """In order of their ids."""
    intensities: tuple[Intensities, ...]
    """One per channel; none where the dataset has modalities."""
    modalities: dict[str, tuple[Intensities, ...]] = field(default_factory=dict)
    """For a dataset with modalities, by modality: one per channel, over the cases of that modality alone."""

    @property
    def median_crop_ratio(self) -> float:
        """Median over the cases of voxels after cropping over voxels before."""
        return float(np.median([case.crop_ratio for case in self.cases]))

    @rule
    def _channels_have_intensities(self) -> None:
        by_modality = self.modalities or {"intensities": self.intensities}
        for name, intensities in by_modality.items():
            if len(intensities) != len(self.channels):
                refuse(f"expected one for each channel ({', '.join(self.channels)})", name)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    shape: CaseFingerprint
    values: tuple[np.ndarray, ...]
    """Per channel, the different intensities of the sampled foreground, ascending."""
    counts: tuple[np.ndarray, ...]
    """Per channel, how often each of them was sampled."""


def measure(cases: Cases, *, processes: int = 1) -> Fingerprint:
    """Reads every training case once.

    Args:
        processes: cases that are read at once; the result does not depend on it.

    Raises:
        UserError: there are no training cases, one cannot be read, none has any foreground, a modality has no training
            case, or a case has no modality where others have one.
    """
    training = cases.of_split("training")
    if not training:
        raise UserError(f"dataset {cases.dataset}: it has no training cases to take a fingerprint of")
    _check_modalities(cases, training)
    work = partial(naming_case, partial(_measure_case, cases=cases, most=MOST_VOXELS // len(training)))
    measured = map_cases(work, training, processes=processes, title="measuring", describe=_describe)
    by_modality = {
        name: [found for case, found in zip(training, measured, strict=True) if case.modality == name]
        for name in cases.modalities
    }
    return Fingerprint(
        dataset=cases.dataset,
        channels=cases.channels,
        cases=tuple(case.shape for case in measured),
        intensities=() if by_modality else _all_channels(cases, measured, "no training case"),
        modalities={
            name: _all_channels(cases, found, f"no training case of modality {name}")
            for name, found in by_modality.items()
        },
    )


def save_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Writes `fingerprint.json`."""
    write_json(path, to_plain(fingerprint))


def load_fingerprint(path: Path) -> Fingerprint:
    """Reads `fingerprint.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel fingerprint` writes.
    """
    return read_record(Fingerprint, path, what="fingerprint")


def _check_modalities(cases: Cases, training: Sequence[Case]) -> None:
    for case in cases.cases if cases.modalities else ():
        if case.modality is None:
            raise UserError(
                f"dataset {cases.dataset}: case {case.id} has no modality, others have {', '.join(cases.modalities)}; "
                "run 'megavoxel check' again"
            )
    missing = sorted(set(cases.modalities) - {case.modality for case in training})
    if missing:
        raise UserError(
            f"dataset {cases.dataset}: no training case has the modality {missing[0]}, so nothing is known of its "
            "intensities; correct 'modalities' of the dataset file, or leave its test cases out"
        )


def _measure_case(case: Case, *, cases: Cases, most: int) -> _Measured:
    shapes = [volume.shape for volume in cases.open_images(case)]
    channels = sum(shape[0] for shape in shapes)
    if channels != len(cases.channels):
        raise UserError(
            f"case {case.id}: the image has {channels} channels, the dataset declares {len(cases.channels)}"
        )
    large = sum(map(math.prod, shapes)) >= LARGE_VOXELS
    foreground = sample_large_case(case, cases, most) if large else _sample_case(case, cases, most)
    found = [np.unique(values, return_counts=True) for values in foreground.intensities]
    return _Measured(
        shape=CaseFingerprint(
            id=case.id,
            spacing=rounded_spacing(foreground.geometry.spacing),
            shape=foreground.geometry.canonical_shape,
            cropped_shape=tuple(stop - start for start, stop in foreground.box),
        ),
        values=tuple(values for values, _ in found),
        counts=tuple(counts for _, counts in found),
    )


def _sample_case(case: Case, cases: Cases, most: int) -> Foreground:
    image, geometry = cases.read_image(case)
    box = bounding_box(nonzero_mask(image))
    labels = crop(cases.read_labels(case), box)
    foreground = np.flatnonzero(labels if cases.ignore_value is None else ~np.isin(labels, [0, cases.ignore_value]))
    if len(foreground) > most:
        foreground = foreground[case_generator(case.id).choice(len(foreground), most, replace=False)]
    values = tuple(crop(channel, box).reshape(-1)[foreground] for channel in image)
    return Foreground(geometry=geometry, box=box, intensities=values)


def _all_channels(cases: Cases, measured: Sequence[_Measured], nobody: str) -> tuple[Intensities, ...]:
    """Statistics of each channel over some cases; `nobody` begins the error where none of them has any foreground."""
    if not any(case.values[0].size for case in measured):
        raise UserError(
            f"dataset {cases.dataset}: {nobody} has any foreground; check the labels that the dataset declares"
        )
    return tuple(_intensities(measured, channel) for channel in range(len(cases.channels)))


def _intensities(measured: Sequence[_Measured], channel: int) -> Intensities:
    """Statistics in which a case with little foreground weighs as much as one with a lot, as in nnU-Net."""
    filled = [case for case in measured if case.values[channel].size]
    values = np.concatenate([case.values[channel] for case in filled]).astype(np.float64)
    weights = np.concatenate([case.counts[channel] / case.counts[channel].sum() for case in filled])
    mean = np.average(values, weights=weights)
    low, median, high = np.quantile(values, [0.005, 0.5, 0.995], weights=weights, method="inverted_cdf")
    return Intensities(
        mean=float(mean),
        median=float(median),
        std=float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
        minimum=float(values.min()),
        maximum=float(values.max()),
        percentile_0_5=float(low),
        percentile_99_5=float(high),
    )


def _describe(case: Case, measured: _Measured) -> str:
    shape = measured.shape
    spacing = " x ".join(f"{size:g}" for size in shape.spacing)
    size = " x ".join(map(str, shape.shape))
    return f"{case.id}: {size} voxels of {spacing} mm, {shape.crop_ratio:.0%} in the nonzero box"


CANONICAL = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """Geometry, nonzero box and sampled intensities of a case."""

    geometry: Geometry
    """The grid of the image's file."""
    box: Box
    """The nonzero box, canonical order."""
    intensities: tuple[np.ndarray, ...]
    """Per channel, float32 intensities of the sampled foreground in the box."""


def sample_large_case(case: Case, cases: Cases, most: int) -> Foreground:
    """Samples the foreground of a case as `fingerprint` does it in memory: the same voxels.

    The arrays lie in the system's folder for temporary files while they are needed.

    Args:
        case: one of `cases`, labelled.
        most: voxels that are looked at.

    Raises:
        UserError: a file cannot be read, or image and label map have different shapes.
    """
    with tempfile.TemporaryDirectory(prefix="megavoxel-") as scratch:
        image = spool_image(cases.open_images(case), CANONICAL, Path(scratch) / "image.b2nd")
        labels = spool_labels(cases.open_labels(case), CANONICAL, Path(scratch) / "labels.b2nd")
        if labels.shape != image.array.shape[1:]:
            raise UserError(f"case {case.id}: image and label map have different shapes; run 'megavoxel check' again")
        chosen = _chosen(labels, image.box, cases.unlabelled_values, case.id, most)
        parts = [[_values(image.array, channel, part) for part in chosen] for channel in range(image.array.shape[0])]
    return Foreground(
        geometry=image.geometry,
        box=image.box,
        intensities=tuple(np.concatenate([np.empty(0, np.float32), *values]) for values in parts),
    )


def _chosen(
    labels: blosc2.NDArray, box: Box, background: Sequence[int], case_id: str, most: int
) -> list[tuple[Place, np.ndarray]]:
    """Parts of the box, each with flat indices into it."""
    count = sum(len(where) for _, where in _foreground(labels, box, background))
    if count <= most:
        return list(_foreground(labels, box, background))
    drawn = np.sort(case_generator(case_id).choice(count, most, replace=False))
    chosen, seen = [], 0
    for place, where in _foreground(labels, box, background):
        low, high = np.searchsorted(drawn, [seen, seen + len(where)])
        chosen.append((place, where[drawn[low:high] - seen]))
        seen += len(where)
    return chosen


def _foreground(labels: blosc2.NDArray, box: Box, background: Sequence[int]) -> Iterator[tuple[Place, np.ndarray]]:
    for part in slab_places([stop - start for start, stop in box], 0):
        place = tuple(slice(low + span.start, low + span.stop) for (low, _), span in zip(box, part, strict=True))
        voxels = np.asarray(labels[place])
        yield place, np.flatnonzero(~np.isin(voxels, [0, *background]) if background else voxels)


def _values(array: blosc2.NDArray, channel: int, part: tuple[Place, np.ndarray]) -> np.ndarray:
    place, where = part
    return np.asarray(array[(channel, *place)]).reshape(-1)[where]
