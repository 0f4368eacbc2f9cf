"""What a study's keys say of one another: names that must exist, and values that no schema can hold together."""

from __future__ import annotations

from collections.abc import Sequence

from megavoxel.config.schema import closest
from megavoxel.config.study import Ensemble, IntensityRange, Network, Setting, Study, Sweep, Training
from megavoxel.errors import UserError

RESERVED = {"ensembles", "preprocessed", "report"}
WEIGHTED_LOSSES = ("dice_ce", "dice_focal", "cross_entropy")
"""Losses with a cross-entropy or focal loss whose classes can be weighted."""


def check_references(study: Study, source: str) -> None:
    """Holds a resolved study against itself.

    Raises:
        UserError: a name that is reserved, taken twice or unknown, a fold that the study does not have, a range whose
            ends are the wrong way round, keys of training that do not go together; with the file (`source`) and key.
    """
    names = [setting.name for setting in study.settings]
    if study.baseline is not None:
        require_name(study.baseline, names, f"{source}: baseline")
    for setting in study.settings:
        _check_setting(setting, study, f"{source}: settings.{setting.name}")
    for ensemble in study.ensembles:
        _check_ensemble(ensemble, study, names, f"{source}: ensembles.{ensemble.name}")
    models = [*names, *(ensemble.name for ensemble in study.ensembles)]
    for sweep in study.sweeps:
        _check_sweep(sweep, study, models, f"{source}: sweeps.{sweep.name}")


def require_name(name: str, names: Sequence[str], where: str) -> None:
    """Refuses a name that is none of `names`.

    Raises:
        UserError: with the names that are allowed.
    """
    if name not in names:
        raise UserError(f"{where}: there is no setting '{name}'; allowed: {', '.join(names)}{closest(name, names)}")


def _check_setting(setting: Setting, study: Study, where: str) -> None:
    if setting.name in RESERVED:
        raise UserError(f"{where}: this name is reserved for a folder of the workflow; choose another one")
    late = [fold for fold in setting.folds or () if fold >= study.folds]
    if late:
        raise UserError(
            f"{where}.folds: there is no fold {late[0]}; allowed: 0 to {study.folds - 1} ('folds' of the study is "
            f"{study.folds})"
        )
    transpose = setting.preprocessing.transpose
    if transpose is not None and sorted(transpose) != [0, 1, 2]:
        raise UserError(f"{where}.preprocessing.transpose: {list(transpose)}; give 0, 1 and 2 in some order")
    _check_normalisation(setting.preprocessing.normalisation, f"{where}.preprocessing.normalisation")
    _check_network(setting.network, f"{where}.network")
    _check_training(setting.training, f"{where}.training")
    _check_first_stage(setting, study, f"{where}.stage1")
    _check_curriculum(setting, study, where)
    for key, value in vars(setting.augmentation).items():
        if key != "mirror_axes" and isinstance(value, tuple) and value[0] > value[1]:
            raise UserError(f"{where}.augmentation.{key}: {list(value)} is not allowed; two numbers, the smaller first")


def _check_normalisation(normalisation: str | IntensityRange | None, where: str) -> None:
    if isinstance(normalisation, IntensityRange) and normalisation.range[0] >= normalisation.range[1]:
        raise UserError(f"{where}.range: {list(normalisation.range)} is not allowed; two numbers, the smaller first")


def _check_network(network: Network, where: str) -> None:
    levels = network.fixed_levels
    if network.features is not None and len(network.features) != levels:
        raise UserError(f"{where}.features: {len(network.features)} numbers of channels, but levels is {levels}")
    for key in ("strides", "kernels"):
        entries = getattr(network, key)
        if entries is not None and len(entries) != levels:
            raise UserError(f"{where}.{key}: it has {len(entries)} entries for {levels} levels; give one for each")
    if network.strides is not None and network.for_patch is not None:
        raise UserError(f"{where}.for_patch: 'strides' say what it is there to say; remove one of them")
    if network.decoder_features is None:
        return
    if levels is None or len(network.decoder_features) != levels - 1:
        wanted = "'levels' or 'features' beside it" if levels is None else f"{levels - 1} of them, one less than levels"
        raise UserError(f"{where}.decoder_features: {len(network.decoder_features)} numbers of channels; give {wanted}")


