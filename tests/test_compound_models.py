"""Exported models with parts: cascades label scans as their study labelled its test cases."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megavoxel.cli import main
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.volumes.open import read_labels
from trained_study import STUDY, stage, train_study

HARDLY_TRAINED = {"epochs": 1, "iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A study of the setting `only`, whose networks have hardly learnt anything, and of `refined` behind it."""
    defaults = {**STUDY["defaults"], "training": {**STUDY["defaults"]["training"], **HARDLY_TRAINED}}
    results = train_study(tmp_path_factory.mktemp("study"), content={**STUDY, "defaults": defaults})
    _add_refined(results)
    return results


def _add_refined(results: Path) -> None:
    """Adds a setting that gets the label maps of `only`, with weights at random; labels the test cases by it."""
    setting, plan = results / "refined", load_plan(results / "only/plan.json")
    network = replace(plan.network, prior_channels=plan.network.classes - 1)
    plan = replace(plan, setting="refined", stage1=("only",), network=network)
    save_plan(setting / "plan.json", plan)
    weights = [_made_fold(results, setting, fold) for fold in range(2)]
    cases = ("--preprocessed", results / "preprocessed/cases", "--splits", results / "splits.json", "--split", "test")
    words = ("--plan", setting / "plan.json", *cases)
    stage("stage1", *words, "--predictions", results / "only/test-raw", "--output", setting / "stage1/test")
    predicted = ("--stage1", setting / "stage1/test", "--output", setting / "test-raw", "--threads", 1)
    stage("predict", *words, "--weights", *weights, *predicted)


def _made_fold(results: Path, setting: Path, fold: int) -> Path:
    """model.pt of a fold that was not trained, beside the manifest of one that was."""
    folder, plan = setting / f"fold-{fold}", load_plan(setting / "plan.json")
    folder.mkdir(parents=True)
    shutil.copy(results / f"only/fold-{fold}/manifest.json", folder)
    network = SegmentationNetwork(plan.network, seed=fold + 3)
    save_weights(folder / "model.pt", network, plan_hash=plan.hash, precision="float32")
    return folder / "model.pt"


@pytest.fixture(scope="module")
def cascade(results, tmp_path_factory) -> Path:
    """Both stages, exported."""
    target = tmp_path_factory.mktemp("models") / "cascade"
    stage("export", results / "refined", "--to", target, "--dataset", results.parents[1] / "dataset.yaml")
    return target


@pytest.fixture
def scans(results) -> Path:
    return results.parents[1] / "data/imagesTs"


def predict(*words: object) -> int:
    return main(["predict", *map(str, words), "--device", "cpu", "--threads", "1"])


def maps(folder: Path) -> dict[str, bytes]:
    """Content of the label maps of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.slow
def test_a_cascade_labels_scans_as_its_study_labelled_its_test_cases(results, cascade, scans, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(cascade, moved)
    words = ("--model", moved, "--input", scans, "--output", tmp_path / "out")
    assert predict(*words) == 0
    wanted = maps(results / "refined/test-raw")
    assert maps(tmp_path / "out") == wanted
    assert maps(tmp_path / "out/first_stage/only") == maps(results / "only/test-raw")
    assert len(wanted) == 5
    assert all(read_labels(path)[0].any() for path in (results / "refined/test-raw").glob("*.nii.gz"))
    capsys.readouterr()
    (tmp_path / "out" / min(wanted)).unlink()
    assert predict(*words) == 0
    assert "4 of 5 cases are there already" in capsys.readouterr().out
    assert maps(tmp_path / "out") == wanted


@pytest.mark.slow
def test_a_scan_that_its_first_stage_cannot_label_is_named_once(cascade, scans, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    sound, broken = sorted(shutil.copy(image, tmp_path / "in") for image in sorted(scans.iterdir())[:2])
    Path(broken).write_bytes(Path(broken).read_bytes()[:-500])
    assert predict("--model", cascade, "--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "error: 1 of 2 cases were not labelled:\n" in message
    assert message.count(f"/{Path(broken).name}: ") == 1
    assert set(maps(tmp_path / "out")) == {Path(sound).name}


def test_a_cascade_is_held_to_the_checksums_of_its_first_stage(cascade, scans, tmp_path, capsys):
    shutil.copytree(cascade, tmp_path / "copy")
    words = ("--model", tmp_path / "copy", "--input", scans, "--output", tmp_path / "out")
    first = tmp_path / "copy/first_stage/only"
    (first / "fold-0.pt").write_bytes(b"no weights")
    assert predict(*words) == 1
    assert "first_stage/only/fold-0.pt: missing, damaged or changed since the export" in capsys.readouterr().err
    content = json.loads((first / "model.json").read_text())
    (first / "model.json").write_text(json.dumps(content | {"authors": "somebody else"}))
    assert predict(*words) == 1
    assert "first_stage/only/model.json: missing, damaged or changed since the export" in capsys.readouterr().err
    content = json.loads((tmp_path / "copy/model.json").read_text())
    for parts, expected in (({}, "first_stage: expected ['only']"), ({"..": "0"}, "names of files beside it")):
        (tmp_path / "copy/model.json").write_text(json.dumps(content | {"first_stage": parts}))
        assert predict(*words) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_first_stage_is_exported_with_all_of_its_folds(results, tmp_path, capsys):
    copied = tmp_path / "little"
    shutil.copytree(results, copied, ignore=shutil.ignore_patterns("preprocessed"))
    shutil.rmtree(copied / "only/fold-1")
    assert main(["export", str(copied / "refined"), "--to", str(tmp_path / "out")]) == 1
    assert "it is the first stage of refined, and its fold 1 is not trained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cascade_is_no_bundle(results, tmp_path, capsys):
    words = ["export", str(results / "refined"), "--to", str(tmp_path / "out"), "--format", "bundle"]
    assert main(words) == 1
    assert "it is the second stage of a cascade, and a MONAI Bundle has the networks of one" in capsys.readouterr().err
