"""A study file: read, resolved into a study (defaults, grid, inheritance, repeats), and held against itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from megavoxel.config.classification import (
    SMALL,
    Cells,
    ClassificationFile,
    ClassificationKeys,
    ClassificationStudy,
    ClassifierEnsemble,
    ClassifierSetting,
)
from megavoxel.config.records import from_file, from_plain
from megavoxel.config.setting import Setting
from megavoxel.config.study import Ensemble, SegmentationKeys, Study, StudyFile, Sweep
from megavoxel.config.yaml_files import read_yaml
from megavoxel.errors import UserError, closest

Keys = dict[str, Any]
RESERVED = {"ensembles", "preprocessed", "report"}
AXES = ("network", "resolution", "images_per_class", "workers", "data_partition", "learning_rate")
"""Keys of a grid's entry that may be lists; the entry stands for all their combinations."""


def load_study(path: Path) -> Study | ClassificationStudy:
    """Reads, checks and resolves a study file.

    Raises:
        UserError: one line that names the file, the key and the allowed values.
    """
    return parse_study(read_yaml(path), source=str(path))


def parse_study(values: Keys, *, source: str) -> Study | ClassificationStudy:
    """Checks and resolves a study given as plain data; `source` names the file in errors."""
    if values.get("task") == "classification":
        return _parse_classification(values, source)
    file = from_file(StudyFile, values, where=source, partial=True)
    settings, families = _settings(values["settings"], values, Setting, source)
    study = Study(
        name=file.study,
        settings=settings,
        ensembles=tuple(
            Ensemble(name=name, members=_named_repeats(keys.members, families), postprocess=keys.postprocess)
            for name, keys in file.ensembles.items()
        ),
        sweeps=tuple(
            Sweep(name=name, title=keys.title, points=_points(keys.points, families))
            for name, keys in file.sweeps.items()
        ),
        **_own_keys(file, SegmentationKeys),
    )
    _check_segmentation(study, source)
    return study


def _parse_classification(values: Keys, source: str) -> ClassificationStudy:
    file = from_file(ClassificationFile, values, where=source, partial=True)
    if file.settings is None and not file.grid:
        raise UserError(f"{source}: the key 'settings' or 'grid' is missing; one of them says what is compared")
    written = {**_grid_settings(values, source), **(values.get("settings", {}))}
    settings, families = _settings(written, values, ClassifierSetting, source)
    study = ClassificationStudy(
        name=file.study,
        settings=settings,
        ensembles=tuple(
            ClassifierEnsemble(name=name, members=_named_repeats(keys.members, families))
            for name, keys in file.ensembles.items()
        ),
        **_own_keys(file, ClassificationKeys),
    )
    _check_classification(study, source)
    return study


def _own_keys(file: StudyFile | ClassificationFile, kind: type) -> Keys:
    return {field.name: getattr(file, field.name) for field in fields(kind)}


def _settings(
    written: Mapping[str, Keys | None], values: Keys, kind: type, source: str
) -> tuple[tuple[Any, ...], dict[str, tuple[str, ...]]]:
    """All settings, and the names that each name written in the study stands for."""
    whole = {name: _inherit(name, written, values.get("defaults", {}), source, ()) for name in written}
    resolved, families = _repeat_settings(whole, source)
    settings = tuple(
        from_plain(kind, {"name": name, **keys}, where=source, at=("settings", name)) for name, keys in resolved.items()
    )
    return settings, families


def with_memory(study: Study, memory_gib: float | None) -> Study:
    """The study with `memory_gib` (of its device) in every setting that leaves its own open."""
    return replace(study, settings=tuple(planned_for(setting, memory_gib) for setting in study.settings))


def planned_for(setting: Setting, memory_gib: float | None) -> Setting:
    """The setting with `memory_gib` (of a device), unless it has its own or a preset that says it."""
    if setting.memory_gib is not None or setting.network.preset is not None:
        return setting
    return replace(setting, memory_gib=memory_gib)


def merge(base: Keys, over: Keys) -> Keys:
    """`over` laid on `base`, dictionaries merged key by key; neither argument is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _inherit(
    name: str, settings: Mapping[str, Keys | None], defaults: Keys, source: str, heirs: tuple[str, ...]
) -> Keys:
    """The keys of a setting with the study's defaults and what it inherits."""
    if name in heirs:
        raise UserError(f"{source}: settings.{heirs[0]}.inherits goes round in a circle: {' -> '.join((*heirs, name))}")
    own = dict(settings[name] or {})
    parent = own.pop("inherits", None)
    if parent is None:
        return merge(defaults, own)
    _require_name(parent, list(settings), f"{source}: settings.{name}.inherits")
    return merge(_inherit(parent, settings, defaults, source, (*heirs, name)), own)


# Repeats: `seeds` makes a setting of each seed, and a sweep's point of all of them.


