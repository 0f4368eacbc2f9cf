"""The first paragraph of the page: which model is best, by how much, at what cost, and which cases to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from megavoxel.evaluation.metrics import Metric
from megavoxel.reporting.costs import PEAK, cascade_peaks, stages_of
from megavoxel.reporting.statistics import (
    DEVICES_UNSAID,
    EQUAL_DECIMALS,
    FEWEST_DIFFERENCES,
    case_means,
    differences,
    groups_of,
    mean_interval,
)
from megavoxel.reporting.stored import Stored

WORST_CASES = 3


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The difference between the best model and another one, over what both have."""

    name: str
    """The other model."""
    value: float
    """The other model's mean."""
    difference: float
    """Mean of the best model's values minus the other's."""
    low: float
    high: float
    """Ends of its 95 % paired bootstrap interval; NaN where there is none."""
    changed: int
    """What is drawn for intervals (cases, groups of cases, patients) in which the two differ."""

    @property
    def has_enough(self) -> bool:
        """Whether enough cases differ for any outcome to be told from chance."""
        return self.changed >= FEWEST_DIFFERENCES

    @property
    def is_apart(self) -> bool:
        """Whether the interval says that the models differ."""
        return self.has_enough and not self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the training of a model took, all of its runs, members and first stages together."""

    gib: float
    """Largest peak on one device; NaN: not recorded."""
    hours: float
    """Device-hours."""
    runs: int


@dataclass(frozen=True, kw_only=True)
class Worst:
    """Something that the best model does worst: a case, or a class of images."""

    name: str
    value: float
    where: str
    """What else a reader has to know: the split of a case, what a class is taken for."""
    is_case: bool = True
    """Whether the viewer may show it."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """The best model of another split."""

    split: str
    best: str
    value: float
    cases: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which model is best in the study's first metric: on the test split, or where that is too small to tell models
    apart, in validation."""

    metric: Metric
    split: str
    best: str
    value: float
    """Mean of the best model."""
    low: float
    high: float
    """Ends of its 95 % interval; NaN where there is none."""
    cases: int
    unit: str
    """What is counted: `case` or `image`."""
    drawn: str
    """What is drawn for intervals, in the plural."""
    gaps: tuple[Gap, ...]
    """All other models, the best of them first."""
    baseline: str | None
    costs: Mapping[str, Cost]
    """By model."""
    worst: tuple[Worst, ...]
    elsewhere: tuple[Elsewhere, ...] = ()
    """The other splits."""

    @property
    def against(self) -> Gap | None:
        """The difference that is told: to the baseline, or to the second best where the baseline is best or absent."""
        return next((gap for gap in self.gaps if gap.name == self.baseline), self.gaps[0] if self.gaps else None)

    @property
    def equals(self) -> list[str]:
        """Models with the same mean as the best."""
        return [gap.name for gap in self.gaps if round(gap.value - self.value, EQUAL_DECIMALS) == 0]

    @property
    def apart(self) -> list[Gap]:
        """Models whose intervals say that they differ from the best."""
        return [gap for gap in self.gaps if gap.is_apart]

    @property
    def together(self) -> list[Gap]:
        """Models that cannot be told apart from the best, though enough cases differ or none does."""
        return [gap for gap in self.gaps if not gap.is_apart and (gap.has_enough or not gap.changed)]

    @property
    def undecided(self) -> list[Gap]:
        """Models that differ from the best in too few cases to say anything."""
        return [gap for gap in self.gaps if gap.changed and not gap.has_enough]

    @property
    def cheapest(self) -> str | None:
        """The model whose training took least, of those that cannot be told apart from the best; None: the best."""
        names = [gap.name for gap in self.gaps if not gap.is_apart]
        least = min([self.best, *names], key=lambda name: self.costs[name].hours)
        return least if self.costs[least].hours < self.costs[self.best].hours else None


