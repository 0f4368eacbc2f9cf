"""`folds: all`: a network of all cases, beside the folds or alone, of which nothing is validated."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
import yaml

from helpers import three_cases, tiny_plan
from megavoxel.cli import main
from megavoxel.config.study import Study
from megavoxel.config.study_file import parse_study
from megavoxel.errors import UserError
from megavoxel.models.directory import load_model
from megavoxel.planning.plan import save_plan
from megavoxel.planning.splits import Fold, Splits, fold_of, save_splits
from megavoxel.reporting.runs import Folders, begun_runs
from megavoxel.tasks.segmentation.training import train
from megavoxel.training.manifest import write_outputs
from test_workflow import TINY
from workflow_runs import PHANTOM, snakemake

SPLITS = Splits(folds=(Fold(training=("b", "c"), validation=("a",)), Fold(training=("a",), validation=("b", "c"))))


def study(**settings) -> Study:
    return parse_study({"study": "s", "dataset": "chaos", "folds": 3, "settings": settings}, source="s.yaml")


def test_all_stands_beside_folds_or_alone():
    found = study(a={}, b={"folds": "all"}, c={"folds": [2, "all", 0]}, d={"folds": [1]})
    assert [found.folds_of(setting) for setting in found.settings] == [(0, 1, 2), (), (2, 0), (1,)]
    assert [found.networks_of(setting) for setting in found.settings] == [(0, 1, 2), ("all",), (2, 0, "all"), (1,)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baseline": "b"}, "settings.b.folds: one network on all cases, of which nothing is validated"),
        ({"ensembles": {"e": {"members": ["a", "b"]}}}, "settings.b.folds: one network on all cases"),
        ({"sweeps": {"x": {"title": "t", "points": {"1": "a", "2": "b"}}}}, "there is no setting 'b'"),
        (
            {"settings": {"a": {}, "b": {"stage1": ["c"]}, "c": {"folds": ["all"]}}},
            "'c' is trained on 0 of the 3 folds",
        ),
        ({"settings": {"a": {}, "b": {"start": "a", "folds": "all"}}}, "'a' is not trained on fold all"),
        ({"settings": {"a": {"folds": ["every"]}}}, "settings.a.folds"),
        ({"settings": {"a": {"folds": ["all", "all"]}}}, "each value may stand there once"),
    ],
)
def test_what_needs_validation_is_refused_by_name(keys, message):
    values = {"study": "s", "dataset": "chaos", "folds": 3, "settings": {"a": {}, "b": {"folds": "all"}}, **keys}
    with pytest.raises(UserError, match=re.escape(message)):
        parse_study(values, source="s.yaml")


def test_all_cases_train_and_none_validates():
    assert fold_of(SPLITS, "all", source=Path("splits.json")) == Fold(training=("a", "b", "c"), validation=())


def trained(folder: Path):
    plan = tiny_plan(setting="a", study="s", training={"epochs": 1, "iterations_per_epoch": 1})
    data = three_cases(folder)
    data = replace(data, training=("case0", "case1", "case2"), validation=(), number=2, is_of_all=True, folds=2)
    run = train(plan, data, folder / "state", torch.device("cpu"))
    results = folder / "results/s"
    results.mkdir(parents=True)
    save_splits(results / "splits.json", SPLITS)
    (results / "a/fold-all").mkdir(parents=True)
    save_plan(results / "a/plan.json", plan)
    write_outputs(results / "a/fold-all", run, data, forecast_gib=0.0)
    return results / "a"


def test_it_is_trained_listed_and_exported_without_scores(tmp_path, capsys):
    setting = trained(tmp_path)
    manifest = json.loads((setting / "fold-all/manifest.json").read_text())
    assert (manifest["fold"], manifest["data"]["validation"]) == ("all", [])
    (row,) = pandas.read_csv(setting / "fold-all/history.csv").to_dict("records")
    assert math.isnan(row["validation_loss"])
    assert math.isfinite(row["training_loss"])
    assert begun_runs(Folders(study="s", root=tmp_path)) == [("a", "all")]
    assert main(["status", str(setting.parent)]) == 0
    assert re.search(r"a +all +done +1\n", capsys.readouterr().out)
    assert main(["export", str(setting / "fold-all"), "--to", str(tmp_path / "model")]) == 0
    assert "fold all is trained on all cases, so that nothing of this model is validated" in capsys.readouterr().out
    (fold,) = load_model(tmp_path / "model").description.folds
    assert (fold.fold, fold.weights, fold.training_cases, fold.validation_cases) == ("all", "fold-all.pt", 3, 0)


def test_it_is_no_member_of_the_ensemble_of_folds(tmp_path, capsys):
    setting = trained(tmp_path)
    (setting / "fold-all").rename(setting / "fold-0")
    (setting / "fold-all").mkdir()
    assert main(["export", str(setting / "fold-0"), str(setting / "fold-all"), "--to", str(tmp_path / "model")]) == 1
    assert "fold-all: it is trained on all cases and no member of the cross-validation" in capsys.readouterr().err
    assert main(["export", str(setting), "--to", str(tmp_path / "model")]) == 0
    assert load_model(tmp_path / "model").plan.setting == "a"


def test_patience_needs_cases_to_look_at(tmp_path, capsys):
    save_plan(tmp_path / "plan.json", tiny_plan(training={"patience": 2}))
    save_splits(tmp_path / "splits.json", SPLITS)
    words = ["--plan", "plan.json", "--preprocessed", "p", "--splits", "splits.json", "--state", "s", "--output", "o"]
    options = [str(tmp_path / word) if number % 2 else word for number, word in enumerate(words)]
    assert main(["train", *options, "--fold", "all", "--device", "cpu"]) == 1
    assert "training.patience looks at validation cases, and fold all has none" in capsys.readouterr().err


@pytest.mark.slow
def test_the_workflow_trains_it_and_scores_the_folds_alone(repository, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(PHANTOM))
    settings = {"a": {"folds": [0, "all"]}, "b": {"folds": "all"}}
    values = {**TINY, "dataset": "small.yaml", "settings": settings, "baseline": "a", "ensembles": {}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    done = snakemake(repository, tmp_path, "--configfile", "study.yaml", "-n")
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split()[:2] for line in done.stdout.splitlines() if re.match(r"\w+ +\d+$", line))
    assert (jobs["train"], jobs["predict_validation"], jobs["evaluate_test"]) == ("3", "1", "1")
    values = {**values, "settings": {"b": {"folds": "all"}}}
    del values["baseline"], values["timing"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    done = snakemake(repository, tmp_path, "--configfile", "study.yaml", "-n")
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split()[:2] for line in done.stdout.splitlines() if re.match(r"\w+ +\d+$", line))
    assert jobs["train"] == "1"
    assert "report" not in jobs
