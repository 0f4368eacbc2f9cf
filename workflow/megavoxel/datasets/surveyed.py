"""What a survey of a folder is asked, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megavoxel.config.regions import LabelScheme
from megavoxel.config.source import Files, Patients
from megavoxel.datasets.naming import MODALITY_WORDS
from megavoxel.datasets.pairs import listed
from megavoxel.errors import UserError
from megavoxel.volumes.open import open_volume

MOST_VALUES = 200
"""Values of label maps above which they are taken to be no label maps."""
AIR = -500
"""An image with lower intensities is taken to be CT, in HU."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user says of a folder that its files leave open; empty: the survey finds out."""

    images: tuple[str, ...] = ()
    """Patterns of the images, one per channel."""
    label: str | None = None
    """Pattern of the label maps."""
    channels: tuple[str, ...] = ()
    """Names of the channels."""
    labels: dict[str, int] = field(default_factory=dict)
    """Values by name."""
    leave_out: bool = False
    """Whether cases are left out that lack a file or have a faulty one, and masks of labels that one patient alone
    has."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found."""

    root: Path
    """The folder itself, or the only one in it that has a dataset.json."""
    layout: str
    """What the layout is called."""
    files: Files | None
    """What images and label maps are called; None: dataset.json or `patients` tells."""
    patients: Patients | None = None
    """What images and masks in folders of patients are called; None: there are no such folders."""
    channels: tuple[str, ...] = ()
    scheme: LabelScheme
    """What the values of label maps mean."""
    splits: Path | None = None
    """A file with folds, as nnU-Net writes it, beside dataset.json."""
    unnamed: bool
    """Whether the names of the labels are made up."""
    excluded: tuple[str, ...] = ()
    """Ids of the cases that lack a file or have a faulty one."""
    unused: tuple[str, ...] = ()
    """Files that belong to no case and are not known to be none."""
    groups: str | None = None
    """Pattern of the groups of cases that their ids show, usually patients; None: they show none."""
    training_cases: int
    test_cases: int
    shape: tuple[int, int, int]
    """Median voxels along z, y, x."""
    largest_shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    """Median spacing in mm along z, y, x."""
    label_maps: tuple[Path, ...] = ()
    """Those of the training cases; none where a case has a mask or a structure per label."""
    overlap: int = 0
    """Voxels that lie in several masks, in all patients."""
    empty: tuple[str, ...] = ()
    """Names of masks that are empty in all patients, and were left out."""
    single: tuple[str, ...] = ()
    """Names of masks that one patient alone has, and were left out."""

    @property
    def labels(self) -> dict[str, int]:
        """Values above 0 by name, in ascending order."""
        return self.scheme.labels


def channel_names(images: Sequence[tuple[str, Path]]) -> tuple[str, ...]:
    """Names of channels by the words of their patterns, or CT where the intensities are those of CT, or else `image`.

    Args:
        images: pattern and one file of each channel.
    """
    names = []
    for pattern, path in images:
        words = [word for word in _split(pattern) if word.lower() in MODALITY_WORDS]
        low = 0 if words else min(slab.voxels.min() for slab in open_volume(path).image_slabs())
        word = words[-1] if words else "CT" if low < AIR else "image"
        names.append("CT" if word.lower() == "ct" else word)
    numbered = [f"{name}-{number}" for number, name in enumerate(names)]
    return tuple(names if len(set(names)) == len(names) else numbered)


def sizes_of(seen: Sequence[tuple[Sequence[int], Sequence[float]]]) -> dict[str, Any]:
    """The sizes of a `Survey`, of shapes and spacings (z, y, x)."""
    shapes, spacings = [shape for shape, _ in seen], [spacing for _, spacing in seen]
    return {
        "shape": _whole(np.median(shapes, axis=0)),
        "largest_shape": _whole(np.max(shapes, axis=0)),
        "spacing": tuple(float(f"{size:.6g}") for size in np.median(spacings, axis=0)),
    }


def refuse_unnamed(values: dict[int, str], scheme: LabelScheme, root: Path) -> None:
    """Refuses label maps with values that have no name.

    Args:
        values: those of all label maps but 0, each with a case that has it.

    Raises:
        UserError: there are some.
    """
    labels = scheme.labels
    unnamed = sorted(set(values) - {*labels.values(), scheme.ignore_value})
    if unnamed:
        where = listed(f"{value} (in {values[value]})" for value in unnamed)
        named = ", ".join(f"{name}={value}" for name, value in labels.items())
        raise UserError(
            f"{root}: label maps hold values that have no name: {where}; named are {named}: name all of them by "
            "--labels NAME=VALUE ..., or where the names come from"
        )


def made_up(values: dict[int, str], root: Path) -> dict[str, int]:
    """Names for values that no file names; raises UserError where all label maps are empty."""
    if not values:
        raise UserError(f"{root}: all label maps are empty, so that there is nothing to segment")
    return {f"label-{value}": value for value in sorted(values)}


def refuse_images(values: set[int], root: Path) -> None:
    """Refuses label maps with so many values that they are most likely images."""
    if len(values) > MOST_VALUES:
        raise UserError(
            f"{root}: the label maps hold {len(values)} values, so they are most likely no label maps; name "
            "these by --label PATTERN, or their values by --labels NAME=VALUE ..."
        )


def _split(pattern: str) -> list[str]:
    return "".join(sign if sign.isalnum() else " " for sign in pattern).split()


def _whole(sizes: np.ndarray) -> tuple[int, ...]:
    return tuple(round(float(size)) for size in sizes)
