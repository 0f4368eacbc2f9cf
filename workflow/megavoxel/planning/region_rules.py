"""Keys of a setting that datasets with regions, or with an ignore label, do not have."""

from __future__ import annotations

from megavoxel.config.setting import Setting
from megavoxel.errors import UserError
from megavoxel.planning.plan import PreprocessingPlan

OF_WHOLE_SAMPLES = ("dice_topk", "dice_perimeter")
"""Losses that look at all voxels of a sample, annotated or not."""
OF_REGIONS = ("dice_ce", "dice", "cross_entropy")
"""Losses of outputs that may overlap; their cross-entropy is the binary one of each region."""


def require_supported(preprocessing: PreprocessingPlan, setting: Setting) -> None:
    """Refuses what a setting cannot have on such a dataset.

    Raises:
        UserError: names the key, and what to set in its place.
    """
    training = setting.training
    if preprocessing.regions is not None:
        if training.loss not in OF_REGIONS:
            _refuse(setting, f"training.loss: {training.loss}", "regions", f"set {', '.join(OF_REGIONS)}")
        if training.class_weights != "none":
            _refuse(setting, "training.class_weights", "regions", "leave it out")
        if training.dice_background:
            _refuse(setting, "training.dice_background", "regions", "leave it out: regions have no background")
        if setting.stage1:
            _refuse(setting, "stage1", "regions", "leave it out, or declare labels that do not overlap")
    if preprocessing.ignore_value is not None:
        if training.loss in OF_WHOLE_SAMPLES:
            _refuse(setting, f"training.loss: {training.loss}", "an ignore label", "set dice_ce or dice_focal")
        if training.sampling == "roulette":
            _refuse(setting, "training.sampling: roulette", "an ignore label", "set foreground")


def _refuse(setting: Setting, key: str, what: str, remedy: str) -> None:
    raise UserError(f"setting {setting.name}: {key}: not in a dataset with {what}; {remedy}")
