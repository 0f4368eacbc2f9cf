"""An awkward but sound study goes from `init` to its report: names that programs misread, odd volumes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from megavoxel.cli import main
from megavoxel.evaluation.tidy import read_scores
from megavoxel.volumes.write import write_nifti
from workflow_runs import snakemake

LABELS = {"yes": 1, "NA": 4, "mean": 7, "off": 9}
CASES = {
    "a b": ("yes", "NA", "mean"),
    "c.d.v2": ("yes", "NA"),
    "名-ü": ("yes", "mean"),
    "NA": ("yes", "NA", "mean"),
    "001": ("yes", "NA", "mean"),
    "1e3": ("NA",),
    "null": (),
    "nan": ("yes", "NA"),
    "1": ("yes",),
}
"""Cases and the labels that are drawn in them: `null` has an empty label map, and `off` is drawn in none."""
FLAT, TEST = "001", ("nan", "1")
SHAPE = (20, 18, 10)
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
SETTING = {
    "folds": [0, 1],
    "patch": [8, 12, 12],
    "batch": 2,
    "network": {"base_features": 4, "levels": 2},
    "training": {"epochs": 1, "iterations_per_epoch": 4, "validation_iterations": 1, "workers": 0},
}

pytestmark = pytest.mark.slow


def label_map(shape: tuple[int, ...], names: tuple[str, ...]) -> np.ndarray:
    """A block for each label."""
    array = np.zeros(shape, np.uint8)
    for name in names:
        start = 2 + 5 * list(LABELS).index(name)
        array[start : start + 4, 4:12, : max(1, shape[2] // 2)] = LABELS[name]
    return array


def make_folder(folder: Path) -> Path:
    """The cases in nnU-Net's raw layout."""
    generator = np.random.default_rng(0)
    for case, names in CASES.items():
        shape = (*SHAPE[:2], 1) if case == FLAT else SHAPE
        labels = label_map(shape, names)
        image = generator.normal(size=shape) + labels
        write_nifti(folder / f"imagesTr/{case}_0000.nii.gz", image.astype(np.float32), AFFINE)
        write_nifti(folder / f"labelsTr/{case}.nii.gz", labels, AFFINE)
    content = {"channel_names": {"0": "no"}, "labels": {"background": 0, **LABELS}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": len(CASES)}))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory, repository) -> Path:
    """The study after `init`, an edit of its files as a user would make it, and the whole workflow."""
    work = tmp_path_factory.mktemp("awkward study")
    (work / "config").mkdir()
    shutil.copy(repository / "config/hardware.yaml", work / "config")
    folder = make_folder(work / "Odd scans (ü)")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert main(["init", str(folder), "--name", "null", "--processes", "1"]) == 0
    dataset, study = work / "config/datasets/null.yaml", work / "config/studies/null.yaml"
    dataset.write_text(dataset.read_text() + f"test_cases: {list(TEST)}\n")
    content = yaml.safe_load(study.read_text())
    content |= {"folds": 2, "baseline": "no", "settings": {"no": SETTING, "1e3": {"inherits": "no", "batch": 3}}}
    content["ensembles"] = {"null": {"members": ["no", "1e3"], "postprocess": True}}
    study.write_text(yaml.safe_dump(content))
    done = snakemake(repository, work, "--configfile", str(study))
    assert done.returncode == 0, done.stderr
    return work / "results/null"


def test_every_case_and_label_is_scored_under_its_name(results):
    scores = read_scores(results / "scores.csv")
    assert set(scores.label) == set(LABELS)
    assert set(scores.setting) == {"no", "1e3", "null"}
    assert set(scores.case[scores.split == "validation"]) == set(CASES) - set(TEST)
    assert set(scores.case[scores.split == "test"]) == set(TEST)
    dice = scores[(scores.metric == "DSC") & (scores.setting == "no")]
    assert len(dice) == len(CASES) * len(LABELS)
    empty = dice[(dice.case == "null") | (dice.label == "off")]
    assert ((empty.value.isna()) | (empty.value == 0)).all()


def test_the_label_maps_of_odd_volumes_have_their_grid_and_codes(results):
    (flat,) = results.glob(f"no/fold-*/validation/{FLAT}.nii.gz")
    predicted = nibabel.load(flat)
    assert predicted.shape == (*SHAPE[:2], 1)
    assert np.array_equal(predicted.affine, AFFINE)
    for path in results.glob("no/**/*.nii.gz"):
        assert set(np.unique(nibabel.load(path).dataobj)) <= {0, *LABELS.values()}


def test_the_tables_of_the_report_name_every_setting_and_label(results):
    tables = results / "report/tables"
    for name in ("summary", "labels"):
        with (tables / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        words = {value for row in rows for value in row.values()}
        assert {"no", "1e3", "null"} <= words, name
    assert set(LABELS) <= words
    page = (results / "report/index.html").read_text()
    assert all(case in page for case in ("a b", "c.d.v2", "名-ü"))