def _repeat_settings(settings: Mapping[str, Keys], source: str) -> tuple[dict[str, Keys], dict[str, tuple[str, ...]]]:
    """Each setting with `seeds` as one setting per seed, named NAME-seedN.

    Args:
        settings: keys by name, with what they inherit.

    Returns:
        the settings, none of which has `seeds`, and the names that each name written in the study stands for.

    Raises:
        UserError: a setting has both `seed` and `seeds`, or a repeat has the name of another setting.
    """
    repeated: dict[str, Keys] = {}
    families: dict[str, tuple[str, ...]] = {}
    for name, keys in settings.items():
        own = dict(keys)
        seeds = own.pop("seeds", None)
        if seeds is not None and "seed" in own:
            raise UserError(f"{source}: settings.{name}: it has both 'seed' and 'seeds'; keep one of them")
        copies = {name: own} if seeds is None else {f"{name}-seed{seed}": {**own, "seed": seed} for seed in seeds}
        taken = [copy for copy in copies if copy in repeated or (copy != name and copy in settings)]
        if taken:
            raise UserError(f"{source}: settings.{name}.seeds: there is another setting '{taken[0]}'; rename it")
        repeated |= copies
        families[name] = tuple(copies)
    return {name: _with_repeats_alike(name, keys, families, source) for name, keys in repeated.items()}, families


def _with_repeats_alike(name: str, keys: Keys, families: Mapping[str, Sequence[str]], source: str) -> Keys:
    """The keys with `stage1` and `start` naming settings that exist: of repeats, the one with the same seed."""
    changed = dict(keys)
    if keys.get("stage1"):
        changed["stage1"] = [
            _repeat_alike(keys, other, families, f"{source}: settings.{name}.stage1") for other in keys["stage1"]
        ]
    if isinstance(keys.get("start"), str):
        changed["start"] = _repeat_alike(keys, keys["start"], families, f"{source}: settings.{name}.start")
    return changed


def _repeat_alike(keys: Keys, other: str, families: Mapping[str, Sequence[str]], where: str) -> str:
    repeats = families.get(other, (other,))
    if repeats == (other,):
        return other
    alike = f"{other}-seed{keys.get('seed')}"
    if alike not in repeats:
        raise UserError(
            f"{where}: '{other}' has repeats ({', '.join(repeats)}), and none with the seed "
            "of this setting; give both the same 'seeds', or name one repeat"
        )
    return alike


