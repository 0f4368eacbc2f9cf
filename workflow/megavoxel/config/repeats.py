"""Repeats of a setting: `seeds` makes a setting of each seed, and a sweep's point of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megavoxel.errors import UserError

Keys = dict[str, Any]


def repeat_settings(settings: Mapping[str, Keys], source: str) -> tuple[dict[str, Keys], dict[str, list[str]]]:
    """Each setting with `seeds` as one setting per seed, named NAME-seedN.

    Args:
        settings: keys by name, with what they inherit.
        source: the study file, for messages.

    Returns:
        the settings, none of which has `seeds`, and the names that each name written in the study stands for.

    Raises:
        UserError: a setting has both `seed` and `seeds`, or a repeat has the name of another setting.
    """
    repeated: dict[str, Keys] = {}
    families: dict[str, list[str]] = {}
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
        families[name] = list(copies)
    return {name: _with_repeats_alike(name, keys, families, source) for name, keys in repeated.items()}, families


def _with_repeats_alike(name: str, keys: Keys, families: Mapping[str, list[str]], source: str) -> Keys:
    """The keys with `stage1` and `start` naming settings that exist: of repeats, the one with the same seed."""
    changed = dict(keys)
    if "stage1" in keys:
        changed["stage1"] = [
            _repeat_alike(keys, other, families, f"{source}: settings.{name}.stage1") for other in keys["stage1"]
        ]
    if "start" in keys:
        changed["start"] = _repeat_alike(keys, keys["start"], families, f"{source}: settings.{name}.start")
    return changed


def _repeat_alike(keys: Keys, other: str, families: Mapping[str, list[str]], where: str) -> str:
    repeats = families.get(other, [other])
    if repeats == [other]:
        return other
    alike = f"{other}-seed{keys.get('seed')}"
    if alike not in repeats:
        raise UserError(
            f"{where}: '{other}' has repeats ({', '.join(repeats)}), and none with the seed "
            "of this setting; give both the same 'seeds', or name one repeat"
        )
    return alike


def named_repeats(names: Sequence[str], families: Mapping[str, list[str]]) -> list[str]:
    """The settings that some names of the study stand for; names of ensembles and single repeats stand as they are."""
    return [member for name in names for member in families.get(name, [name])]
