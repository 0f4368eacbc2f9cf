"""Exported models with parts: cascades and ensembles label scans as their study labelled its test cases."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from megavoxel.cli import main
from megavoxel.evaluation.postprocessing import KeepLargest, Postprocessing, save_postprocessing
from megavoxel.models import compound
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.volumes.open import read_labels
from trained_study import DATASET, STUDY, stage, train_study

HARDLY_TRAINED = {"epochs": 1, "iterations_per_epoch": 1}
CONTENT = {
    **STUDY,
    "defaults": {
        **STUDY["defaults"],
        "training": {**STUDY["defaults"]["training"], **HARDLY_TRAINED},
        "inference": {"mirror": False},
    },
    "settings": {
        "only": {},
        "refined": {"stage1": ["only"]},
        "flat": {"preprocessing": {"dimensions": 2}, "patch": [1, 24, 24]},
    },
    "ensembles": {"both": {"members": ["flat", "refined"], "postprocess": True}},
}
FEW_CASES = {**DATASET, "source": {"phantom": {**DATASET["source"]["phantom"], "test_cases": 2}}}
RULES = Postprocessing(keep_largest=KeepLargest(labels=("liver", "stomach", "aorta", "gland")))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A study whose networks have hardly learnt anything, or nothing: `only`, `refined` behind it, `flat`, and an
    ensemble of the latter two. Post-processing of `refined` and of the ensemble changes label maps.
    """
    results = train_study(tmp_path_factory.mktemp("study"), FEW_CASES, CONTENT)
    _add_refined(results)
    _add_flat(results)
    folder = results / "ensembles/both"
    for place in (results / "refined", folder):
        place.mkdir(parents=True, exist_ok=True)
        save_postprocessing(place / "postprocessing.json", RULES)
    names = ("flat", "refined")
    logits = ("--logits", *(results / name / "logits" for name in names))
    maps = ("--predictions", *(results / name / "test-raw" for name in names))
    rules = ("--postprocessing", *(results / name / "postprocessing.json" for name in names))
    stage("ensemble", "--members", *names, *logits, *maps, *rules, "--output", folder / "test-raw")
    applied = ("--cases", results / "cases.json", "--predictions", folder / "test-raw", "--output", folder / "test")
    stage("postprocess", "--apply", folder / "postprocessing.json", *applied)
    return results


def _add_flat(results: Path) -> None:
    """Adds a setting that sees slices, with weights at random; labels the test cases by it."""
    root, setting, rules = results.parents[1], results / "flat", results / "preprocessed-flat/plan.json"
    of_study = ("--study", root / "study.yaml", "--setting", "flat", "--cases", results / "cases.json")
    fingerprint = ("--fingerprint", results / "fingerprint.json")
    stage("plan-preprocessing", *of_study, *fingerprint, "--output", rules)
    stage("plan", *of_study, "--preprocessing-plan", rules, "--output", setting / "plan.json")
    stored, cases = rules.parent / "cases", ("--cases", results / "cases.json", "--plan", rules)
    stage("preprocess", *cases, "--folder", stored, "--output", rules.parent / "done.json")
    weights = [_made_fold(results, setting, fold) for fold in range(2)]
    words = ("--plan", setting / "plan.json", "--preprocessed", stored, "--splits", results / "splits.json")
    predicted = ("--logits", setting / "logits", "--output", setting / "test-raw", "--threads", 1)
    stage("predict", *words, "--split", "test", "--weights", *weights, *predicted)
    save_postprocessing(setting / "postprocessing.json", Postprocessing())


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
    predicted += ("--logits", setting / "logits")
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
    applied = ("--cases", results / "cases.json", "--predictions", results / "refined/test-raw")
    rules = results / "refined/postprocessing.json"
    stage("postprocess", "--apply", rules, *applied, "--output", tmp_path / "test")
    wanted = maps(tmp_path / "test")
    assert maps(tmp_path / "out") == wanted
    assert maps(tmp_path / "out/first_stage/only") == maps(results / "only/test-raw")
    assert len(wanted) == 2
    assert all(read_labels(path)[0].any() for path in (results / "refined/test-raw").glob("*.nii.gz"))
    capsys.readouterr()
    (tmp_path / "out" / min(wanted)).unlink()
    assert predict(*words) == 0
    assert "1 of 2 cases are there already" in capsys.readouterr().out
    assert maps(tmp_path / "out") == wanted


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