def _named_repeats(names: Sequence[str], families: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The settings that some names of the study stand for; names of ensembles and single repeats stand as they are."""
    return tuple(member for name in names for member in families.get(name, (name,)))


def _points(
    points: Mapping[str, str | tuple[str, ...]], families: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Points of a sweep; one that is a name stands for a list of that name alone, or of its repeats."""
    return {
        point: _named_repeats([models] if isinstance(models, str) else models, families)
        for point, models in points.items()
    }


# The grid of a study of classification.


def _grid_settings(values: Keys, source: str) -> dict[str, Keys]:
    """The settings that the grid of a study file stands for, by name, without defaults.

    A name is NETWORK-RESOLUTION-IMAGESpc-WORKERSw, with the partition or the learning rate behind it where an entry
    lists several of them.

    Raises:
        UserError: two cells have the same name, or a name that is taken.
    """
    found: dict[str, Keys] = {}
    for number, entry in enumerate(values.get("grid", ())):
        lists = {key: entry[key] if isinstance(entry[key], list) else [entry[key]] for key in AXES if key in entry}
        for point in itertools.product(*lists.values()):
            cell = {**entry, **dict(zip(lists, point, strict=True))}
            name = _cell_name(cell, values.get("defaults", {}), [key for key in lists if len(lists[key]) > 1])
            if name in found or name in (values.get("settings", {})):
                raise UserError(
                    f"{source}: grid.{number}: there is a setting '{name}' already; cells must differ in network, "
                    "resolution, images_per_class or workers, or list the rates or partitions in one entry"
                )
            found[name] = _as_setting(cell)
    return found


def _as_setting(cell: Keys) -> Keys:
    """A cell with its learning rate where settings have it."""
    keys = dict(cell)
    rate = keys.pop("learning_rate", None)
    return keys if rate is None else {**keys, "training": {**keys.get("training", {}), "learning_rate": rate}}


def _cell_name(cell: Keys, defaults: Keys, varied: list[str]) -> str:
    assumed = {"network": Cells.network, "resolution": Cells.resolution, "images_per_class": "all", "workers": 1}
    keys = {**assumed, **defaults, **cell}
    name = f"{keys['network']}-{keys['resolution']}-{keys['images_per_class']}pc-{keys['workers']}w"
    if "data_partition" in varied:
        name += f"-{keys['data_partition']}"
    if "learning_rate" in varied:
        name += f"-lr{keys['learning_rate']:g}".replace(".", "_")
    return name


# Rules over a whole study: names that must exist, and folds that must agree.


def _check_segmentation(study: Study, source: str) -> None:
    """Holds a resolved study against itself.

    Raises:
        UserError: a name that is reserved, taken twice or unknown, or a fold that the study does not have; with the
            file (`source`) and key.
    """
    names = [setting.name for setting in study.settings]
    validated = [setting.name for setting in study.settings if study.folds_of(setting)]
    for name in filter(None, (study.baseline, *(member for own in study.ensembles for member in own.members))):
        _require_validated(name, names, validated, source)
    _check_common(study, names, source)
    if not study.validates:
        _check_needs_no_validation(study, source)
    for setting in study.settings:
        _check_first_stage(setting, study, f"{source}: settings.{setting.name}.stage1")
        _check_start(setting, study, f"{source}: settings.{setting.name}.start")
    models = [*validated, *(ensemble.name for ensemble in study.ensembles)]
    for sweep in study.sweeps:
        _check_sweep(sweep, study, models, f"{source}: sweeps.{sweep.name}")


def _check_classification(study: ClassificationStudy, source: str) -> None:
    """Holds a resolved study of classification against itself.

    Raises:
        UserError: as `_check_segmentation`, or weights that are missing.
    """
    _check_common(study, list(study.cells), source)
    for setting in study.settings:
        _check_weights(setting, study, f"{source}: settings.{setting.name}.pretrained")
        _check_search(setting, study, f"{source}: settings.{setting.name}.training.search")
    for ensemble in study.ensembles:
        _check_reserved(ensemble.name, f"{source}: ensembles.{ensemble.name}")


def _check_needs_no_validation(study: Study, source: str) -> None:
    needing = {"timing.split": study.timing is not None and study.timing.split == "validation"}
    for setting in study.settings:
        needing[f"settings.{setting.name}.stage1"] = bool(setting.stage1)
        needing[f"settings.{setting.name}.training.patience"] = setting.training.patience is not None
    for key in (key for key, needs in needing.items() if needs):
        raise UserError(
            f"{source}: {key}: it needs validation cases, and a study of one fold has none; set folds to 2 or more, or "
            "leave it out"
        )


def _require_validated(name: str, names: Sequence[str], validated: Sequence[str], source: str) -> None:
    if name in names and name not in validated:
        raise UserError(
            f"{source}: settings.{name}.folds: one network on all cases, of which nothing is validated, so that it "
            "cannot be a baseline or a member of an ensemble; give the setting folds beside 'all'"
        )


def _require_name(name: str, names: Sequence[str], where: str) -> None:
    """Refuses a name that is none of `names`.

    Raises:
        UserError: with the names that are allowed.
    """
    if name not in names:
        raise UserError(f"{where}: there is no setting '{name}'; allowed: {', '.join(names)}{closest(name, names)}")


def _check_common(study: Study | ClassificationStudy, baselines: Sequence[str], source: str) -> None:
    if study.baseline is not None:
        _require_name(study.baseline, baselines, f"{source}: baseline")
    for setting in study.settings:
        _check_name_and_folds(setting, study, f"{source}: settings.{setting.name}")
    names = [setting.name for setting in study.settings]
    for ensemble in study.ensembles:
        _check_ensemble(ensemble, study, names, f"{source}: ensembles.{ensemble.name}")


def _check_name_and_folds(setting: Setting | ClassifierSetting, study: Study | ClassificationStudy, where: str) -> None:
    _check_reserved(setting.name, where)
    late = [fold for fold in study.folds_of(setting) if fold >= study.folds]
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
        _require_name(member, settings, f"{where}.members")
    if len({study.folds_of(study.setting(member)) for member in ensemble.members}) > 1:
        raise UserError(f"{where}.members: the settings are trained on different folds; give them the same 'folds'")


def _check_search(setting: ClassifierSetting, study: ClassificationStudy, where: str) -> None:
    if setting.training.search and not study.validates:
        raise UserError(
            f"{where}: it chooses by validation images, and a study of one fold has none; set folds to 2 or more"
        )


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
        _require_name(name, [other.name for other in study.settings], where)
        _check_no_circle(setting.name, name, study, where)
        folds = study.folds_of(study.setting(name))
        if len(folds) < study.folds:
            raise UserError(
                f"{where}: '{name}' is trained on {len(folds)} of the {study.folds} folds; a second stage trains on "
                "predictions by networks that did not see the case, which takes all folds: remove its 'folds'"
            )


def _check_start(setting: Setting, study: Study, where: str) -> None:
    start = setting.start_setting
    if start is None:
        return
    _require_name(start, [other.name for other in study.settings], where)
    _check_no_circle(setting.name, start, study, where)
    there = study.networks_of(study.setting(start))
    lacking = [fold for fold in study.networks_of(setting) if fold not in there]
    if lacking:
        raise UserError(
            f"{where}: '{start}' is not trained on fold {lacking[0]}, which this setting is; give both the same 'folds'"
        )


def _needed(setting: Setting) -> tuple[str, ...]:
    """Settings that have to be trained before."""
    return setting.stage1 if setting.start_setting is None else (*setting.stage1, setting.start_setting)


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
            _require_name(member, models, f"{where}.points.{point}")
