"""The results of a large study, made up: volumes, label maps, scores and histories of the right shape and number.

An image is a body of soft tissue with 15 ellipsoids of organs, smooth texture and noise. A prediction is the reference
with its slices moved by a few voxels along a smooth random path, another one for each model. Scores are random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.made import made_plan
from megavoxel.config.training import Training
from megavoxel.datasets.cases import Case, Cases, save_cases
from megavoxel.evaluation.tidy import COLUMNS
from megavoxel.files import write_json
from megavoxel.planning.plan import Plan, save_plan
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.write import write_labels, write_nifti

LABELS = {f"organ {number}": number for number in range(1, 16)}
ENSEMBLE = "ensemble"
EPOCHS = 1000
MOVED_MM = 4.0
"""Standard deviation of the movement of a prediction's slices."""


def make_results(
    root: Path, *, settings: int, folds: int, cases: int, shape: Sequence[int], spacing: Sequence[float]
) -> str:
    """Writes `data` and `results` below `root`; the definition for `megavoxel report`, as JSON.

    Args:
        settings: beside them stands an ensemble of the first two.
        shape: voxels (z, y, x) of every case.
        spacing: voxel size in mm (z, y, x).
    """
    names = [f"setting-{number:02}" for number in range(settings)]
    models, ids = [*names, ENSEMBLE], [f"case_{number:03}" for number in range(cases)]
    for number, case in enumerate(ids):
        write_case(root, case, number, models, fold=number % folds, shape=shape, spacing=spacing)
    save_cases(root / "results/cases.json", case_list(root, ids))
    write_scores(root / "results/scores.csv", models, ids, folds)
    for number, name in enumerate(names):
        write_runs(root / "results" / name, name, number, folds)
    return json.dumps(
        {
            "study": "large", "dataset": "made-up", "baseline": names[0], "settings": names,
            "ensembles": {ENSEMBLE: names[:2]}, "folds": {model: list(range(folds)) for model in models},
            "cases": str(root / "results/cases.json"), "sweeps": [],
        }
    )  # fmt: skip


def write_case(
    root: Path,
    case: str,
    seed: int,
    models: Sequence[str],
    *,
    fold: int,
    shape: Sequence[int],
    spacing: Sequence[float],
) -> None:
    """Image, reference, and a prediction of each model."""
    random = np.random.default_rng(seed)
    geometry = Geometry(shape=tuple(shape[::-1]), affine=np.diag([*spacing[::-1], 1.0]))
    image, labels = scan(random, shape, spacing)
    write_nifti(root / f"data/images/{case}.nii.gz", geometry.restore(image), geometry.affine)
    write_labels(root / f"data/labels/{case}.nii.gz", labels, geometry)
    for model in models:
        folder = root / "results" / ("ensembles" if model == ENSEMBLE else "") / model / f"fold-{fold}/validation"
        write_labels(folder / f"{case}.nii.gz", moved(random, labels, spacing), geometry)


