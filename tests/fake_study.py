"""A study as the earlier stages leave it, made by hand: 12 x 16 x 16 voxels, two settings, an ensemble, two folds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from megavoxel.cli import main
from megavoxel.config.setting import Inference
from megavoxel.config.training import Augmentation, Training
from megavoxel.datasets.cases import Case, Cases, save_cases
from megavoxel.planning.plan import ChannelNormalisation, NetworkPlan, Plan, PreprocessingPlan, save_plan
from megavoxel.planning.splits import Fold, Splits, save_splits
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.write import write_labels, write_nifti

SHAPE = (12, 16, 16)
GEOMETRY = Geometry(shape=SHAPE[::-1], affine=np.diag([1.0, 1.5, 3.0, 1.0]))
LABELS = {"liver": 1, "spleen": 2}
TOLERANCES = {"liver": 1.5, "spleen": 1.0}
SETTINGS = ("small", "large")
ENSEMBLES = {"both": SETTINGS}
SWEEP = {
    "name": "patch",
    "title": "Table 1: patch size",
    "points": {"(8, 8, 8)": ["small"], "(8, 16, 16)": ["large"], "both": ["both"]},
}
FOLDS = (("case_0", "case_1"), ("case_2", "case_3"))
TEST = ("case_4", "case_5")
UNLABELLED = "case_5"


@dataclass(frozen=True, kw_only=True)
class FakeStudy:
    """Paths of the study."""

    root: Path
    results: Path
    cases: Path
    splits: Path
    definition: Path

    def model(self, name: str) -> Path:
        """Folder of a setting or ensemble."""
        return self.results / "ensembles" / name if name in ENSEMBLES else self.results / name


def organs(case: str, *, shift: int = 0, spleen: bool = True) -> np.ndarray:
    """A liver of 6 x 8 x 6 voxels and, but for case_3, a spleen of 3 x 4 x 4; the liver is moved by `shift` voxels."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 4:12, 1 + shift : 7 + shift] = 1
    if spleen and case != "case_3":
        labels[4:7, 5:9, 11:15] = 2
    return labels


def make_study(root: Path, *, score: bool = True) -> FakeStudy:
    """Writes the study below `root`; with `score`, runs `megavoxel evaluate` on all of it."""
    fake = FakeStudy(
        root=root,
        results=root / "results",
        cases=root / "results/cases.json",
        splits=root / "results/splits.json",
        definition=root / "definition.json",
    )
    _write_dataset(fake)
    for number, name in enumerate(SETTINGS):
        _write_setting(fake, name, shift=2 - number)
    for name in ENSEMBLES:
        _write_predictions(fake.model(name), shift=0)
    definition = {
        "study": "fake",
        "dataset": "boxes",
        "baseline": "small",
        "settings": list(SETTINGS),
        "ensembles": {name: list(members) for name, members in ENSEMBLES.items()},
        "folds": {name: [0, 1] for name in (*SETTINGS, *ENSEMBLES)},
        "cases": str(fake.cases),
        "sweeps": [SWEEP],
    }
    fake.definition.write_text(json.dumps(definition))
    if score:
        score_study(fake)
    return fake


def score_study(fake: FakeStudy) -> None:
    """Writes scores.csv by the stages themselves."""
    parts = []
    for name in (*SETTINGS, *ENSEMBLES):
        for split, fold in (("validation", "0"), ("validation", "1"), ("test", "all")):
            parts.append(fake.root / f"scores-{name}-{split}-{fold}.csv")
            assert evaluate_part(fake, name, split, fold, parts[-1]) == 0
    assert main(["evaluate", "--collect", *map(str, parts), "--output", str(fake.results / "scores.csv")]) == 0


