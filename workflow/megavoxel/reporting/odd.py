"""Runs that a reader should look at before trusting a number: what their own files say against them."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored

BEHIND = 2.0
"""How many times worse than the median of a setting's other folds the mean score of an odd one is."""
FAR_TIMES, FAR_GIB = 2.0, 4.0
"""A measured peak is far from its forecast if it is so many times as large or small, and so much more or less: what
convolutions on a GPU take beside tensors, and what libraries keep, is no contradiction."""
MIB_PER_GIB = 1024


def odd_runs(stored: Stored) -> list[str]:
    """A line about each run that contradicts its plan, its forecast or, of segmentation, the other folds of its
    setting."""
    behind = [] if stored.definition.classifies else _behind(stored)
    return [*other_plans(stored), *_other_memory(stored), *behind]


def other_plans(stored: Stored) -> Iterator[str]:
    """A line about each run that was trained by another plan than that of its setting."""
    for setting, manifests in stored.manifests.items():
        own = stored.plans[setting].hash
        for fold, manifest in manifests.items():
            found = manifest.get("plan_hash", own)
            if found != own:
                yield (
                    f"{setting}, fold {fold}: trained with plan {found}, but plan.json is {own}: what this page says "
                    "of its patch, batch and network is not what was trained; run the study again"
                )


def _other_memory(stored: Stored) -> Iterator[str]:
    for setting, manifests in stored.manifests.items():
        for fold, manifest in manifests.items():
            peak = manifest.get("peak_memory") or {}
            pairs = [("tensors of a step", peak.get("gib"), peak.get("forecast_gib"))]
            if "peak_memory_mib" in manifest:
                job = manifest["peak_memory_mib"] / MIB_PER_GIB
                pairs.append(("the job", job, stored.device_forecast_gib.get(setting)))
            for what, measured, foreseen in pairs:
                if measured and foreseen and _is_far(measured, foreseen):
                    yield (
                        f"{setting}, fold {fold}: the peak memory of {what} was {measured:.2f} GiB, and its forecast "
                        f"{foreseen:.2f} GiB: plan.json may be of another device or version than the run"
                    )


def _is_far(measured: float, foreseen: float) -> bool:
    return max(measured, foreseen) > FAR_TIMES * min(measured, foreseen) and abs(measured - foreseen) > FAR_GIB


def _behind(stored: Stored) -> Iterator[str]:
    """Folds whose validation score is far behind the others of their setting, as where training collapsed."""
    metric, means = stored.metrics[0], case_means(stored.scores)
    means = means[means["split"] == "validation"]
    for setting in stored.definition.settings:
        folds = means[means["setting"] == setting].groupby("fold")[metric.name].mean().dropna()
        for fold, value in folds.items():
            others = folds.drop(fold)
            usual = median(others) if len(others) else value
            if value * BEHIND < usual if metric.higher_is_better else value > BEHIND * usual:
                yield (
                    f"{setting}, fold {fold}: mean {metric.head} {value:.3f} of its validation cases, where the other "
                    f"folds of the setting have {usual:.3f}: look at its training curve"
                )
