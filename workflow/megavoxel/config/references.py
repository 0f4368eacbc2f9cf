"""Rules over a whole study: names that must exist, and folds that must agree."""

from __future__ import annotations

from collections.abc import Sequence

from megavoxel.config.classification import SMALL, ClassificationStudy, ClassifierEnsemble, ClassifierSetting
from megavoxel.config.study import Ensemble, Setting, Study, Sweep
from megavoxel.errors import UserError, closest

RESERVED = {"ensembles", "preprocessed", "report"}


def check_segmentation(study: Study, source: str) -> None:
    """Holds a resolved study against itself.

    Raises:
        UserError: a name that is reserved, taken twice or unknown, or a fold that the study does not have; with the
            file (`source`) and key.
    """
    names = [setting.name for setting in study.settings]
    _check_common(study, names, source)
    for setting in study.settings:
        _check_first_stage(setting, study, f"{source}: settings.{setting.name}.stage1")
        _check_start(setting, study, f"{source}: settings.{setting.name}.start")
    models = [*names, *(ensemble.name for ensemble in study.ensembles)]
    for sweep in study.sweeps:
        _check_sweep(sweep, study, models, f"{source}: sweeps.{sweep.name}")


def check_classification(study: ClassificationStudy, source: str) -> None:
    """Holds a resolved study of classification against itself.

    Raises:
        UserError: as `check_segmentation`, or weights that are missing.
    """
    _check_common(study, list(study.cells), source)
    for setting in study.settings:
        _check_weights(setting, study, f"{source}: settings.{setting.name}.pretrained")
    for ensemble in study.ensembles:
        _check_reserved(ensemble.name, f"{source}: ensembles.{ensemble.name}")


def require_name(name: str, names: Sequence[str], where: str) -> None:
    """Refuses a name that is none of `names`.

    Raises:
        UserError: with the names that are allowed.
    """
    if name not in names:
        raise UserError(f"{where}: there is no setting '{name}'; allowed: {', '.join(names)}{closest(name, names)}")


def _check_common(study: Study | ClassificationStudy, baselines: Sequence[str], source: str) -> None:
    if study.baseline is not None:
        require_name(study.baseline, baselines, f"{source}: baseline")
    for setting in study.settings:
        _check_name_and_folds(setting, study, f"{source}: settings.{setting.name}")
    names = [setting.name for setting in study.settings]
    for ensemble in study.ensembles:
        _check_ensemble(ensemble, study, names, f"{source}: ensembles.{ensemble.name}")


def _check_name_and_folds(setting: Setting | ClassifierSetting, study: Study | ClassificationStudy, where: str) -> None:
    _check_reserved(setting.name, where)
    late = [fold for fold in setting.folds or () if fold >= study.folds]
    if late:
        raise UserError(
            f"{where}.folds: there is no fold {late[0]}; allowed: 0 to {study.folds - 1} ('folds' of the study is "
            f"{study.folds})"
        )


def _check_reserved(name: str, where: str) -> None:
    if name in RESERVED:
        raise UserError(f"{where}: this name is reserved for a folder of the workflow; choose another one")


def _check_ensemble(
    ensemble: Ensemble | ClassifierEnsemble, study: Study | ClassificationStudy, settings: Sequence[str], where: str
) -> None:
    if ensemble.name in settings:
        raise UserError(f"{where}: a setting has this name already; choose another one")
    for member in ensemble.members:
        require_name(member, settings, f"{where}.members")
    if len({study.folds_of(study.setting(member)) for member in ensemble.members}) > 1:
        raise UserError(f"{where}.members: the settings are trained on different folds; give them the same 'folds'")


def _check_weights(setting: ClassifierSetting, study: ClassificationStudy, where: str) -> None:
    if setting.pretrained and setting.network == SMALL:
        raise UserError(f"{where}: there are no published weights of the network '{SMALL}'; leave it out")
    if setting.pretrained and setting.network not in study.weights:
        raise UserError(
            f"{where}: the study has no weights of {setting.network}; give their file or url under "
            f"weights.{setting.network}, or leave pretrained out"
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


def _check_start(setting: Setting, study: Study, where: str) -> None:
    if setting.start is None:
        return
    require_name(setting.start, [other.name for other in study.settings], where)
    _check_no_circle(setting.name, setting.start, study, where)
    lacking = sorted(set(study.folds_of(setting)) - set(study.folds_of(study.setting(setting.start))))
    if lacking:
        raise UserError(
            f"{where}: '{setting.start}' is not trained on fold {lacking[0]}, which this setting is; give both "
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


def _check_sweep(sweep: Sweep, study: Study, models: Sequence[str], where: str) -> None:
    if [other.title for other in study.sweeps].count(sweep.title) > 1:
        raise UserError(f"{where}.title: another sweep has this title; choose another one")
    for point, members in sweep.points.items():
        for member in members:
            require_name(member, models, f"{where}.points.{point}")
