"""What a case keeps of the way from its file to the network's grid."""

from __future__ import annotations

from collections.abc import Sequence

from megavoxel.data.crop import Box
from megavoxel.data.grid import resampled_shape, rounded_spacing
from megavoxel.data.nifti import Geometry
from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.preprocessing.store import CaseProperties


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
    """
    canonical = rounded_spacing(geometry.spacing)
    spacing = tuple(canonical[axis] for axis in plan.transpose)
    return CaseProperties(
        case=case_id,
        plan=made_under(plan, modality),
        file_shape=geometry.shape,
        affine=tuple(tuple(float(value) for value in row) for row in geometry.affine),
        full_shape=tuple(full_shape),
        box=box,
        spacing=spacing,
        shape=resampled_shape([stop - start for start, stop in box], spacing, plan.spacing),
    )


def made_under(plan: PreprocessingPlan, modality: str | None) -> str:
    """What a stored case keeps of its plan: the hash, and the modality where the plan treats them differently."""
    return f"{plan.hash}-{modality}" if plan.normalisation_by_modality else plan.hash
