"""The software, data and hardware of a study's runs by their manifests, and whether all runs had the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

import megavoxel
from megavoxel.reporting.stored import Stored

MISSING, NONE = "not recorded", "none"
RUNS_NAMED = 6
TOOLS = ("code.", "container", "versions.", "hardware.", "device", "devices", "precision.name", "threads")
"""Beginnings of the keys that tell with what a run was made."""
DATA = ("data.dataset", "data.checksums_sha256", "seed")
SAME = ("code.version", "code.commit", "container", "versions.", "data.checksums_sha256")
"""Beginnings of the keys whose values should be the same for all runs that are compared."""


def provenance_table(stored: Stored) -> pd.DataFrame:
    """One line per entry and value: `Entry`, `Value`, and the `Runs` that have it; the hours of all runs come first."""
    hours = sum(history["seconds"].sum() for _, history in _histories(stored)) / 3600
    first = {"Entry": "training hours, all runs", "Value": f"{hours:.3g}", "Runs": _all(_run_count(stored))}
    rows = [
        {"Entry": key, "Value": value, "Runs": _named(runs, _run_count(stored))}
        for key, values in _entries(stored, (*DATA, *TOOLS)).items()
        for value, runs in values.items()
    ]
    return pd.DataFrame([first, *rows], columns=["Entry", "Value", "Runs"])


def differing(stored: Stored) -> list[str]:
    """One line per entry that differs between runs and should not."""
    return [
        f"{key}: " + "; ".join(f"{value} ({_named(runs, _run_count(stored))})" for value, runs in values.items())
        for key, values in _entries(stored, SAME).items()
        if len(values) > 1
    ]


def results_date(stored: Stored) -> str:
    """The last date on which one of the runs was written, as `2026-11-30` (UTC); empty where none is recorded."""
    found = _entries(stored, ("written",)).get("written", {})
    return max([value for value in found if value[:1].isdigit()], default="")


def results_versions(stored: Stored) -> list[str]:
    """The versions of megavoxel that made the runs; the one that makes the page where none is recorded."""
    found = [value for value in _entries(stored, ("code.version",)).get("code.version", {}) if value[:1].isdigit()]
    return sorted(found) or [megavoxel.__version__]


def without_manifest(stored: Stored) -> list[str]:
    """The runs that have none."""
    return [_run(*run) for run, _ in _histories(stored) if run[1] not in stored.manifests[run[0]]]


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings, their keys joined by dots."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _entries(stored: Stored, beginnings: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Runs by value by key, of the manifests that exist; also of a run that lacks a key which others have."""
    flat = {
        _run(setting, fold): dict(flattened(manifest))
        for setting, manifests in stored.manifests.items()
        for fold, manifest in manifests.items()
    }
    keys = [
        key for key in dict.fromkeys(key for entries in flat.values() for key in entries) if key.startswith(beginnings)
    ]
    found: dict[str, dict[str, list[str]]] = {key: {} for key in sorted(keys, key=lambda key: _place(key, beginnings))}
    for key, values in found.items():
        for run, entries in flat.items():
            values.setdefault(_value(entries, key), []).append(run)
        values.pop("", None)
    return found


def _value(entries: Mapping[str, Any], key: str) -> str:
    """The value that a run states for a key; empty where it states several, under keys below it."""
    if key in entries:
        return NONE if entries[key] is None else str(entries[key])
    if any(other.startswith(f"{key}.") for other in entries):
        return ""
    return NONE if key.rpartition(".")[0] in entries else MISSING


def _place(key: str, beginnings: tuple[str, ...]) -> int:
    return next(number for number, beginning in enumerate(beginnings) if key.startswith(beginning))


def _histories(stored: Stored) -> Iterator[tuple[tuple[str, int], pd.DataFrame]]:
    for setting, histories in stored.histories.items():
        for fold, history in histories.items():
            yield (setting, fold), history


def _run_count(stored: Stored) -> int:
    return sum(map(len, stored.histories.values()))


def _run(setting: str, fold: int) -> str:
    return f"{setting} fold {fold}"


def _named(runs: list[str], total: int) -> str:
    if len(runs) == total:
        return _all(total)
    more = f" and {len(runs) - RUNS_NAMED} more" if len(runs) > RUNS_NAMED else ""
    return f"{len(runs)} of {total}: {', '.join(runs[:RUNS_NAMED])}{more}"


def _all(total: int) -> str:
    return "all" if total != 1 else "the only one"
