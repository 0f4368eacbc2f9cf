"""Single cases on the page: their scores, and the slices that its viewer shows, worst cases first."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.datasets.cases import Case, Cases, naming_case
from megavoxel.errors import UserError
from megavoxel.parallel import map_cases
from megavoxel.reporting.examples import prediction_path
from megavoxel.reporting.panels import window_of
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.viewer_size import (
    Box,
    averaged,
    box_around,
    budget_for,
    grey,
    limits_of,
    map_bytes,
    marked_box,
    mosaic_columns,
    picture_bytes,
    reduction_of,
    refitted,
    sampled,
    within_budget,
)
from megavoxel.volumes.grid import Geometry, compare_grids
from megavoxel.volumes.open import read_image, read_labels

PARTS = 10_000
"""Scores are written as whole numbers of so many parts."""
PROBES = 5
"""Cases that are made small first, to see how many bytes they take."""
MOST_LABELS = 255
"""A label is one byte."""


NOWHERE: Box = (slice(0, 0),) * 3
"""The box of a map without any label."""


def ranked_cases(stored: Stored) -> pd.DataFrame:
    """Cases with their split and the study's first metric, the mean over models of the mean over labels; worst first,
    equal ones by name.

    A case without any value (its labels are in no map) comes last.
    """
    metric = stored.metrics[0]
    means = case_means(stored.scores).groupby(["case", "split"], as_index=False)[metric.name].mean()
    order = {"ascending": [metric.higher_is_better, True], "na_position": "last"}
    return means.sort_values([metric.name, "case"], **order, ignore_index=True)


def case_data(stored: Stored) -> dict[str, Any]:
    """Values for the script of the page: names, and scores by metric, model, case and label.

    Returns:
        `models`, `labels`, `metrics` (their heads), `signs` (1 where higher is better, else -1), `cases` (`id`,
        `split`, `fold`; in the order of `ranked_cases`) and `scores`: nested lists
        [metric][model][case][label] of whole numbers, `parts` of which are 1; None where there is no
        value, and for a case that a model does not have.
    """
    cases = ranked_cases(stored)
    keys = cases[["case", "split"]].itertuples(index=False, name=None)
    folds = stored.scores.drop_duplicates("case").set_index("case")["fold"]
    models, labels = list(stored.definition.models), list(stored.labels)
    return {
        "models": models,
        "labels": labels,
        "metrics": [metric.head for metric in stored.metrics],
        "signs": [metric.sign for metric in stored.metrics],
        "parts": PARTS,
        "cases": [{"id": case, "split": split, "fold": folds[case]} for case, split in keys],
        "scores": [
            [_of_model(stored.scores, metric.name, model, list(cases["case"]), labels) for model in models]
            for metric in stored.metrics
        ],
    }


def _of_model(scores: pd.DataFrame, metric: str, model: str, cases: list[str], labels: list[str]) -> list[Any]:
    own = scores[(scores["metric"] == metric) & (scores["setting"] == model)]
    grid = own.pivot(index="case", columns="label", values="value").reindex(index=cases, columns=labels)
    scored = set(own["case"])
    rows = (grid.to_numpy() * PARTS).round()
    return [
        [None if np.isnan(value) else int(value) for value in row] if case in scored else None
        for case, row in zip(cases, rows, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case to be shown."""

    case: Case
    predictions: dict[str, Path]
    """Label maps by model."""


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """The cases that the viewer shows, and what is left out."""

    cases: tuple[dict[str, Any], ...]
    """Cases as the script of the page takes them (`encoded_case`), worst first."""
    models: tuple[str, ...]
    cases_left_out: tuple[str, ...]
    models_left_out: tuple[str, ...]
    absent: tuple[str, ...]
    """Predicted label maps that are no longer there."""

    @property
    def size(self) -> int:
        """Bytes of the encoded images and maps, as characters of the page."""
        return sum(map(_size, self.cases))


