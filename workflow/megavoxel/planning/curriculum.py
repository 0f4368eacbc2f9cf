"""Whole images as patches, and training in phases that begin with the weights of the one before.

Zhu et al., "LAMP: Large Deep Nets with Automated Model Parallelism for Image Segmentation" (MICCAI 2020, section 2.3):
small patches first, then larger ones, the whole image last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megavoxel.config.study import Phase, Setting, Training
from megavoxel.errors import UserError
from megavoxel.planning.plan import PhasePlan, PreprocessingPlan
from megavoxel.planning.spacing import times
from megavoxel.planning.window import WHOLE


def with_numbers(setting: Setting, preprocessing: PreprocessingPlan) -> tuple[Setting, list[str]]:
    """The setting with voxels in place of `whole`, and a note. Its prediction takes whole images then as well.

    Raises:
        UserError: the preprocessing plan does not say how large its largest case is.
    """
    if WHOLE not in (setting.patch, *(phase.patch for phase in setting.phases)):
        return setting, []
    largest = preprocessing.largest_shape
    if largest is None:
        raise UserError(
            f"setting {setting.name}: patch 'whole' needs the largest shape of the cases, which the preprocessing plan "
            "does not have; run 'megavoxel plan-preprocessing' again"
        )
    inference = setting.inference
    if setting.last_patch == WHOLE and inference.window is None:
        inference = replace(inference, window=WHOLE)
    phases = (replace(phase, patch=largest) if phase.patch == WHOLE else phase for phase in setting.phases)
    changed = replace(
        setting,
        patch=largest if setting.patch == WHOLE else setting.patch,
        phases=tuple(phases),
        inference=inference,
    )
    return changed, [f"patch: whole is {times(largest)}, the most voxels of a training case along each axis"]


def as_last_phase(setting: Setting) -> Setting:
    """The setting with the keys of its last phase, and a network for the smallest of its patches."""
    if not setting.phases:
        return setting
    last = setting.phases[-1]
    network = setting.network
    patches = [patch for phase in setting.phases if (patch := phase.patch or setting.patch)]
    if network.for_patch is None and patches:
        network = replace(network, for_patch=tuple(min(sides) for sides in zip(*patches, strict=True)))
    return replace(
        setting,
        patch=setting.last_patch,
        batch=last.batch or setting.batch,
        network=network,
        training=_training(setting.training, last),
    )


def plan_phases(
    setting: Setting, patch: Sequence[int], batch: int, training: Training
) -> tuple[tuple[PhasePlan, ...], list[str]]:
    """The phases with all that they leave open, and a note for each.

    Args:
        setting: as the study has it, with numbers in place of `whole`.
        patch: of the last phase.
        batch: of the last phase.
        training: of the plan.
    """
    phases = tuple(
        PhasePlan(
            patch=tuple(phase.patch or setting.patch or patch),
            batch=phase.batch or setting.batch or batch,
            epochs=phase.epochs or setting.training.epochs,
            learning_rate=phase.learning_rate or setting.training.learning_rate,
        )
        for phase in setting.phases
    )
    notes = [
        f"phase {number}: patch {times(phase.patch)}, batch {phase.batch}, {phase.epochs} epochs of "
        f"{training.iterations_per_epoch} steps from learning rate {phase.learning_rate:g}"
        for number, phase in enumerate(phases, start=1)
    ]
    return phases, notes


def _training(training: Training, phase: Phase) -> Training:
    return replace(
        training,
        epochs=phase.epochs or training.epochs,
        learning_rate=phase.learning_rate or training.learning_rate,
    )
