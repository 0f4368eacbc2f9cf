"""The first paragraph of the page of a classification study."""

from __future__ import annotations

import math

import pandas as pd

from megavoxel.reporting.classification.tables import ACCURACY, correct, patients_of
from megavoxel.reporting.stored import StoredClassification
from megavoxel.reporting.verdict import (
    WORST_CASES,
    Cost,
    Elsewhere,
    Verdict,
    Worst,
    deciding_split,
    gap_of,
    run_hours,
)
from megavoxel.tasks.classification.metrics import METRICS


def classification_verdict(stored: StoredClassification, summary: pd.DataFrame, confusion: pd.DataFrame) -> Verdict:
    """The verdict on classifiers, in accuracy: cells with their repeats together, and ensembles.

    Intervals are over patients, with all of their images.

    Args:
        summary: with full numbers.
        confusion: likewise.
    """
    metric = METRICS[ACCURACY]
    first = next(iter(stored.definition.rows))
    split = deciding_split(stored.splits, {name: patients_of(stored, first, name).nunique() for name in stored.splits})
    ranked = {name: _ranking(summary[summary["split"] == name]) for name in stored.splits}
    own = summary[summary["split"] == split].set_index("row")
    best, *others = ranked[split]
    right, patients = correct(stored, best, split), patients_of(stored, best, split)
    return Verdict(
        metric=metric,
        split=split,
        best=best,
        value=float(own[ACCURACY][best]),
        low=float(own[f"{ACCURACY}_low"][best]),
        high=float(own[f"{ACCURACY}_high"][best]),
        cases=int(own["images"][best]),
        unit="image",
        drawn="patients",
        gaps=tuple(
            gap_of(name, own[ACCURACY][name], right - correct(stored, name, split), patients) for name in others
        ),
        baseline=stored.definition.baseline,
        costs={row: _cost(stored, row) for row in stored.definition.rows},
        worst=_worst_classes(confusion[(confusion["row"] == best) & (confusion["split"] == split)]),
        elsewhere=tuple(
            _elsewhere(summary[(summary["split"] == other) & (summary["row"] == names[0])])
            for other, names in ranked.items()
            if other != split
        ),
    )


def _elsewhere(rows: pd.DataFrame) -> Elsewhere:
    row = rows.iloc[0]
    return Elsewhere(split=row["split"], best=row["row"], value=float(row[ACCURACY]), cases=int(row["images"]))


def _ranking(rows: pd.DataFrame) -> list[str]:
    return list(rows.sort_values(ACCURACY, ascending=False, kind="stable")["row"])


def _cost(stored: StoredClassification, row: str) -> Cost:
    settings = [
        setting for model in stored.definition.rows[row] for setting in stored.definition.ensembles.get(model, (model,))
    ]
    runs = [run for setting in settings for run in run_hours(stored, setting)]
    peaks = [
        manifest["peak_memory"].get("gib", math.nan)
        for setting in settings
        for manifest in stored.manifests[setting].values()
    ]
    return Cost(gib=max(peaks), hours=sum(runs), runs=len(runs))


def _worst_classes(own: pd.DataFrame) -> tuple[Worst, ...]:
    """The classes of whose images the smallest share is classified rightly, and what they are most often taken for."""
    found = []
    for name, lines in own.groupby("class", sort=False):
        images = lines.set_index("predicted")["images"]
        wrong = images.drop(name)
        if images.sum() and wrong.sum():
            where = f"most often taken for {wrong.idxmax()}"
            found.append(Worst(name=name, value=float(images[name] / images.sum()), where=where, is_case=False))
    return tuple(sorted(found, key=lambda worst: worst.value)[:WORST_CASES])
