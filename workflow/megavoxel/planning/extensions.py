"""What a setting may add to nnU-Net: a curriculum of whole images and phases, an expanded patch, a first stage.

The curriculum is that of Zhu et al., "LAMP: Large Deep Nets with Automated Model Parallelism for Image Segmentation"
(MICCAI 2020, section 2.3): small patches first, then larger ones, the whole image last; each phase begins with the
weights of the one before. The expanded patch is that of meU-net (Wang et al., MIDL 2022), the first stage nnU-Net's
cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megavoxel.config.setting import Phase, Setting
from megavoxel.config.training import Training
from megavoxel.errors import UserError
from megavoxel.planning.patch import WHOLE
from megavoxel.planning.plan import NetworkPlan, PhasePlan, PreprocessingPlan
from megavoxel.planning.spacing import times
from megavoxel.planning.topology import shape_of


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
    if preprocessing.dimensions == 2:
        largest = (1, *largest[1:])
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


def expanded_patch(patch: Sequence[int], factors: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis of the expanded patch: rounded, and larger by an even number, so that the patch is its centre."""
    wanted = [round(size * factor) for size, factor in zip(patch, factors, strict=True)]
    return tuple(large + (large - size) % 2 for size, large in zip(patch, wanted, strict=True))


def plan_expansion(
    setting: Setting, patch: Sequence[int], network: NetworkPlan, median_shape: Sequence[float]
) -> tuple[tuple[int, ...] | None, NetworkPlan, list[str]]:
    """The expanded patch of a setting, the network with the head that it needs, and a note.

    Raises:
        UserError: along an axis that the patch grows along, it has the median case's size already, or grows beyond that
            size rounded up to the network's stride; or the network has no second decoder level.
    """
    if setting.expansion is None:
        return None, network, []
    where = f"setting {setting.name}: expansion"
    large = expanded_patch(patch, setting.expansion.factor)
    sides = zip(patch, large, median_shape, shape_of(network).padded(median_shape), strict=True)
    for axis, (size, grown, median, padded) in enumerate(sides):
        # Within the rounding that patches of whole images need, as the paper's 240 of 235 voxels at half resolution.
        if grown > size and (size >= median or grown > padded):
            raise UserError(
                f"{where}: along axis {axis} the expanded patch has {grown} voxels, more than the median case "
                f"({times(median_shape)}); lower 'factor' there, one number per axis, or the patch ({times(patch)})"
            )
    if len(network.features) < 3:
        raise UserError(f"{where}: it needs a second decoder level, so a network of 3 levels at least; raise 'levels'")
    note = (
        f"expansion: {times(large)} around the patch {times(patch)}, without gradient in the first level, loss at the "
        "second decoder level; filled with 0 beyond the image"
    )
    return large, replace(network, expanded_head=True), [note]


def plan_cascade(setting: Setting, network: NetworkPlan) -> tuple[NetworkPlan, list[str]]:
    """The network with the channels of a first stage's labels, and a note.

    Raises:
        UserError: they are to join decoder levels that the network does not have.
    """
    if not setting.stage1:
        return network, []
    if setting.fusion == "post" and len(network.features) < 2:
        raise UserError(
            f"setting {setting.name}: fusion 'post' joins the first stage at decoder levels, and a network of one "
            "level has none; raise 'levels', or set fusion to 'pre'"
        )
    channels = len(setting.stage1) * (network.classes - 1)
    place = "the start of every decoder level" if setting.fusion == "post" else "the image"
    note = f"cascade: the labels of {' and '.join(setting.stage1)}, one-hot in {channels} channels, join {place}"
    return replace(network, prior_channels=channels, fusion=setting.fusion), [note]
