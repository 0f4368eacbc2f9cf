"""`folds: 1`: all training cases train, none is validated, and the test split alone is scored."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas
import pytest
import yaml

from megavoxel.cli import main
from megavoxel.config.study_file import parse_study
from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.forecast.duration import Workload
from megavoxel.planning.splits import Fold, make_splits
from scans import unwritten
from workflow_runs import PHANTOM, snakemake

TINY = {
    "study": "one", "dataset": "phantom.yaml", "folds": 1, "baseline": "a", "metrics": ["dsc"],
    "defaults": {
        "patch": [8, 16, 16], "batch": 2, "network": {"base_features": 4, "levels": 2},
        "training": {"epochs": 1, "iterations_per_epoch": 2, "workers": 0, "precision": "float32"},
    },
    "settings": {"a": {}, "b": {"seeds": [2]}},
    "ensembles": {"both": {"members": ["a", "b-seed2"]}},
}  # fmt: skip


def with_labels(cases: Cases) -> Cases:
    return replace(cases, cases=tuple(replace(case, label="none.nii.gz") for case in cases.cases))


def test_all_training_cases_train_and_none_validates():
    splits = make_splits(with_labels(unwritten(3, tests=2)), 1, 0)
    assert splits.folds == (Fold(training=("c000", "c001", "c002"), validation=()),)
    assert splits.test == ("t000", "t001")


@pytest.mark.parametrize("cases", [with_labels(unwritten(3)), unwritten(3, tests=1)], ids=["none", "without labels"])
def test_without_labelled_test_cases_nothing_would_be_scored(cases):
    with pytest.raises(UserError, match=r"no labelled test cases, and with one fold nothing is validated"):
        make_splits(cases, 1, 0)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"timing": {"split": "validation"}}, "timing.split"),
        ({"settings": {"a": {"training": {"patience": 3}}}}, "settings.a.training.patience"),
        ({"settings": {"a": {}, "b": {"stage1": ["a"]}}}, "settings.b.stage1"),
    ],
)
def test_what_needs_validation_cases_is_refused_by_name(keys, named):
    values = {"study": "s", "dataset": "chaos", "folds": 1, "settings": {"a": {}}, **keys}
    with pytest.raises(UserError, match=re.escape(f"s.yaml: {named}: it needs validation cases")):
        parse_study(values, source="s.yaml")
    parse_study({**values, "folds": 2}, source="s.yaml")


def test_a_file_of_one_fold_has_validation_cases():
    values = {"study": "s", "dataset": "chaos", "folds": 1, "settings": {"a": {}}}
    assert not parse_study(values, source="s.yaml").validates
    assert parse_study({**values, "splits": "splits_final.json"}, source="s.yaml").validates


def test_the_forecast_counts_no_prediction_of_validation_cases():
    assert Workload(training_cases=12, folds=1).validation_cases == 0
    assert Workload(training_cases=12, folds=3).validation_cases == 4


@pytest.mark.slow
def test_a_study_of_one_fold_is_scored_on_its_test_cases_up_to_the_page(repository, tmp_path, capsys):
    (tmp_path / "phantom.yaml").write_text(yaml.safe_dump(PHANTOM))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TINY))
    done = snakemake(repository, tmp_path, "--configfile", "study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results/one"
    scores = pandas.read_csv(results / "scores.csv")
    assert set(scores["split"]) == {"test"}
    assert set(scores["setting"]) == {"a", "b-seed2", "both"}
    manifest = json.loads((results / "a/fold-0/manifest.json").read_text())
    assert (len(manifest["data"]["training"]), manifest["data"]["validation"]) == (4, [])
    assert "no cases to validate on" in (results / "a/postprocessing.json").read_text()
    tables = results / "report/tables"
    assert "This study validates no cases." in (tables / "best.md").read_text()
    assert "DSC (test)" in (tables / "cost.md").read_text()
    page = (results / "report/index.html").read_text()
    assert "Best by cross-validation" not in page
    assert "Mean DSC of the test cases against the peak memory" in page
    assert main(["status", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "nan" not in shown
    assert shown.count(" done ") == 2
