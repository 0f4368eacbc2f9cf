"""A new scan: opened, held against what the model was trained on, and brought to the network's grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megavoxel.errors import UserError
from megavoxel.memory import free_memory
from megavoxel.models.scans import Scan, in_order_of_channels
from megavoxel.planning.plan import Plan, PreprocessingPlan
from megavoxel.preprocessing.case import preprocess_image, preprocess_large_image
from megavoxel.preprocessing.large import is_large
from megavoxel.preprocessing.store import CaseProperties, open_case
from megavoxel.volumes.grid import assumed_affine, compare_grids, shown_sizes
from megavoxel.volumes.open import open_volume
from megavoxel.volumes.slabs import LARGE_VOXELS
from megavoxel.volumes.volume import Hints, Volume, joined_image

AXES = ("LR", "PA", "IS")
DICOM_CODES = {
    "CT": r"ct|cbct|cta|computed.?tomography",
    "MR": r"mr|mri|cmr|t1.*|t2.*|flair|adc|dwi|pd|swi|bold",
    "PT": r"pt|pet|suv",
    "US": r"us|ultrasound",
}
"""DICOM's names of modalities (PS3.3, C.7.3.1.1.1), and how datasets name them or their channels."""
BYTES_OF_VOXEL = 8
"""Memory of a scan for a voxel at the least: as it is read and on the network's grid, both in float32."""
ALIKE = 1000**0.5
"""Ratio of the sides of voxels up to which two scans may be of one kind."""
LEAST_OF_MR = -200
"""Magnitude images have no values below 0 but for resampling; air in CT has about -1000 HU."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the user says of scans, and how they are read."""

    modality: str | None = None
    """The modality of all of them; None: as their files say."""
    any_modality: bool = False
    """Whether scans of another modality than the model's are taken."""
    series: tuple[str, ...] = ()
    """UIDs of the DICOM series to take where a folder has several."""
    orientation: str | None = None
    """Directions in which the axes i, j, k run, such as RAS, for files that do not say it; None: they are refused."""
    sides: tuple[float, ...] | None = None
    """Voxel size in mm along i, j, k, for files that do not say it; None: they are refused."""
    incomplete_series: bool = False
    """Whether DICOM series are taken that seem to lack slices at their ends."""
    large_voxels: int = LARGE_VOXELS
    """Voxels from which on a scan goes block by block."""

    @property
    def hints(self) -> Hints:
        """What is said of the files of a scan."""
        return Hints(orientation=self.orientation, sides=self.sides, series=self.series)


def check_orientation_code(code: str, *, option: str = "--assume-orientation") -> str:
    """An orientation such as RAS or LPI, in capitals.

    Raises:
        UserError: it is none; names the option.
    """
    capitals = code.upper()
    axes = ["".join(axis for axis in AXES if letter in axis) for letter in capitals]
    if sorted(axes) != sorted(AXES):
        raise UserError(
            f"{option} {code}: expected where the axes i, j, k run to: one letter each of L or R, P or A, "
            "I or S, such as RAS or LPS"
        )
    return capitals


def open_scan(scan: Scan, channels: Sequence[str], reading: Reading) -> list[Volume]:
    """The files of a scan, opened, in order of the channels.

    Raises:
        UserError: a file is damaged, or does not say its orientation; a folder holds several series; files cannot be
            told apart.
    """
    paths = (scan.dicom,) if scan.dicom else in_order_of_channels(scan.files, channels)
    volumes = [open_volume(path, reading.hints) for path in paths]
    for volume in volumes:
        if not volume.is_oriented and reading.orientation is None:
            assumed_affine(volume.path, (), None)  # refuses the file
        if volume.doubts and not reading.incomplete_series:
            raise UserError(
                f"{volume.path}: {'; '.join(volume.doubts)}: bring all slices of the scan, or, if these are all that "
                "are to be labelled, add --incomplete-series"
            )
    return volumes


def as_in_training(plan: PreprocessingPlan, case: str, volumes: Sequence[Volume]) -> list[Volume]:
    """The files of a scan, turned as the model's images were, and with grids whose header states another unit than mm
    in the unit of the model's spacing.

    A model of a dataset in micrometres has them where others have mm. As units are a thousand apart, and scans of one
    kind are not, one of the two ways to read a grid fits the model and the other does not.

    Raises:
        UserError: neither fits.
    """
    volumes = [_in_unit_of(plan, case, volume) for volume in volumes]
    return [replace(volume, geometry=replace(volume.geometry, axes=plan.axes)) for volume in volumes]


def _in_unit_of(plan: PreprocessingPlan, case: str, volume: Volume) -> Volume:
    stated = volume.geometry
    if stated.unit in (None, "mm"):
        return volume
    for grid in (stated, stated.in_mm()):
        ratio = math.prod(grid.spacing) / math.prod(plan.spacing)
        if 1 / ALIKE**3 < ratio < ALIKE**3:
            return replace(volume, geometry=grid)
    raise UserError(
        f"case {case}: {volume.path} has voxels of {shown_sizes(stated.spacing)} {stated.unit}, the model's are "
        f"{shown_sizes(plan.spacing)} mm: neither these numbers nor those in mm fit it; correct the header"
    )


