"""The plans: of a preprocessing from the fingerprint, and of a setting from that. What the study fixes is kept; what it
leaves open follows nnU-Net's rules, and leaves a note in the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megavoxel.config.setting import Network, Preprocessing, Setting
from megavoxel.config.training import Training
from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.planning.extensions import as_last_phase, plan_cascade, plan_expansion, plan_phases, with_numbers
from megavoxel.planning.fingerprint import Fingerprint
from megavoxel.planning.low_resolution import dice_of_whole_batch, low_resolution_note, require_low_resolution
from megavoxel.planning.normalisation import plan_normalisation
from megavoxel.planning.patch import (
    REFERENCE_MEMORY_GIB,
    SMALLEST_BATCH,
    START_SIDES,
    Candidate,
    Frame,
    batch_by_dataset,
    batch_by_memory,
    check_levels,
    check_sizes,
    largest_patch,
    network_note,
    padding_notes,
    preset_notes,
    reference_of,
    start_patch,
)
from megavoxel.planning.plan import Plan, PreprocessingPlan
from megavoxel.planning.region_rules import require_supported
from megavoxel.planning.slices import plan_augmentation
from megavoxel.planning.spacing import (
    coarsest_axis,
    is_anisotropic,
    largest_shape,
    median_shape,
    target_spacing,
    times,
    transposed,
    transposition,
)

AXES = ("z", "y", "x")


def plan_preprocessing(cases: Cases, fingerprint: Fingerprint, keys: Preprocessing) -> PreprocessingPlan:
    """The grid and the intensities to which every case is brought.

    Raises:
        UserError: the fingerprint does not belong to the cases, or there is no low resolution of the dataset where the
            study asks for it.
    """
    if fingerprint.channels != cases.channels:
        raise UserError(
            f"the fingerprint has the channels {', '.join(fingerprint.channels)}, dataset {cases.dataset} has "
            f"{', '.join(cases.channels)}; run 'megavoxel fingerprint' again"
        )
    if set(fingerprint.modalities) != set(cases.modalities):
        raise UserError(
            f"the fingerprint has the modalities {', '.join(fingerprint.modalities) or 'none'}, dataset "
            f"{cases.dataset} has {', '.join(cases.modalities) or 'none'}; run 'megavoxel fingerprint' again"
        )
    transpose, spacing, notes = _grid(fingerprint, keys)
    shapes = [transposed(case.cropped_shape, transpose) for case in fingerprint.cases]
    spacings = [transposed(case.spacing, transpose) for case in fingerprint.cases]
    median = median_shape(shapes, spacings, spacing)
    if keys.resolution == "low":
        stage = require_low_resolution(_full_resolution(cases, spacing, median), keys, cases.dataset)
        spacing, median = stage.frame.spacing, stage.frame.median_shape
        notes.append(f"spacing: {times(spacing)} mm, {stage.reason}")
    normalisation = plan_normalisation(cases, fingerprint, keys)
    plan = PreprocessingPlan(
        channels=cases.channels,
        dimensions=keys.dimensions,
        labels=dict(sorted(cases.labels.items(), key=lambda label: label[1])),
        background_values=tuple(sorted(cases.background_values)),
        regions=cases.regions,
        ignore_value=cases.ignore_value,
        transpose=transpose,
        spacing=spacing,
        median_shape=median,
        normalisation=normalisation.rules,
        normalisation_by_modality=normalisation.by_modality,
        image_order=keys.image_order,
        label_order=keys.label_order,
        notes=(*notes, *normalisation.notes),
    )
    return replace(plan, largest_shape=largest_shape(shapes, spacings, [plan.spacing_for(own) for own in spacings]))


def plan_setting(cases: Cases, preprocessing: PreprocessingPlan, setting: Setting, *, study: str, seed: int) -> Plan:
    """Patch, batch and network of a setting, and all that training and prediction need.

    Args:
        preprocessing: the plan of the setting's preprocessing.
        seed: of the study; a setting's own comes before it.

    Raises:
        UserError: the preprocessing is of another dataset or setting, there are not as many class weights as classes,
            the network cannot have as many levels as the study asks for, nothing fits into the memory target, or a
            patch leaves a single voxel at the lowest level.
    """
    _check_preprocessing(cases, preprocessing, setting)
    _check_class_weights(preprocessing, setting)
    require_supported(preprocessing, setting)
    written, whole_notes = with_numbers(setting, preprocessing)
    setting = as_last_phase(written)
    frame = _frame(preprocessing, setting)
    candidate, patch_notes = _choose_patch(frame, setting)
    patch = setting.patch or candidate.patch
    check_levels(frame, setting, patch)
    batch, batch_notes = _choose_batch(frame, setting, candidate, patch, len(cases.of_split("training")))
    training, budget_notes = _budget(setting.training, batch)
    training, dice_note = _dice(frame, patch, replace(setting, training=training))
    augmentation, augmentation_notes = plan_augmentation(setting.augmentation, patch, frame.dimensions)
    large, network, expansion_notes = plan_expansion(setting, patch, candidate.network, frame.median_shape)
    network, cascade_notes = plan_cascade(setting, network)
    phases, phase_notes = plan_phases(written, patch, batch, training)
    plan = Plan(
        study=study,
        setting=setting.name,
        dataset=cases.dataset,
        seed=seed if setting.seed is None else setting.seed,
        preprocessing=preprocessing,
        patch=patch,
        batch=batch,
        network=network,
        expanded_patch=large,
        expansion_order=setting.expansion.order if setting.expansion else "sequential",
        stage1=setting.stage1,
        phases=phases,
        start=setting.start,
        training=training,
        augmentation=augmentation,
        inference=setting.inference,
        unannotated={case.id: case.unseen for case in cases.of_split("training") if case.unseen},
        notes=(
            *whole_notes,
            *patch_notes,
            network_note(candidate, setting),
            *preset_notes(frame),
            low_resolution_note(frame, patch, setting.preprocessing),
            dice_note,
            *class_weight_notes(training),
            *batch_notes,
            *budget_notes,
            *augmentation_notes,
            *expansion_notes,
            *cascade_notes,
            *phase_notes,
        ),
    )
    check_sizes(plan)
    return replace(plan, notes=(*plan.notes, *padding_notes(plan)))


def _frame(preprocessing: PreprocessingPlan, setting: Setting) -> Frame:
    dimensions = preprocessing.dimensions
    return Frame(
        setting=setting.name,
        spacing=preprocessing.spacing,
        median_shape=preprocessing.median_shape,
        channels=len(preprocessing.channels),
        classes=preprocessing.outputs,
        memory_gib=setting.memory_gib or reference_of(setting.network, dimensions).memory_gib,
        keys=setting.network,
        dimensions=dimensions,
    )


def _check_class_weights(preprocessing: PreprocessingPlan, setting: Setting) -> None:
    given, classes = setting.training.class_weights, ("background", *preprocessing.labels)
    if not isinstance(given, str) and len(given) != len(classes):
        raise UserError(
            f"setting {setting.name}: training.class_weights has {len(given)} numbers; give one for each of the "
            f"{len(classes)} classes: {', '.join(classes)}"
        )


def class_weight_notes(training: Training) -> list[str]:
    """What to know of a rule that weights classes by their voxels, which are counted when cases are preprocessed."""
    if training.class_weights != "softmax_of_inverse":
        return []
    return [
        "class weights: softmax_of_inverse leaves all weight to the rarest class unless all have some percent of the "
        "voxels (96, 3.9 and 0.1 % give 0, 0 and 3); cross-entropy then sees that class alone; inverse_square_root "
        "does not saturate"
    ]


def _grid(fingerprint: Fingerprint, keys: Preprocessing) -> tuple[tuple[int, ...], tuple[float, ...], list[str]]:
    """Transposition, target spacing in network order, and notes."""
    spacings = [case.spacing for case in fingerprint.cases]
    shapes = [case.cropped_shape for case in fingerprint.cases]
    median = np.median(spacings, axis=0)
    target = target_spacing(spacings, shapes) if keys.spacing is None else median
    transpose = keys.transpose or transposition(target)
    if keys.spacing is None:
        spacing = transposed(target, transpose)
        reason = f"median of {len(spacings)} training cases"
        if is_anisotropic(median, np.median(shapes, axis=0)):
            coarse = AXES[coarsest_axis(median)]
            reason += (
                f", but along the coarse axis {coarse} the 10th percentile (not finer than the other axes) in place of "
                f"{max(median):g} mm: it is more than 3 times coarser and has less than a third of the others' voxels"
            )
    else:
        spacing = keys.spacing
        reason = f"fixed by the study; the median of the dataset is {times(transposed(median, transpose))} mm"
    if coarsest_axis(spacing) != 0:
        reason += "; its first axis is not the coarsest one, which the order of axes is meant for"
    if keys.dimensions == 2:
        reason += f"; slices across {AXES[transpose[0]]} keep the distance that they have in each case"
    order = ", ".join(AXES[axis] for axis in transpose)
    why = "the coarsest first" if keys.transpose is None else "fixed by the study"
    return transpose, spacing, [f"axes: {order}, {why}", f"spacing: {times(spacing)} mm, {reason}"]


def _full_resolution(cases: Cases, spacing: tuple[float, ...], median: tuple[float, ...]) -> Frame:
    """The dataset as nnU-Net plans for it by default."""
    return Frame(
        setting=f"default of dataset {cases.dataset}",
        spacing=spacing,
        median_shape=median,
        channels=len(cases.channels),
        classes=len(cases.labels) + 1 if cases.regions is None else len(cases.regions.values),
        memory_gib=REFERENCE_MEMORY_GIB,
        keys=Network(),
    )


def _check_preprocessing(cases: Cases, preprocessing: PreprocessingPlan, setting: Setting) -> None:
    ours = (cases.labels, cases.regions, cases.ignore_value, cases.channels)
    planned = (preprocessing.labels, preprocessing.regions, preprocessing.ignore_value, preprocessing.channels)
    if ours != planned:
        raise UserError(
            f"setting {setting.name}: the preprocessing plan has other labels or channels than dataset "
            f"{cases.dataset}; run 'megavoxel plan-preprocessing' again"
        )
    asked, dimensions = setting.preprocessing.spacing, setting.preprocessing.dimensions
    if dimensions != preprocessing.dimensions:
        raise UserError(
            f"setting {setting.name}: preprocessing.dimensions is {dimensions}, the preprocessing plan has "
            f"{preprocessing.dimensions}; it belongs to another setting"
        )
    if asked is not None and tuple(asked) != tuple(preprocessing.spacing):
        raise UserError(
            f"setting {setting.name}: preprocessing.spacing is {times(asked)} mm, the preprocessing plan has "
            f"{times(preprocessing.spacing)} mm; it belongs to another setting"
        )
    if setting.preprocessing.transpose not in (None, tuple(preprocessing.transpose)):
        raise UserError(
            f"setting {setting.name}: preprocessing.transpose is {list(setting.preprocessing.transpose)}, the "
            f"preprocessing plan has {list(preprocessing.transpose)}; it belongs to another setting"
        )


def _choose_patch(frame: Frame, setting: Setting) -> tuple[Candidate, list[str]]:
    if setting.patch is not None:
        return frame.candidate(setting.patch), _fixed_patch_notes(frame, setting.patch)
    batch = setting.batch or frame.reference.planned_batch
    start = frame.candidate(start_patch(frame)).patch
    chosen, size = largest_patch(frame, batch), f"{START_SIDES[frame.dimensions]}{'²³'[frame.dimensions - 2]}"
    note = f"patch: {times(chosen.patch)}, begun at {times(start)} ({size} voxels, at most the median shape, padded)"
    if chosen.patch == start:
        return chosen, [f"{note}; kept, because batch {batch} of it fits into memory_gib {frame.memory_gib:g}"]
    return chosen, [f"{note} and shrunk until batch {batch} fits into memory_gib {frame.memory_gib:g}"]


def _fixed_patch_notes(frame: Frame, patch: Sequence[int]) -> list[str]:
    notes = [f"patch: {times(patch)}, fixed by the study"]
    if any(size > median for size, median in zip(patch, frame.median_shape, strict=True)):
        median = times(frame.median_shape)
        notes.append(f"patch: larger than the median case ({median}) along some axis; filled with 0")
    return notes


def _dice(frame: Frame, patch: Sequence[int], setting: Setting) -> tuple[Training, str]:
    """The training keys with Dice summed over each sample or over the whole batch, and the reason."""
    keys = setting.training
    if keys.batch_dice is not None:
        return keys, f"dice: of {'the whole batch' if keys.batch_dice else 'each sample'}, fixed by the study"
    whole, note = dice_of_whole_batch(frame, patch, setting.preprocessing)
    return replace(keys, batch_dice=whole), note


def _budget(keys: Training, batch: int) -> tuple[Training, list[str]]:
    """The steps of an epoch, where the budget is one of samples."""
    if keys.samples is None:
        return keys, []
    steps = max(1, round(keys.samples / (keys.epochs * batch)))
    done = keys.epochs * steps * batch
    note = f"budget: {keys.samples} samples, {keys.epochs} epochs of {steps} steps of batch {batch}"
    rounded = "" if done == keys.samples else f"; that is {done} samples, because an epoch has whole steps"
    return replace(keys, iterations_per_epoch=steps), [note + rounded]


def _choose_batch(
    frame: Frame, setting: Setting, candidate: Candidate, patch: Sequence[int], training_cases: int
) -> tuple[int, list[str]]:
    if setting.batch is not None:
        return setting.batch, [f"batch: {setting.batch}, fixed by the study"]
    by_memory = batch_by_memory(frame, candidate)
    by_dataset = batch_by_dataset(frame, patch, math.prod(frame.median_shape) * training_cases)
    most = f"{frame.reference.most_of_dataset:.0%}".replace("%", " %")
    batch = max(min(by_memory, by_dataset), SMALLEST_BATCH)
    if batch == by_memory:
        return batch, [f"batch: {batch}, what fits into memory_gib {frame.memory_gib:g}"]
    if batch == by_dataset:
        return batch, [f"batch: {batch}, {most} of the dataset's voxels; memory would do for {by_memory}"]
    notes = [f"batch: {batch}, the smallest; memory would do for {by_memory}, {most} of the dataset for {by_dataset}"]
    share = candidate.elements * batch / (frame.reference_elements * frame.reference.batch)
    if share > 1:
        needed = share * frame.memory_gib
        notes.append(f"batch: it needs about {needed:.0f} GiB by nnU-Net's measure, more than memory_gib asks for")
    return batch, notes
