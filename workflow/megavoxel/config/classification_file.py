"""A study file of image classification, resolved: defaults, grid, inheritance, repeats, and names that must exist."""

from __future__ import annotations

import itertools
from typing import Any

from megavoxel.config.classification import (
    SMALL,
    ClassificationStudy,
    ClassifierEnsemble,
    ClassifierSetting,
    PublishedWeights,
)
from megavoxel.config.records import from_plain
from megavoxel.config.references import RESERVED, require_name
from megavoxel.config.repeats import named_repeats, repeat_settings
from megavoxel.config.schema import validate
from megavoxel.errors import UserError

AXES = ("network", "resolution", "images_per_class", "workers", "data_partition", "learning_rate")
"""Keys of a grid's entry that may be lists; the entry stands for all their combinations."""
OWN_KEYS = ("dataset", "task", "hardware", "folds", "seed", "baseline")


def parse_classification(values: dict[str, Any], written: dict[str, Any], *, source: str) -> ClassificationStudy:
    """Resolves a study given as plain data.

    Args:
        values: the study file, checked against its schema.
        written: keys of each setting by name, with defaults and what it inherits, those of the grid among them.
        source: names the file in errors.

    Raises:
        UserError: two settings have one name, a name is reserved or unknown, weights are missing, or keys contradict
            one another.
    """
    resolved, families = repeat_settings(written, source)
    study = ClassificationStudy(
        name=values["study"],
        settings=tuple(
            from_plain(ClassifierSetting, {"name": name, **keys}, where=f"{source}: settings.{name}")
            for name, keys in resolved.items()
        ),
        ensembles=tuple(
            ClassifierEnsemble(name=name, members=tuple(named_repeats(keys["members"], families)))
            for name, keys in values.get("ensembles", {}).items()
        ),
        weights={
            network: from_plain(PublishedWeights, keys, where=f"{source}: weights.{network}")
            for network, keys in values.get("weights", {}).items()
        },
        **{key: values[key] for key in OWN_KEYS if key in values},
    )
    _check(study, source)
    return study


def grid_settings(values: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The settings that the grid of a study file stands for, by name, without defaults.

    A name is NETWORK-RESOLUTION-IMAGESpc-WORKERSw, with the partition or the learning rate behind it where an entry
    lists several of them.

    Raises:
        UserError: two cells have the same name, or a name that is taken.
    """
    validate(values, "classification", source=source)
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(values.get("grid", ())):
        lists = {key: entry[key] if isinstance(entry[key], list) else [entry[key]] for key in AXES if key in entry}
        for point in itertools.product(*lists.values()):
            cell = {**entry, **dict(zip(lists, point, strict=True))}
            name = _cell_name(cell, values.get("defaults", {}), [key for key in lists if len(lists[key]) > 1])
            if name in found or name in values.get("settings", {}):
                raise UserError(
                    f"{source}: grid.{number}: there is a setting '{name}' already; cells must differ in network, "
                    "resolution, images_per_class or workers, or list the rates or partitions in one entry"
                )
            found[name] = _as_setting(cell)
    return found


def _as_setting(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell with its learning rate where settings have it."""
    keys = dict(cell)
    if "learning_rate" in keys:
        keys["training"] = {**keys.get("training", {}), "learning_rate": keys.pop("learning_rate")}
    return keys


def _cell_name(cell: dict[str, Any], defaults: dict[str, Any], varied: list[str]) -> str:
    keys = {"network": "resnet50", "resolution": 224, "images_per_class": "all", "workers": 1, **defaults, **cell}
    name = f"{keys['network']}-{keys['resolution']}-{keys['images_per_class']}pc-{keys['workers']}w"
    if "data_partition" in varied:
        name += f"-{keys['data_partition']}"
    if "learning_rate" in varied:
        name += f"-lr{keys['learning_rate']:g}".replace(".", "_")
    return name


def _check(study: ClassificationStudy, source: str) -> None:
    names = [setting.name for setting in study.settings]
    if study.baseline is not None:
        require_name(study.baseline, list(study.cells), f"{source}: baseline")
    for setting in study.settings:
        _check_setting(setting, study, f"{source}: settings.{setting.name}")
    for ensemble in study.ensembles:
        _check_ensemble(ensemble, study, names, f"{source}: ensembles.{ensemble.name}")


def _check_setting(setting: ClassifierSetting, study: ClassificationStudy, where: str) -> None:
    if setting.name in RESERVED:
        raise UserError(f"{where}: this name is reserved for a folder of the workflow; choose another one")
    late = [fold for fold in setting.folds or () if fold >= study.folds]
    if late:
        raise UserError(f"{where}.folds: there is no fold {late[0]}; allowed: 0 to {study.folds - 1}")
    if setting.pretrained and setting.network == SMALL:
        raise UserError(f"{where}.pretrained: there are no published weights of the network '{SMALL}'; leave it out")
    if setting.pretrained and setting.network not in study.weights:
        raise UserError(
            f"{where}.pretrained: the study has no weights of {setting.network}; give their file or url under "
            f"weights.{setting.network}, or leave pretrained out"
        )
    for key, value in vars(setting.augmentation).items():
        if isinstance(value, tuple) and value[0] > value[1]:
            raise UserError(f"{where}.augmentation.{key}: {list(value)} is not allowed; two numbers, the smaller first")


def _check_ensemble(ensemble: ClassifierEnsemble, study: ClassificationStudy, names: list[str], where: str) -> None:
    if ensemble.name in {*names, *RESERVED}:
        raise UserError(f"{where}: this name is taken; choose another one")
    for member in ensemble.members:
        require_name(member, names, f"{where}.members")
    if len({study.folds_of(study.setting(member)) for member in ensemble.members}) > 1:
        raise UserError(f"{where}.members: they are trained on different folds; give them the same 'folds'")