def segmentation_verdict(stored: Stored) -> Verdict | None:
    """The verdict on label maps; None where no case has a value.

    The unit is the case: within a case the mean over its labels is taken first. Differences are over the cases that
    both models have. Where the dataset has groups, these are drawn for intervals.
    """
    metric, means = stored.metrics[0], case_means(stored.scores)
    means = means[means[metric.name].notna()]
    counts = means.groupby("split")["case"].nunique()
    splits = [split for split in stored.splits if split in counts.index]
    if not splits:
        return None
    split = deciding_split(splits, counts)
    ranked = {name: ranking(means[means["split"] == name], metric, stored.definition.models) for name in splits}
    own = means[means["split"] == split]
    best = ranked[split][0]
    values = own[own["setting"] == best][metric.name]
    low, high = mean_interval(values, groups_of(stored, own[own["setting"] == best]["case"]))
    others = {name: own[own["setting"] == name] for name in ranked[split][1:]}
    gaps = []
    for name, part in others.items():
        changes = differences(own[own["setting"] == best], part, [metric])
        groups = groups_of(stored, changes["case"])
        gaps.append(gap_of(name, part[metric.name].mean(), changes[metric.name], groups))
    return Verdict(
        metric=metric,
        split=split,
        best=best,
        value=float(values.mean()),
        low=low,
        high=high,
        cases=len(values),
        unit="case",
        drawn="groups of cases" if stored.groups else "cases",
        gaps=tuple(gaps),
        baseline=stored.definition.baseline,
        costs=segmentation_costs(stored),
        worst=worst_cases(means[means["setting"] == best], metric),
        elsewhere=tuple(
            Elsewhere(
                split=other,
                best=names[0],
                value=float(_mean(means[means["split"] == other], metric, names[0])),
                cases=int(counts[other]),
            )
            for other, names in ranked.items()
            if other != split
        ),
    )


def deciding_split(splits: Sequence[str], counts: Mapping[str, int]) -> str:
    """The last split with enough cases to tell models apart; where none has as many, the one with most.

    Args:
        counts: cases by split; of classification, patients.
    """
    enough = [split for split in splits if counts[split] >= FEWEST_DIFFERENCES]
    return enough[-1] if enough else max(reversed(splits), key=lambda split: counts[split])


def ranking(means: pd.DataFrame, metric: Metric, models: Sequence[str]) -> list[str]:
    """Models with a value, the best mean first; equal ones in the order of the study.

    Args:
        means: of one split, as `case_means` gives them.
    """
    values = {model: _mean(means, metric, model) for model in models}
    known = [model for model, value in values.items() if not math.isnan(value)]
    return sorted(known, key=lambda model: -metric.sign * round(values[model], EQUAL_DECIMALS))


def gap_of(name: str, value: float, changes: pd.Series, groups: pd.Series | None = None) -> Gap:
    """The gap to a model.

    Args:
        value: its mean.
        changes: values of the best model minus those of this one, by case; NaN where one of them has none.
        groups: the patient of each image, or the group of each case, by the same index; None: each is by itself.
    """
    own = changes.dropna().round(EQUAL_DECIMALS)
    whose = own.index if groups is None else groups[own.index]
    low, high = mean_interval(own, whose)
    changed = int(np.count_nonzero(own.groupby(whose).mean().round(EQUAL_DECIMALS)))
    return Gap(name=name, value=float(value), difference=float(own.mean()), low=low, high=high, changed=changed)


def segmentation_costs(stored: Stored) -> dict[str, Cost]:
    """Costs by model: of a setting with a first stage those of all stages, of an ensemble those of its members."""
    peaks, costs = cascade_peaks(stored)[PEAK], {}
    members = {setting: (setting,) for setting in stored.definition.settings} | stored.definition.ensembles
    for model, settings in members.items():
        stages = dict.fromkeys(stage for setting in settings for stage in stages_of(setting, stored.plans))
        runs = [run for stage in stages for run in run_hours(stored, stage)]
        costs[model] = Cost(gib=float(peaks[model]), hours=sum(runs), runs=len(runs))
    return costs


def run_hours(stored: Stored, setting: str) -> list[float]:
    """Device-hours of each run of a setting; none where it was not trained in this study."""
    manifests = stored.manifests.get(setting, {})
    return [
        history["seconds"].sum() / 3600 * manifests.get(fold, {}).get("devices", DEVICES_UNSAID)
        for fold, history in stored.histories.get(setting, {}).items()
    ]


def worst_cases(means: pd.DataFrame, metric: Metric) -> tuple[Worst, ...]:
    """The worst cases of a model.

    Args:
        means: its lines of `case_means` with a value.
    """
    ranked = means.sort_values([metric.name, "case"], ascending=[metric.higher_is_better, True])
    rows = ranked.head(WORST_CASES).to_dict("records")
    return tuple(Worst(name=row["case"], value=float(row[metric.name]), where=row["split"]) for row in rows)


def _mean(means: pd.DataFrame, metric: Metric, model: str) -> float:
    return means.loc[means["setting"] == model, metric.name].mean()