def scan(random: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Image in Hounsfield units (int16) and label map (uint8), both (z, y, x)."""
    extent = np.array(shape) * spacing
    axes = [np.arange(size) * step for size, step in zip(shape, spacing, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    body = sum(((grid[axis] / extent[axis] - 0.5) / 0.45) ** 2 for axis in (1, 2)) < 1
    labels = np.zeros(shape, np.uint8)
    image = np.where(body, 40.0, -1000.0) + np.zeros(shape)
    for label in LABELS.values():
        radii = np.geomspace(70, 10, len(LABELS))[label - 1] * random.uniform(0.7, 1.3, 3)
        centre = extent / 2 + random.uniform(-0.25, 0.25, 3) * extent
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)) < 1
        labels[inside & body], image[inside & body] = label, random.uniform(-40, 180)
    texture = ndimage.zoom(random.normal(0, 25, [max(2, size // 4) for size in shape]), 4, order=1)
    whole = np.pad(texture, [(0, max(0, size - own)) for size, own in zip(shape, texture.shape, strict=True)])
    image += whole[tuple(map(slice, shape))] + random.normal(0, 15, shape)
    return image.astype(np.int16), labels


def moved(random: np.random.Generator, labels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The map with each axial slice moved in its plane."""
    paths = ndimage.gaussian_filter1d(random.normal(size=(len(labels), 2)), 4.0, axis=0)
    steps = (paths / paths.std() * MOVED_MM / np.array(spacing[1:])).round().astype(int)
    return np.stack([np.roll(plane, tuple(step), (0, 1)) for plane, step in zip(labels, steps, strict=True)])


def case_list(root: Path, ids: Sequence[str]) -> Cases:
    """The content of cases.json."""
    cases = tuple(Case(id=case, images=(f"images/{case}.nii.gz",), label=f"labels/{case}.nii.gz") for case in ids)
    tolerances = dict.fromkeys(LABELS, 2.0)
    return Cases(
        dataset="made-up", root=str(root / "data"), channels=("CT",), labels=LABELS, nsd_tolerance_mm=tolerances,
        cases=cases,
    )  # fmt: skip


def write_scores(path: Path, models: Sequence[str], ids: Sequence[str], folds: int) -> int:
    """scores.csv with random values, better for later models; the number of its lines."""
    keys = pd.MultiIndex.from_product([models, range(len(ids)), LABELS, ["DSC", "NSD"]])
    table = keys.to_frame(index=False, name=["setting", "case", "label", "metric"])
    better = table["setting"].map({model: number for number, model in enumerate(models)})
    table["value"] = np.random.default_rng(0).beta(10 + better, 2)
    table = table.assign(split="validation", fold=table["case"] % folds, case=table["case"].map(dict(enumerate(ids))))
    path.parent.mkdir(parents=True, exist_ok=True)
    table[COLUMNS].to_csv(path, index=False)
    return len(table)


def write_runs(folder: Path, name: str, number: int, folds: int) -> None:
    """plan.json, and history.csv and manifest.json of each fold."""
    plan = plan_of(name, patch=(32, 64 + 16 * number, 64 + 16 * number))
    save_plan(folder / "plan.json", plan)
    epochs = np.arange(1, EPOCHS + 1)
    for fold in range(folds):
        falling = np.exp(-epochs / (100 + 10 * number)) + np.random.default_rng(fold).normal(0, 0.01, EPOCHS)
        history = pd.DataFrame({"epoch": epochs, "learning_rate": 0.01 * (1 - epochs / (EPOCHS + 1)) ** 0.9})
        history = history.assign(training_loss=falling - 0.9, validation_loss=falling - 0.8, pseudo_dice=0.9 - falling)
        (folder / f"fold-{fold}").mkdir(parents=True, exist_ok=True)
        history.assign(seconds=90.0, peak_memory_mib=9000.0).to_csv(folder / f"fold-{fold}/history.csv", index=False)
        peak = {"gib": 8.0 + number / 4, "how": "made up", "forecast_gib": 8.0 + number / 4}
        versions = {"python": "3.11.7", "torch": "2.13.0", "monai": "1.6.1"}
        manifest = {"plan_hash": plan.hash, "seed": plan.seed, "fold": fold, "versions": versions, "peak_memory": peak}
        write_json(folder / f"fold-{fold}/manifest.json", manifest)


def plan_of(name: str, *, patch: tuple[int, int, int]) -> Plan:
    """A plan with a small network."""
    sizes = {"spacing": (5.0, 2.0, 2.0), "median_shape": (96.0, 128.0, 128.0)}
    training = Training(epochs=EPOCHS)
    plan = made_plan(name, patch=patch, labels=LABELS, features=(4, 8), batch=2, training=training, preprocessing=sizes)
    return replace(plan, study="large", dataset="made-up")
