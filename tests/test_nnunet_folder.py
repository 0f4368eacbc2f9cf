"""A folder in nnU-Net's raw layout with regions, an ignore label and folds, from `init` to the report and new scans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest

from megavoxel.cli import main
from megavoxel.config.dataset import load_dataset
from megavoxel.config.study_file import load_study
from megavoxel.planning.plan import load_plan
from megavoxel.planning.splits import load_splits
from megavoxel.volumes.open import read_labels
from megavoxel.volumes.write import write_nifti
from new_dataset import init
from workflow_runs import snakemake

SHAPE = (24, 22, 14)
CASES = [f"brain_{number:03d}" for number in range(5)]
TEST = CASES[-1]
LABELS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3, "ignore": 4}
REGIONS = ["whole tumor", "tumor core", "enhancing tumor"]
SMALL = {
    "epochs: 20": "epochs: 1",
    "iterations_per_epoch: 50": "iterations_per_epoch: 3",
    "validation_iterations: 5": "validation_iterations: 1",
    "base_features: 16": "base_features: 4",
    "memory_gib: 1 ": "memory_gib: 0.3 ",
}


def raw_folder(root: Path) -> Path:
    """Shells within one another in a bright head; every other slice of the training cases was not annotated."""
    random, affine = np.random.default_rng(0), np.diag([1.0, 1.0, 2.0, 1.0])
    places = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    head = np.sqrt(((places / np.array([11.0, 10.0, 6.5])[:, None, None, None]) ** 2).sum(axis=0)) < 1
    for case in CASES:
        part = "Ts" if case == TEST else "Tr"
        centre = random.integers(-2, 3, 3)[:, None, None, None]
        radius = np.sqrt(((places - centre) ** 2 * np.array([1, 1, 4])[:, None, None, None]).sum(axis=0))
        labels = np.where(head, np.digitize(-radius, [-7.5, -5, -2.5]), 0).astype(np.uint8)
        for channel in range(2):
            image = head * (100 + 60 * labels + random.normal(0, 10, SHAPE))
            write_nifti(root / f"images{part}/{case}_{channel:04d}.nii.gz", image.astype(np.float32), affine)
        if part == "Tr":
            labels[:, :, 1::2] = 4
        write_nifti(root / f"labels{part}/{case}.nii.gz", labels, affine)
    content = {"channel_names": {"0": "T1", "1": "rescale_to_0_1"}, "labels": LABELS, "regions_class_order": [1, 2, 3]}
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": 4, "file_ending": ".nii.gz"}))
    folds = [{"train": CASES[:2], "val": CASES[2:4]}, {"train": CASES[2:4], "val": CASES[:2]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root


@pytest.mark.slow
def test_such_a_folder_goes_from_init_to_a_report_and_its_model_labels_new_scans(work, repository, tmp_path, capsys):
    root = raw_folder(tmp_path / "Dataset044_Tumour")
    assert init(root) == 0
    dataset, study = (work / f"config/{kind}/new.yaml" for kind in ("datasets", "studies"))
    assert list(load_dataset(dataset).label_scheme.structures) == REGIONS
    assert (load_study(study).folds, load_study(study).splits) == (2, str(root / "splits_final.json"))
    text = study.read_text()
    for written, smaller in SMALL.items():
        assert written in text
        text = text.replace(written, smaller)
    study.write_text(text)
    done = snakemake(repository, work, "--configfile", str(study))
    assert done.returncode == 0, done.stdout + done.stderr
    results = work / "results/new"
    assert load_splits(results / "splits.json").folds[0].validation == tuple(CASES[2:4])
    plan = load_plan(results / "small/plan.json")
    assert (plan.network.classes, plan.preprocessing.ignore_value) == (3, 4)
    assert [rule.scheme for rule in plan.preprocessing.normalisation] == ["z-score", "rescale-0-1"]
    scores = pandas.read_csv(results / "scores.csv")
    assert set(scores["label"]) == set(REGIONS)
    assert set(scores["case"]) == {*CASES[2:4], TEST}
    assert all(name in (results / "report/index.html").read_text() for name in REGIONS)
    model = tmp_path / "model"
    assert main(["export", str(results / "small"), "--to", str(model)]) == 0
    assert json.loads((model / "model.json").read_text())["regions"]["class_order"] == [1, 2, 3]
    capsys.readouterr()
    assert main(["export", str(results / "small"), "--to", str(tmp_path / "bundle"), "--format", "bundle"]) == 1
    assert "this model segments regions that may overlap" in capsys.readouterr().err
    scans = [str(root / f"imagesTs/{TEST}_{channel:04d}.nii.gz") for channel in range(2)]
    assert main(["predict", "--model", str(model), "--input", *scans, "--output", str(tmp_path / "new")]) == 0
    (written,) = (tmp_path / "new").glob("*.nii.gz")
    labels = read_labels(written)[0]
    assert labels.shape == SHAPE[::-1]
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