def build_viewer(stored: Stored, cases: Cases, *, processes: int) -> Viewer:
    """Reads image, reference and predictions of each case once, of a few cases twice.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its case; the case is named.
    """
    jobs, absent = viewer_jobs(stored, cases)
    ordered = ranked_models(stored)
    if not jobs or len(cases.structures) > MOST_LABELS:
        left_out = tuple(job.case.id for job in jobs)
        return Viewer(cases=(), models=(), cases_left_out=left_out, models_left_out=ordered, absent=absent)
    budget = budget_for(len(jobs), len(ordered))
    shown = [model for model in stored.definition.models if model in ordered[: budget.models]]
    chosen = jobs[: budget.cases]
    work = partial(encoded_case, cases=cases, models=shown)
    probes = [_size(work(job, voxels=budget.voxels)) * 3 // 4 for job in evenly(chosen, PROBES)]
    voxels = refitted(budget, sum(probes) / len(probes))
    encoded = map_cases(partial(work, voxels=voxels), chosen, processes=processes, title="slices of the page")
    kept = within_budget([_size(case) * 3 // 4 for case in encoded])
    return Viewer(
        cases=tuple(encoded[:kept]),
        models=tuple(shown),
        cases_left_out=tuple(job.case.id for job in jobs[kept:]),
        models_left_out=tuple(model for model in stored.definition.models if model not in shown),
        absent=absent,
    )


def viewer_jobs(stored: Stored, cases: Cases) -> tuple[list[Job], tuple[str, ...]]:
    """All scored cases with the predictions that exist, worst first; and the paths of those that do not."""
    found: dict[str, dict[str, Path]] = {}
    absent = []
    for _, row in case_means(stored.scores).iterrows():
        path = prediction_path(stored, row["setting"], row)
        if path.exists():
            found.setdefault(row["case"], {})[row["setting"]] = path
        else:
            absent.append(str(path.relative_to(stored.results)))
    ranked = [name for name in ranked_cases(stored)["case"] if name in found]
    return [Job(case=cases.case(name), predictions=found[name]) for name in ranked], tuple(absent)


def evenly(items: Sequence[Job], count: int) -> list[Job]:
    """As many items as `count`, at even distances from the first to the last; all where there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]


def ranked_models(stored: Stored) -> tuple[str, ...]:
    """Models in the order in which they are kept where not all fit: baseline, ensembles, their members, all others."""
    definition = stored.definition
    members = [name for names in definition.ensembles.values() for name in names]
    baseline = [definition.baseline] if definition.baseline is not None else []
    return tuple(dict.fromkeys([*baseline, *definition.ensembles, *members, *definition.models]))


def encoded_case(job: Job, *, cases: Cases, models: Sequence[str], voxels: int) -> dict[str, Any]:
    """A case as the page's script takes it.

    Returns:
        `id`; `shape` (z, y, x) and `voxel_mm` of the small grid; `picture`: the image as WebP, all axial slices from
        the feet up in rows of `columns`, each with its array's rows (y) and columns (x); `models`: whose maps follow
        the reference; `maps`: a zlib stream with a byte per voxel and map, 0 for background and n for the n-th label by
        value. Both in base64. `range`: the intensities that are black and white in the picture; `window`: those that
        are so at first. `unannotated`: names of labels.
    """
    return naming_case(lambda case: _encode(case, job.predictions, cases, models, voxels), job.case)


def _encode(
    case: Case, predictions: Mapping[str, Path], cases: Cases, models: Sequence[str], voxels: int
) -> dict[str, Any]:
    own = [model for model in models if model in predictions]
    geometry = cases.read_geometry(case)
    shape, spacing = geometry.canonical_shape, geometry.spacing
    cuts = [_cut(cases.read_annotation(case)), *(_cut(_prediction(predictions[model], geometry)) for model in own)]
    reduction = reduction_of(box_around([box for box, _ in cuts], shape, spacing), spacing, voxels)
    maps = [_numbered(sampled(cut, box or NOWHERE, reduction), cases) for box, cut in cuts]
    image = averaged(first_channel(cases, case), reduction)
    window = window_of(image, case.modality or cases.channels[0])
    limits = limits_of(image, window)
    return {
        "id": case.id,
        "shape": reduction.shape,
        "voxel_mm": [float(f"{size:.4g}") for size in reduction.voxel_mm],
        "columns": mosaic_columns(reduction.shape),
        "models": own,
        "unannotated": list(case.unannotated),
        "window": [float(f"{value:.6g}") for value in window],
        "range": [float(f"{value:.6g}") for value in limits],
        "picture": _base64(picture_bytes(grey(image, limits))),
        "maps": _base64(map_bytes(maps)),
    }


def first_channel(cases: Cases, case: Case) -> np.ndarray:
    """The first channel of a case's image (z, y, x), float32."""
    return read_image(Path(cases.root) / case.images[0])[0][0]


def _prediction(path: Path, geometry: Geometry) -> np.ndarray:
    labels, own = read_labels(path)
    differences = compare_grids(geometry, own)
    if differences:
        raise UserError(f"{path}: lies on another grid than the case's image: {differences[0][1]}; predict it again")
    return labels


def _cut(labels: np.ndarray) -> tuple[Box | None, np.ndarray]:
    """A copy of the box that holds all labels of a map, so that the whole map need not stay in memory."""
    box = marked_box(labels)
    return box, labels[box or NOWHERE].copy()


def _numbered(labels: np.ndarray, cases: Cases) -> np.ndarray:
    """Labels or regions of the dataset as 1, 2, … in their order, of several regions the last; other values as 0."""
    numbered = np.zeros(labels.shape, np.uint8)
    for number, values in enumerate(cases.structures.values(), start=1):
        numbered[np.isin(labels, values)] = number
    return numbered


def _size(case: Mapping[str, Any]) -> int:
    return len(case["picture"]) + len(case["maps"])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