def report_study(fake: FakeStudy, *options: str, dpi: int = 40) -> int:
    """Exit status of `megavoxel report`, whose figures have few pixels: drawing more takes a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megavoxel.reporting.style.DPI", dpi)
        return main(["report", "--results", str(fake.results), "--definition", str(fake.definition), *options])


def evaluate_part(fake: FakeStudy, model: str, split: str, fold: str, output: Path, *options: str) -> int:
    """Exit status of `megavoxel evaluate` on one folder of predictions."""
    folder = fake.model(model) / ("test" if split == "test" else f"fold-{fold}/validation")
    place = ["--cases", str(fake.cases), "--splits", str(fake.splits), "--split", split, "--fold", fold]
    return main(["evaluate", str(folder), *place, "--setting", model, "--output", str(output), *options])


def _write_dataset(fake: FakeStudy) -> None:
    data = fake.root / "data"
    generator = np.random.default_rng(0)
    names = [*FOLDS[0], *FOLDS[1], *TEST]
    for name in names:
        labels = organs(name)
        noise = generator.normal(0, 20, SHAPE)
        image = np.select([labels == 1, labels == 2], [100.0, 180.0], -50.0) + noise
        write_nifti(data / f"images/{name}.nii.gz", GEOMETRY.restore(image).astype(np.float32), GEOMETRY.affine)
        if name != UNLABELLED:
            write_labels(data / f"labels/{name}.nii.gz", labels, GEOMETRY)
    cases = Cases(
        dataset="boxes",
        root=str(data),
        channels=("CT",),
        labels=LABELS,
        nsd_tolerance_mm=TOLERANCES,
        cases=tuple(
            Case(
                id=name,
                images=(f"images/{name}.nii.gz",),
                label=None if name == UNLABELLED else f"labels/{name}.nii.gz",
                split="test" if name in TEST else "training",
            )
            for name in names
        ),
    )
    save_cases(fake.cases, cases)
    folds = (Fold(training=FOLDS[1], validation=FOLDS[0]), Fold(training=FOLDS[0], validation=FOLDS[1]))
    save_splits(fake.splits, Splits(folds=folds, test=TEST))
    (fake.results / "checks.csv").write_text(
        "case,check,severity,message\n"
        + "".join(f"{name},all,ok,sound\n" for name in names if name != "case_3")
        + "case_3,foreground,warning,labels/case_3.nii.gz has no voxel of <spleen>\n"
        "case_9,all,excluded,left out by the dataset file\n"
    )


def _write_predictions(model: Path, *, shift: int) -> None:
    for fold, names in enumerate(FOLDS):
        for name in names:
            labels = organs(name, shift=shift, spleen=name != "case_1")
            write_labels(model / f"fold-{fold}/validation/{name}.nii.gz", labels, GEOMETRY)
    for name in TEST:
        write_labels(model / f"test/{name}.nii.gz", organs(name, shift=shift), GEOMETRY)


def _write_setting(fake: FakeStudy, name: str, *, shift: int) -> None:
    model = fake.model(name)
    _write_predictions(model, shift=shift)
    plan = make_plan(name, patch=(8, 16 // shift, 16 // shift))
    save_plan(model / "plan.json", plan)
    for fold in range(2):
        history = pd.DataFrame(
            {
                "epoch": [1, 2, 3],
                "learning_rate": [0.01, 0.005, 0.001],
                "training_loss": [0.9 + fold / 10, 0.1, -0.5 / shift],
                "validation_loss": [1.0, 0.3, -0.4 / shift],
                "pseudo_dice": [0.1, 0.5, 0.9 - 0.1 * shift],
                "pseudo_dice_liver": [0.1, 0.5, 0.9],
                "pseudo_dice_spleen": [0.1, 0.5, 0.7],
                "seconds": [1200.0, 600.0, 600.0],
                "peak_memory_mib": [100.0 * shift, 300.0 * shift, 200.0 + fold],
            }
        )
        history.to_csv(model / f"fold-{fold}/history.csv", index=False)
        manifest = {
            "plan_hash": plan.hash,
            "seed": 7,
            "fold": fold,
            "parameters": 1234567,
            "epochs": 3,
            **({"devices": 4 + fold} if name == "large" else {}),
            "peak_memory": {
                "gib": 1.5 / shift + fold / 8,
                "how": "tracked tensors of the first step",
                "forecast_gib": 1.25 / shift,
            },
            "versions": {"python": "3.11.4", "torch": "2.13.0"},
            "data": {"training": [f"case_{number}" for number in range(20)]},
        }
        if name == "large" and fold == 1:
            manifest["data"]["labels_never_seen"] = ["spleen"]
        (model / f"fold-{fold}/manifest.json").write_text(json.dumps(manifest))


def make_plan(setting: str, *, patch: tuple[int, int, int]) -> Plan:
    """A small plan."""
    return Plan(
        study="fake",
        setting=setting,
        dataset="boxes",
        seed=7,
        preprocessing=PreprocessingPlan(
            channels=("CT",),
            labels=LABELS,
            transpose=(0, 1, 2),
            spacing=(3.0, 1.5, 1.0),
            median_shape=tuple(map(float, SHAPE)),
            normalisation=(ChannelNormalisation(scheme="ct", mean=80.0, std=30.0, lower=-20.0, upper=200.0),),
        ),
        patch=patch,
        batch=2,
        network=NetworkPlan(
            channels=1,
            classes=3,
            features=(4, 8),
            kernels=((3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (2, 2, 2)),
        ),
        training=Training(epochs=3),
        augmentation=Augmentation(),
        inference=Inference(),
        notes=("patch taken from the study",),
    )
