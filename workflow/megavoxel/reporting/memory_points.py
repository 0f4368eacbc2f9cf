"""The points of the figure of DSC against memory: models, repeats of one another as one, and published rows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from megavoxel.reporting.comparison import mean_interval
from megavoxel.reporting.memory import cascade_peaks, largest
from megavoxel.reporting.published import PEAK
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.sweeps import models_of_rows, point_scores

SPLIT = "validation"
MEAN = "Mean over labels"
"""The panel that every study has; others are called after their label."""
METRIC = "DSC"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Models that are one point: a setting, an ensemble, or repeats of one another."""

    number: int
    """Counted from 1."""
    models: tuple[str, ...]
    gib: float
    """Largest measured peak of its models and of their first stages."""
    kind: str
    """`setting` or `ensemble`."""

    @property
    def name(self) -> str:
        """The first model, and how many repeats there are besides."""
        more = len(self.models) - 1
        return self.models[0] + (f" + {more} repeat{'s' if more > 1 else ''}" if more else "")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A published row that has memory and DSC."""

    number: int
    """That of the group which it is about, or one of its own."""
    name: str
    gib: float
    """GB as published."""
    dsc: dict[str, float]
    """By panel."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """What is drawn of a group or of a published row in one panel."""

    number: int
    kind: str
    """`setting`, `ensemble` or `published`."""
    gib: float
    dsc: float
    low: float = math.nan
    high: float = math.nan
    """Ends of the 95 % bootstrap interval; NaN where there is none."""


def measured_groups(stored: Stored) -> list[Group]:
    """Models with a measured peak, numbered in the order of the tables; models without one are left out."""
    peaks = cascade_peaks(stored)
    found = {models: largest(peaks[model] for model in models).measured for models in model_groups(stored)}
    known = [(models, gib) for models, gib in found.items() if not math.isnan(gib)]
    return [
        Group(
            number=number,
            models=models,
            gib=gib,
            kind="ensemble" if models[0] in stored.definition.ensembles else "setting",
        )
        for number, (models, gib) in enumerate(known, start=1)
    ]


def model_groups(stored: Stored) -> list[tuple[str, ...]]:
    """All models, those together that a point of a sweep lists as repeats of one another.

    Where two points share a model, the first of them makes the group.
    """
    repeats: dict[str, tuple[str, ...]] = {}
    for sweep in stored.definition.sweeps:
        for models in sweep.points.values():
            if len(models) > 1 and not repeats.keys() & set(models):
                repeats |= dict.fromkeys(models, models)
    return list(dict.fromkeys(repeats.get(model, (model,)) for model in stored.definition.models))


def published_rows(published: pd.DataFrame, stored: Stored, groups: Sequence[Group]) -> list[PublishedRow]:
    """Published rows with memory and DSC; a row that several tables repeat is one.

    Args:
        published: as `megavoxel.reporting.published.read_published` gives it.
    """
    models = models_of_rows(published, stored.definition)
    numbers = {model: group.number for group in groups for model in group.models}
    rows: dict[Hashable, PublishedRow] = {}
    following = len(groups) + 1
    for (table, row), lines in published.groupby(["table", "row"], sort=False):
        values = lines.set_index("metric")["value"].to_dict()
        dsc = _published_dsc(values)
        number = next((numbers[model] for model in models[table, row] if model in numbers), None)
        key = (number or row, values.get(PEAK), frozenset(dsc.items()))
        if PEAK not in values or not dsc or key in rows:
            continue
        rows[key] = PublishedRow(number=number or following, name=f"{row} ({table})", gib=values[PEAK], dsc=dsc)
        following += number is None
    return list(rows.values())


def _published_dsc(values: Mapping[str, float]) -> dict[str, float]:
    """DSC by panel, from values by metric; where only labels are published, the mean is that over these labels."""
    labels = {key.removeprefix(f"{METRIC} "): dsc for key, dsc in values.items() if key.startswith(f"{METRIC} ")}
    if METRIC in values:
        return {**labels, MEAN: values[METRIC]}
    return {**labels, MEAN: sum(labels.values()) / len(labels)} if labels else {}


def dots(stored: Stored, panel: str, groups: Sequence[Group], rows: Sequence[PublishedRow]) -> list[Dot]:
    """What has a DSC in a panel: `MEAN`, or a label.

    The DSC of a group is the mean over validation cases; within a case, the mean over labels is taken first, then over
    repeats. Cases that a repeat lacks are left out.
    """
    scores = stored.scores[stored.scores["split"] == SPLIT]
    means = case_means(scores if panel == MEAN else scores[scores["label"] == panel])
    measured = []
    for group in groups:
        cases = point_scores(means, group.models)[0][METRIC]
        low, high = mean_interval(cases)
        own = {"dsc": cases.mean(), "low": low, "high": high}
        measured.append(Dot(number=group.number, kind=group.kind, gib=group.gib, **own))
    said = [Dot(number=row.number, kind="published", gib=row.gib, dsc=row.dsc.get(panel, math.nan)) for row in rows]
    return [dot for dot in [*measured, *said] if not math.isnan(dot.dsc)]
