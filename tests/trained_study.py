"""A small study that is really trained, stage by stage in this process: phantoms, one setting, two folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megavoxel.cli import main

STUDY = {
    "study": "little",
    "folds": 2,
    "defaults": {
        "patch": [8, 24, 24],
        "batch": 2,
        "network": {"base_features": 4, "levels": 3},
        "training": {
            "epochs": 2, "iterations_per_epoch": 40, "validation_iterations": 1, "workers": 0, "precision": "float32",
            "checkpoint_minutes": 0, "learning_rate": 0.03, "class_weights": [0.1, 1, 1, 1, 1],
        },
        "augmentation": {"rotation": 0, "scaling": 0, "low_resolution": 0},
    },
    "settings": {"only": {}},
}  # fmt: skip
DATASET = {
    "name": "little-phantom",
    "description": "Synthetic abdomens",
    "licence": "CC0-1.0",
    "reference": "Nobody 2026",
    "source": {"phantom": {"training_cases": 4, "test_cases": 5, "shape": [16, 28, 28], "spacing": [4.0, 2.0, 2.0]}},
    "nsd_tolerance_mm": 2.0,
}


def stage(*words: object) -> None:
    """Runs a stage that must not fail."""
    assert main(list(map(str, words))) == 0, words


def train_study(root: Path, dataset: dict[str, Any] = DATASET, content: dict[str, Any] = STUDY) -> Path:
    """Writes a finished study of the setting `only` in two folds below `root`; returns results/little."""
    (root / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    study = root / "study.yaml"
    study.write_text(yaml.safe_dump({**content, "dataset": str(root / "dataset.yaml")}))
    data, results = root / "data", root / "results" / "little"
    setting, cases, splits = results / "only", results / "cases.json", results / "splits.json"
    of_setting = ("--study", study, "--setting", "only")
    stage("fetch", "--dataset", root / "dataset.yaml", "--output", data)
    stage("check", "--dataset", root / "dataset.yaml", "--data", data, "--checks", root / "c.csv", "--output", cases)
    stage("fingerprint", "--cases", cases, "--output", results / "fingerprint.json")
    stage("split", "--cases", cases, "--folds", 2, "--seed", 1, "--output", splits)
    rules = results / "preprocessed" / "plan.json"
    stage(
        "plan-preprocessing", "--cases", cases, "--fingerprint", results / "fingerprint.json", *of_setting,
        "--output", rules,
    )  # fmt: skip
    stage("plan", "--cases", cases, "--preprocessing-plan", rules, *of_setting, "--output", setting / "plan.json")
    stored = results / "preprocessed" / "cases"
    stage("preprocess", "--cases", cases, "--plan", rules, "--folder", stored, "--output", root / "done.json")
    network = ("--plan", setting / "plan.json", "--preprocessed", stored, "--splits", splits, "--threads", 1)
    for fold in range(2):
        folder = setting / f"fold-{fold}"
        stage("train", *network, "--fold", fold, "--state", root / "state", "--output", folder)
        stage(
            "predict", *network, "--weights", folder / "model.pt", "--split", "validation", "--fold", fold,
            "--output", folder / "validation",
        )  # fmt: skip
    _finish(results, network)
    return results


def _finish(results: Path, network: tuple) -> None:
    """Post-processing, label maps of the test cases and scores."""
    setting, study = results / "only", ("--cases", results / "cases.json", "--splits", results / "splits.json")
    folds = [setting / f"fold-{fold}" for fold in range(2)]
    predictions = [fold / "validation" for fold in folds]
    stage(
        "postprocess", "--determine", "--predictions", *predictions, *study[:2],
        "--output", setting / "postprocessing.json",
    )  # fmt: skip
    weights = [fold / "model.pt" for fold in folds]
    stage("predict", *network, "--weights", *weights, "--split", "test", "--output", setting / "test-raw")
    stage(
        "postprocess", "--apply", setting / "postprocessing.json", "--predictions", setting / "test-raw", *study[:2],
        "--output", setting / "test",
    )  # fmt: skip
    parts = []
    for split, fold, folder in (
        *(("validation", number, folder / "validation") for number, folder in enumerate(folds)),
        ("test", "all", setting / "test"),
    ):
        parts.append(results / f"scores-{split}-{fold}.csv")
        stage("evaluate", folder, *study, "--split", split, "--fold", fold, "--setting", "only", "--output", parts[-1])
    stage("evaluate", "--collect", *parts, "--output", results / "scores.csv")