@pytest.fixture(scope="module")
def ensemble(results, tmp_path_factory) -> Path:
    """Slices and a cascade, exported together."""
    target = tmp_path_factory.mktemp("models") / "both"
    root = results.parents[1]
    words = ("--study", root / "study.yaml", "--dataset", root / "dataset.yaml")
    stage("export", results / "ensembles/both", "--to", target, *words)
    return target


@pytest.mark.slow
def test_an_ensemble_labels_scans_as_its_study_labelled_its_test_cases(results, ensemble, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(compound, "AT_ONCE", 1)
    words = ("--model", ensemble, "--input", scans, "--output", tmp_path / "out", "--probabilities", "--pictures")
    assert predict(*words) == 0
    wanted = maps(results / "ensembles/both/test")
    assert {name: maps(tmp_path / "out")[name] for name in wanted} == wanted
    assert len(wanted) == 2
    assert wanted != maps(results / "ensembles/both/test-raw")
    for name in ("flat", "refined"):
        assert maps(results / "ensembles/both/test-raw") != maps(results / name / "test-raw")
    case = min(wanted).removesuffix(".nii.gz")
    probabilities = nibabel.load(tmp_path / "out" / f"{case}.probabilities.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    raw = np.asanyarray(nibabel.load(results / "ensembles/both/test-raw" / f"{case}.nii.gz").dataobj)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), raw)
    assert (tmp_path / "out/volumes.csv").is_file()
    kinds = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("phantom")}
    assert kinds == {"prediction.json", "volumes.csv"}  # no logits, and no maps of members


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cascade", "ensemble"])
def test_a_scan_that_a_part_cannot_label_is_named_once(request, scans, tmp_path, capsys, kind):
    (tmp_path / "in").mkdir()
    sound, broken = sorted(shutil.copy(image, tmp_path / "in") for image in sorted(scans.iterdir())[:2])
    Path(broken).write_bytes(Path(broken).read_bytes()[:-500])
    model = request.getfixturevalue(kind)
    assert predict("--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "error: 1 of 2 cases were not labelled:\n" in message
    assert message.count(f"/{Path(broken).name}: ") == 1
    assert set(maps(tmp_path / "out")) == {Path(sound).name}


def test_an_ensemble_says_what_it_is_made_of_and_is_held_to_it(results, ensemble, scans, tmp_path, capsys):
    card = (ensemble / "README.md").read_text()
    assert "An ensemble of [flat](members/flat/README.md), [refined](members/refined/README.md)" in card
    assert (ensemble / "members/refined/first_stage/only/fold-1.pt").is_file()
    words = ("--model", ensemble, "--input", scans, "--output", tmp_path / "out")
    assert predict(*words, "--uncertainty") == 1
    assert "is an ensemble of settings; leave it out" in capsys.readouterr().err
    shutil.copytree(ensemble, tmp_path / "copy")
    (tmp_path / "copy/members/flat/plan.json").write_text("{}")
    assert predict("--model", tmp_path / "copy", *words[2:]) == 1
    assert "members/flat/plan.json: missing, damaged or changed since the export" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_ensemble_is_exported_as_its_study_file_has_it(results, tmp_path, capsys):
    words = ["export", results / "ensembles/both", "--to", tmp_path / "out"]
    other = tmp_path / "other.yaml"
    other.write_text((results.parents[1] / "study.yaml").read_text().replace("both:", "another:"))
    for more, expected in (
        ([], "name its study file, which says of which: --study FILE"),
        (["--study", other], "of the study little with the ensembles another; expected that of little with both"),
        (["--format", "bundle"], "a MONAI Bundle has the networks of one setting"),
    ):
        assert main(list(map(str, [*words, *more]))) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
