"""A study file: read, checked against the schema, and resolved into a `Study`: defaults, inheritance, repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from megavoxel.config.classification import ClassificationStudy
from megavoxel.config.classification_file import grid_settings, parse_classification
from megavoxel.config.records import from_plain
from megavoxel.config.references import check_references, require_name
from megavoxel.config.repeats import named_repeats, repeat_settings
from megavoxel.config.schema import read_yaml, validate
from megavoxel.config.study import Ensemble, Partitions, Setting, Study, Sweep, Timing
from megavoxel.errors import UserError


def load_study(path: Path) -> Study | ClassificationStudy:
    """Reads, checks and resolves a study file.

    Raises:
        UserError: one line that names the file, the key and the allowed values.
    """
    return parse_study(read_yaml(path), source=str(path))


def parse_study(values: dict[str, Any], *, source: str) -> Study | ClassificationStudy:
    """Checks and resolves a study given as plain data; `source` names the file in errors."""
    if values.get("task") == "classification":
        written = {**grid_settings(values, source), **values.get("settings", {})}
        return parse_classification(values, _inherited(written, values, source), source=source)
    validate(values, "study", source=source)
    written = values["settings"]
    whole = {name: _spelled_out(keys) for name, keys in _inherited(written, values, source).items()}
    resolved, families = repeat_settings(whole, source)
    ensembles = values.get("ensembles", {})
    study = Study(
        name=values["study"],
        settings=tuple(
            from_plain(Setting, {"name": name, **keys}, where=f"{source}: settings.{name}")
            for name, keys in resolved.items()
        ),
        ensembles=tuple(
            from_plain(Ensemble, {"name": name, **keys}, where=f"{source}: ensembles.{name}")
            for name, keys in ensembles.items()
        ),
        partitions=_partitions(values, source),
        timing=_timing(values.get("timing"), source),
        sweeps=tuple(_sweep(name, keys, families, source) for name, keys in values.get("sweeps", {}).items()),
        **{key: values[key] for key in ("dataset", "hardware", "folds", "seed", "shards", "baseline") if key in values},
    )
    check_references(study, source)
    return study


def with_memory(study: Study, memory_gib: float | None) -> Study:
    """The study with `memory_gib` (of its device) in every setting that leaves its own open."""
    settings = (
        replace(setting, memory_gib=memory_gib) if setting.memory_gib is None else setting for setting in study.settings
    )
    return replace(study, settings=tuple(settings))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, dictionaries merged key by key; neither argument is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _inherited(written: dict[str, Any], values: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The keys of each setting with the study's defaults and what it inherits."""
    return {name: _inherit(name, written, values.get("defaults", {}), source, ()) for name in written}


def _inherit(name: str, settings: dict, defaults: dict, source: str, heirs: tuple[str, ...]) -> dict[str, Any]:
    if name in heirs:
        raise UserError(f"{source}: settings.{heirs[0]}.inherits goes round in a circle: {' -> '.join((*heirs, name))}")
    own = dict(settings[name] or {})
    parent = own.pop("inherits", None)
    if parent is None:
        return merge(defaults, own)
    require_name(parent, list(settings), f"{source}: settings.{name}.inherits")
    return merge(_inherit(parent, settings, defaults, source, (*heirs, name)), own)


def _spelled_out(setting: dict[str, Any]) -> dict[str, Any]:
    """`parallel: auto` as None, so that the key holds a mapping or nothing; one factor of an expansion as three."""
    changed = dict(setting)
    if changed.get("parallel") == "auto":
        changed["parallel"] = None
    expansion = changed.get("expansion")
    if expansion is not None and not isinstance(expansion["factor"], list):
        changed["expansion"] = {**expansion, "factor": [expansion["factor"]] * 3}
    return changed


def _partitions(values: dict[str, Any], source: str) -> Partitions | None:
    if "partitions" not in values:
        return None
    return from_plain(Partitions, values["partitions"], where=f"{source}: partitions")


def _timing(written: dict[str, Any] | bool | None, source: str) -> Timing | None:
    """`true` stands for the defaults."""
    if written is None or written is False:
        return None
    return from_plain(Timing, {} if written is True else written, where=f"{source}: timing")


def _sweep(name: str, keys: dict[str, Any], families: dict[str, list[str]], source: str) -> Sweep:
    """A sweep; a point that is one name stands for a list of that name alone, or of the repeats of that setting."""
    points = {
        point: named_repeats([models] if isinstance(models, str) else models, families)
        for point, models in keys["points"].items()
    }
    return from_plain(Sweep, {"name": name, **keys, "points": points}, where=f"{source}: sweeps.{name}")