def _check_training(training: Training, where: str) -> None:
    if training.class_weights != "none" and training.loss not in WEIGHTED_LOSSES:
        raise UserError(
            f"{where}.class_weights: '{training.class_weights}' weights a cross-entropy or focal loss, which the loss "
            f"'{training.loss}' has not; allowed: loss {' or '.join(WEIGHTED_LOSSES)}, or class_weights none"
        )
    if not isinstance(training.class_weights, str) and not any(training.class_weights):
        raise UserError(f"{where}.class_weights: all of them are 0, so that no voxel counts; give one that is above")
    if training.patience is not None and training.validation_iterations == 0:
        raise UserError(
            f"{where}.patience: it looks at the pseudo-Dice of validation patches, and validation_iterations is 0; "
            "set that to 1 or more, or remove patience"
        )


def _check_first_stage(setting: Setting, study: Study, where: str) -> None:
    for name in setting.stage1:
        require_name(name, [other.name for other in study.settings], where)
        _check_no_circle(setting.name, name, study, where)
        folds = study.folds_of(study.setting(name))
        if len(folds) < study.folds:
            raise UserError(
                f"{where}: '{name}' is trained on {len(folds)} of the {study.folds} folds; a second stage trains on "
                "predictions by networks that did not see the case, which takes all folds: remove its 'folds'"
            )


def _check_curriculum(setting: Setting, study: Study, where: str) -> None:
    if setting.phases and setting.training.samples is not None:
        raise UserError(
            f"{where}.training.samples: phases have batches of their own, so that the samples of the whole run do not "
            "say how many steps each phase takes; give epochs and iterations_per_epoch instead"
        )
    if setting.phases and setting.expansion is not None:
        raise UserError(f"{where}.phases: a setting with 'expansion' trains on one pair of patches; remove one of them")
    if setting.start is None:
        return
    require_name(setting.start, [other.name for other in study.settings], f"{where}.start")
    _check_no_circle(setting.name, setting.start, study, f"{where}.start")
    lacking = sorted(set(study.folds_of(setting)) - set(study.folds_of(study.setting(setting.start))))
    if lacking:
        raise UserError(
            f"{where}.start: '{setting.start}' is not trained on fold {lacking[0]}, which this setting is; give both "
            "the same 'folds'"
        )


def _needed(setting: Setting) -> tuple[str, ...]:
    """Settings that have to be trained before."""
    return setting.stage1 if setting.start is None else (*setting.stage1, setting.start)


def _check_no_circle(start: str, name: str, study: Study, where: str, seen: tuple[str, ...] = ()) -> None:
    if name == start:
        raise UserError(f"{where}: the settings refer to one another in a circle: {' -> '.join((start, *seen, name))}")
    for other in _needed(study.setting(name)) if name not in seen else ():
        if other in [setting.name for setting in study.settings]:
            _check_no_circle(start, other, study, where, (*seen, name))


def _check_ensemble(ensemble: Ensemble, study: Study, settings: Sequence[str], where: str) -> None:
    if ensemble.name in settings:
        raise UserError(f"{where}: a setting has this name already; choose another one")
    for member in ensemble.members:
        require_name(member, settings, f"{where}.members")
    if len({study.folds_of(study.setting(member)) for member in ensemble.members}) > 1:
        raise UserError(f"{where}.members: the settings are trained on different folds; give them the same 'folds'")


def _check_sweep(sweep: Sweep, study: Study, models: Sequence[str], where: str) -> None:
    if [other.title for other in study.sweeps].count(sweep.title) > 1:
        raise UserError(f"{where}.title: another sweep has this title; choose another one")
    for point, members in sweep.points.items():
        for member in members:
            require_name(member, models, f"{where}.points.{point}")
