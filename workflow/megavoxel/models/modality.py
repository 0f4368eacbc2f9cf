"""Whether a scan is of the modality that a model was trained on, as far as its file or its values say."""

from __future__ import annotations

import re

import numpy as np

from megavoxel.errors import UserError
from megavoxel.planning.plan import PreprocessingPlan

DICOM_CODES = {
    "CT": r"ct|cbct|cta|computed.?tomography",
    "MR": r"mr|mri|cmr|t1.*|t2.*|flair|adc|dwi|pd|swi|bold",
    "PT": r"pt|pet|suv",
    "US": r"us|ultrasound",
}
"""DICOM's names of modalities (PS3.3, C.7.3.1.1.1), and how datasets name them or their channels."""
LEAST_OF_MR = -200
"""Magnitude images have no values below 0 but for resampling; air in CT has about -1000 HU."""


def dicom_code(name: str) -> str | None:
    """DICOM's name of what a channel or modality is called in a dataset; None where that says nothing."""
    return next((code for code, names in DICOM_CODES.items() if re.fullmatch(names, name.strip().casefold())), None)


def modality_of_scan(plan: PreprocessingPlan, said: str | None, stated: str | None) -> str | None:
    """The modality by whose rules a scan is normalised; None where the plan has one kind of scans.

    Args:
        plan: of the model.
        said: by the user.
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
        case: name of the scan.
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
        case: name of the scan.
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
