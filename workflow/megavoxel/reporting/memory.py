"""Peak memory of training, measured and forecast: of settings, ensembles, points of sweeps and cascades."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from megavoxel.planning.plan import Plan
from megavoxel.reporting.stored import Stored

PEAK_COLUMNS = ("peak_gib", "forecast_gib")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most that PyTorch allocates on one device in training, in GiB; NaN where no run states it."""

    measured: float
    forecast: float


NONE = Peak(measured=math.nan, forecast=math.nan)


def own_peaks(stored: Stored) -> dict[str, Peak]:
    """By model: of a setting the largest of its folds, of an ensemble the largest of its members.

    The figures are those of `peak_memory` in the manifests. Folds without one are passed over; an ensemble with a
    member that has none has none.
    """
    peaks = {setting: _of_folds(stored.manifests[setting].values()) for setting in stored.definition.settings}
    ensembles = stored.definition.ensembles.items()
    return peaks | {name: largest(peaks[member] for member in members) for name, members in ensembles}


def cascade_peaks(stored: Stored) -> dict[str, Peak]:
    """By model, as `own_peaks`, but for a setting with a first stage the largest of all stages: what one has to have
    to train the whole cascade, as table 3 of Wang et al. 2022 states it."""
    own = own_peaks(stored)
    settings = {
        setting: largest(own.get(stage, NONE) for stage in stages_of(setting, stored.plans)) for setting in stored.plans
    }
    ensembles = stored.definition.ensembles.items()
    return settings | {name: largest(settings[member] for member in members) for name, members in ensembles}


def stages_of(setting: str, plans: Mapping[str, Plan]) -> list[str]:
    """A setting and all settings whose predictions it, or one of them, is given."""
    stages = [setting]
    for stage in stages:
        stages += [name for name in plans[stage].stage1 if name not in stages] if stage in plans else []
    return stages


def largest(peaks: Iterable[Peak]) -> Peak:
    """The largest of several peaks, measured and forecast each for itself; NaN where one of them is."""
    listed = list(peaks)
    return Peak(measured=_most(peak.measured for peak in listed), forecast=_most(peak.forecast for peak in listed))


def with_peaks(table: pd.DataFrame, models: Iterable[Sequence[str]], peaks: Mapping[str, Peak]) -> pd.DataFrame:
    """The table with `peak_gib` and `forecast_gib`, the largest of the models that each row is about.

    Args:
        models: of each row; a row without models, or with one that has no peak, has none.
        peaks: by model.
    """
    found = [largest(peaks.get(model, NONE) for model in row) for row in models]
    measured, forecast = [peak.measured for peak in found], [peak.forecast for peak in found]
    columns = dict(zip(PEAK_COLUMNS, (measured, forecast), strict=True))
    return table.assign(**{name: pd.Series(values, table.index, float) for name, values in columns.items()})


def how_measured(stored: Stored) -> str:
    """How the runs measured their peak, in the words of their manifests; with the settings where they differ."""
    settings: dict[str, list[str]] = {}
    for setting, manifests in stored.manifests.items():
        for how in sorted({run["how"] for run in map(_recorded, manifests.values()) if "how" in run}):
            settings.setdefault(how, []).append(setting)
    if len(settings) == 1:
        return next(iter(settings))
    return "; ".join(f"{how} ({', '.join(names)})" for how, names in settings.items())


def _of_folds(manifests: Iterable[Mapping[str, Any]]) -> Peak:
    recorded = [_recorded(manifest) for manifest in manifests]
    measured, forecast = ([run[key] for run in recorded if key in run] for key in ("gib", "forecast_gib"))
    return Peak(measured=max(measured, default=math.nan), forecast=max(forecast, default=math.nan))


def _most(values: Iterable[float]) -> float:
    """The largest; NaN where there is none, or one of them is NaN."""
    listed = list(values)
    return math.nan if any(map(math.isnan, listed)) else max(listed, default=math.nan)


def _recorded(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """`peak_memory` of a run; empty where it was made before runs recorded it."""
    return manifest.get("peak_memory") or {}