def prepared(
    scan: Scan, volumes: Sequence[Volume], plan: Plan, reading: Reading, scratch: Path
) -> tuple[Any, CaseProperties]:
    """Image (channels, network grid) of a scan, in memory or in `scratch`, and the way back to the grid of its files.

    Raises:
        UserError: it has another modality or number of channels than the model, or channels on different grids; or a
            file is damaged, or has voxels that are not finite or all of one value.
    """
    rules, stated = plan.preprocessing, volumes[0].modality
    _check_channels(scan.case, volumes, rules)
    if not reading.any_modality:
        check_stated_modality(rules, scan.case, reading.modality or stated)
    modality = modality_of_scan(rules, reading.modality, stated)
    if is_large(volumes, reading.large_voxels):
        preprocess_large_image(volumes, rules, scan.case, modality, scratch, plan.patch)
        case = open_case(scratch, scan.case)
        return case.image, case.properties
    _require_memory(scan.case, volumes)
    image = joined_image(volumes)
    ready = preprocess_image(image, volumes[0].geometry, rules, scan.case, modality)
    if not reading.any_modality:
        check_values(rules, scan.case, modality, image)
    return ready


def _require_memory(case: str, volumes: Sequence[Volume]) -> None:
    """Refuses a scan that memory does not hold whole, before its voxels are read."""
    needed, free = BYTES_OF_VOXEL * sum(math.prod(volume.shape) for volume in volumes), free_memory()
    if needed > free:
        raise UserError(
            f"case {case}: {volumes[0].path} takes {needed / 1e9:.1f} GB of memory or more, and {free / 1e9:.1f} GB "
            "are free; take a machine with more, or add --large-voxels 1, so that it is read in parts"
        )


def _check_channels(case: str, volumes: Sequence[Volume], plan: PreprocessingPlan) -> None:
    count = sum(volume.channels for volume in volumes)
    if count != len(plan.channels):
        raise UserError(
            f"case {case}: the scan has {count} channel{'s' if count > 1 else ''} in {len(volumes)} "
            f"file{'s' if len(volumes) > 1 else ''}; the model takes {len(plan.channels)} "
            f"({', '.join(plan.channels)}): give each of them as a volume of one file, or as CASE_0000, CASE_0001, …; "
            "where a number at the end of a name means nothing, --one-file-per-case"
        )
    for volume in volumes[1:]:
        differences = compare_grids(volumes[0].geometry, volume.geometry)
        if differences:
            raise UserError(
                f"case {case}: its channels lie on different grids ({differences[0][1]}); resample them to one"
            )


def dicom_code(name: str) -> str | None:
    """DICOM's name of what a channel or modality is called in a dataset; None where that says nothing."""
    return next((code for code, names in DICOM_CODES.items() if re.fullmatch(names, name.strip().casefold())), None)


def modality_of_scan(plan: PreprocessingPlan, said: str | None, stated: str | None) -> str | None:
    """The modality by whose rules a scan is normalised; None where the plan has one kind of scans.

    Args:
        plan: of the model.
        stated: by the file, in DICOM's terms.
    """
    if said or not plan.normalisation_by_modality:
        return said
    fitting = [name for name in plan.normalisation_by_modality if stated and dicom_code(name) == stated]
    return fitting[0] if len(fitting) == 1 else None


def check_stated_modality(plan: PreprocessingPlan, case: str, stated: str | None) -> None:
    """Refuses a scan of another modality than the model's, where both are known.

    Args:
        plan: of the model.
        stated: the scan's modality in the user's or DICOM's terms.

    Raises:
        UserError: it is another one.
    """
    names = tuple(plan.normalisation_by_modality) or plan.channels
    known = {dicom_code(name) for name in names}
    code = dicom_code(stated or "")
    if code is None or None in known or code in known:
        return
    raise UserError(
        f"case {case}: it is {stated}, and the model was trained on {', '.join(names)}: give it such scans, or "
        "--any-modality to go on all the same"
    )


def check_values(plan: PreprocessingPlan, case: str, modality: str | None, image: np.ndarray) -> None:
    """Refuses values that cannot be of the model's modality: CT without any negative one, MR with those of air in CT.

    Args:
        plan: of the model.
        modality: by whose rules it is normalised.
        image: (channels, z, y, x), before normalisation.

    Raises:
        UserError: it has such values.
    """
    rules = plan.normalisation_of(case, modality)
    for channel, (rule, voxels) in enumerate(zip(rules, image, strict=True)):
        name = modality or plan.channels[channel]
        least = float(voxels.min(initial=0))
        if dicom_code(name) == "CT" and rule.scheme == "ct" and rule.lower < 0 <= least:
            found = "it has no value below 0, so it is no CT in Hounsfield units"
        elif dicom_code(name) == "MR" and least < LEAST_OF_MR:
            found = f"it has values down to {least:g}, so it is no magnitude image of MR"
        else:
            continue
        raise UserError(
            f"case {case}: the model takes {name} here, and {found}: give it such scans (CT rescaled to HU), or "
            "--any-modality to go on all the same"
        )
