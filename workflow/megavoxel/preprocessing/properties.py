"""What a case keeps of the way from its file to the network's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megavoxel.errors import UserError
from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.preprocessing.store import CaseProperties
from megavoxel.volumes.grid import Geometry, resampled_shape, rounded_spacing
from megavoxel.volumes.masks import Box

MOST_FOLD = 1000
"""Voxels that resampling may make of one; CT of 5 mm slices brought to 1 mm becomes 5."""


def case_properties(
    full_shape: Sequence[int],
    box: Box,
    geometry: Geometry,
    plan: PreprocessingPlan,
    case_id: str,
    modality: str | None,
) -> CaseProperties:
    """The properties of a case without labels.

    Args:
        full_shape: voxels per axis, network order.
        box: what is kept of them.
        geometry: the grid of the file.
        plan: what the case is preprocessed under.
        case_id: its name.
        modality: its modality, where it has one.

    Raises:
        UserError: the case would grow beyond all measure.
    """
    canonical = rounded_spacing(geometry.spacing)
    spacing = tuple(canonical[axis] for axis in plan.transpose)
    shape = resampled_shape([stop - start for start, stop in box], spacing, plan.spacing)
    if math.prod(shape) > MOST_FOLD * math.prod(full_shape):
        raise UserError(
            f"case {case_id}: brought from a spacing of {_millimetres(spacing)} to {_millimetres(plan.spacing)} it has "
            f"more than {MOST_FOLD} times as many voxels; correct the spacing in its header (it may not be in mm), or "
            "preprocessing.spacing of the study"
        )
    return CaseProperties(
        case=case_id,
        plan=made_under(plan, modality),
        file_shape=geometry.shape,
        affine=tuple(tuple(float(value) for value in row) for row in geometry.affine),
        full_shape=tuple(full_shape),
        box=box,
        spacing=spacing,
        shape=shape,
    )


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in spacing) + " mm"


def made_under(plan: PreprocessingPlan, modality: str | None) -> str:
    """What a stored case keeps of its plan: the hash, and the modality where the plan treats them differently."""
    return f"{plan.hash}-{modality}" if plan.normalisation_by_modality else plan.hash
