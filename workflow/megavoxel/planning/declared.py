"""A dataset that is not there yet, as its publication describes it: good for planning, not for preprocessing."""

from __future__ import annotations

from itertools import cycle, islice

from megavoxel.config.dataset import Dataset, Declared
from megavoxel.config.regions import LabelScheme
from megavoxel.config.source import Phantom
from megavoxel.datasets.anatomy import LABELS
from megavoxel.datasets.cases import Case, Cases
from megavoxel.errors import UserError
from megavoxel.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities

UNKNOWN = Intensities(mean=0.0, median=0.0, std=1.0, minimum=0.0, maximum=0.0, percentile_0_5=0.0, percentile_99_5=0.0)
"""Stands for intensities, which are not declared; no patch, network or forecast depends on them."""


def declared_dataset(dataset: Dataset) -> tuple[Cases, Fingerprint]:
    """Cases without files, all of the declared size, uncropped; modalities take turns.

    Which case has which modality is not declared. No patch, network or forecast depends on it.

    Raises:
        UserError: the dataset file declares nothing.
    """
    declared = dataset.declared or _of_phantom(dataset.source.phantom)
    if declared is None:
        raise UserError(
            f"dataset {dataset.name}: its file has no 'declared' shape and spacing to plan with; add them, or run "
            "'megavoxel check' and 'megavoxel fingerprint' on the data and give --cases and --fingerprint"
        )
    scheme = dataset.label_scheme or LabelScheme(labels=LABELS)
    channels = dataset.channels or ("CT",)
    names = [f"declared_{number:06}" for number in range(declared.training_cases)]
    cases = Cases(
        dataset=dataset.name,
        root="",
        channels=channels,
        labels=scheme.labels,
        regions=scheme.regions,
        ignore_value=scheme.ignore_value,
        nsd_tolerance_mm={name: dataset.tolerance(name) for name in scheme.structures},
        cases=tuple(
            Case(id=name, images=(), label="", modality=modality)
            for name, modality in zip(names, islice(cycle(dataset.modalities or [None]), len(names)), strict=True)
        ),
    )
    # One case as large as they come leaves the median of three and more as it is.
    sizes = [declared.largest_shape or declared.shape] + [declared.shape] * (len(names) - 1)
    shapes = tuple(
        CaseFingerprint(id=name, spacing=declared.spacing, shape=size, cropped_shape=size)
        for name, size in zip(names, sizes, strict=True)
    )
    intensities = (UNKNOWN,) * len(channels)
    return cases, Fingerprint(
        dataset=dataset.name,
        channels=channels,
        cases=shapes,
        intensities=() if cases.modalities else intensities,
        modalities=dict.fromkeys(cases.modalities, intensities),
    )


def _of_phantom(phantom: Phantom | None) -> Declared | None:
    """Sizes of the phantoms that the workflow will make."""
    if phantom is None:
        return None
    return Declared(training_cases=phantom.training_cases, shape=phantom.shape, spacing=phantom.spacing)
