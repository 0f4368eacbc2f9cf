"""Models to take away: what is exported, how it labels scans, and the same by MONAI's bundle."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from megavoxel import files
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import KeepLargest, Postprocessing, apply_postprocessing, save_postprocessing
from megavoxel.files import file_sha256, partial_prefix
from megavoxel.inference.temperature import Temperature, save_temperature
from megavoxel.network.tensor_files import load_tensors, save_tensors
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.volumes.open import read_labels
from trained_study import DATASET, train_study

MANDATORY = (
    "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task", "description",
    "authors", "copyright", "network_data_format",
)  # fmt: skip
MANDATORY_OF_TENSORS = (
    "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def",
)  # fmt: skip
# Both as docs.monai.io/en/stable/mb_specification.html lists them; MONAI 1.6 renames optional_packages_version.


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A finished study; its post-processing is made one that changes label maps."""
    results = train_study(tmp_path_factory.mktemp("trained"))
    rules = Postprocessing(keep_largest=KeepLargest(foreground=True))
    setting = results / "only"
    save_postprocessing(setting / "postprocessing.json", rules)
    shutil.rmtree(setting / "test")
    applied = ["--predictions", setting / "test-raw", "--cases", results / "cases.json", "--output", setting / "test"]
    assert main(["postprocess", "--apply", str(setting / "postprocessing.json"), *map(str, applied)]) == 0
    return results


@pytest.fixture(scope="module")
def model(results, tmp_path_factory) -> Path:
    """Both folds, exported."""
    target = tmp_path_factory.mktemp("models") / "little"
    export(results / "only", "--to", target, "--dataset", results.parents[1] / "dataset.yaml", "--authors", "A. Nonym")
    return target


@pytest.fixture
def scans(results) -> Path:
    """Five scans in five orientations, one of them oblique, of other spacings than the network's."""
    return results.parents[1] / "data" / "imagesTs"


def export(*words: object) -> None:
    assert main(["export", *map(str, words)]) == 0


def predict(*words: object) -> int:
    return main(["predict", *map(str, words), "--device", "cpu", "--threads", "1"])


def refused(capsys, *words: object) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 1
    return capsys.readouterr().err


def maps(folder: Path) -> dict[str, bytes]:
    """Content of the label maps of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.slow
def test_a_model_labels_scans_as_the_study_labelled_its_test_cases(results, model, scans, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(model, moved)  # it needs nothing but itself
    monkeypatch.chdir(tmp_path)
    assert predict("--model", moved, "--input", scans, "--output", tmp_path / "out") == 0
    wanted = maps(results / "only" / "test")
    assert len(wanted) == 5
    assert maps(tmp_path / "out") == wanted
    assert wanted != maps(results / "only" / "test-raw")
    codes = {nibabel.aff2axcodes(nibabel.load(path).affine) for path in scans.iterdir()}
    assert len(codes) > 2
    assert any(read_labels(path)[0].any() for path in (results / "only" / "test").iterdir())


def test_a_model_says_what_it_was_trained_on_and_how_good_it_was(results, model):
    found = json.loads((model / "model.json").read_text())
    assert found["dataset"] == {key: DATASET[key] for key in ("name", "description", "licence", "reference")}
    assert (found["channels"], found["authors"], found["postprocessed"]) == (["CT"], "A. Nonym", True)
    assert [(fold["training_cases"], fold["validation_cases"]) for fold in found["folds"]] == [(2, 2), (2, 2)]
    scores = pd.read_csv(results / "scores.csv")
    for mean in found["scores"]:
        own = scores[(scores["split"] == mean["split"]) & (scores["metric"] == mean["metric"])].dropna()
        by_case = own.pivot_table(index="case", columns="label", values="value")
        column = by_case.mean(axis=1) if mean["label"] is None else by_case[mean["label"]].dropna()
        assert (mean["mean"], mean["cases"]) == (pytest.approx(column.mean()), len(column))
    assert {mean["split"] for mean in found["scores"]} == {"validation", "test"}
    card = (model / "README.md").read_text()
    whole = next(mean for mean in found["scores"] if (mean["split"], mean["label"]) == ("test", None))
    for words in ("CC0-1.0", "Nobody 2026", "A. Nonym", "| all ", f"{whole['mean']:.3f}", "2 mm", "no medical device"):
        assert words in card
    assert {path.name for path in model.iterdir()} == {
        "README.md", "fold-0.pt", "fold-1.pt", "model.json", "plan.json", "postprocessing.json"
    }  # fmt: skip


@pytest.mark.slow
def test_some_folds_make_a_model_without_the_scores_of_all(results, model, scans, tmp_path, capsys):
    export(results / "only" / "fold-1", "--to", tmp_path / "one", "--dataset", results.parents[1] / "dataset.yaml")
    said = capsys.readouterr().out
    assert "note: fold 0 of the study's splits.json: not in this model" in said
    assert f"next:\n  megavoxel predict --model {tmp_path / 'one'} --input SCANS" in said
    found = json.loads((tmp_path / "one/model.json").read_text())
    assert [fold["fold"] for fold in found["folds"]] == [1]
    assert {mean["split"] for mean in found["scores"]} == {"validation"}
    assert max(mean["cases"] for mean in found["scores"]) == 2
    image = min(scans.iterdir())
    assert predict("--model", tmp_path / "one", "--input", image, "--output", tmp_path / "out") == 0
    weights, plan = results / "only/fold-1/model.pt", results / "only/plan.json"
    assert predict("--plan", plan, "--weights", weights, "--input", image, "--output", tmp_path / "raw") == 0
    labels = read_labels(tmp_path / "raw" / image.name)[0]
    kept = apply_postprocessing(labels, Postprocessing(keep_largest=KeepLargest(foreground=True)), {})
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / image.name)[0], kept)


@pytest.mark.slow
def test_a_dataset_file_is_found_by_name_or_missed_aloud(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export(results / "only", "--to", tmp_path / "bare")
    assert "no file of the dataset little-phantom in config/datasets" in capsys.readouterr().out
    assert "| Licence of the data  | not stated" in (tmp_path / "bare/README.md").read_text()
    (tmp_path / "config/datasets").mkdir(parents=True)
    (tmp_path / "config/datasets/any.yaml").write_text(yaml.safe_dump(DATASET))
    export(results / "only", "--to", tmp_path / "full")
    assert "CC0-1.0" in (tmp_path / "full/README.md").read_text()
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**DATASET, "name": "other"}))
    words = ("export", results / "only", "--to", tmp_path / "x", "--dataset", tmp_path / "other.yaml")
    assert "it is the file of other; the model was trained on little-phantom" in refused(capsys, *words)


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_by_name(results, tmp_path, capsys):
    copied = tmp_path / "little"
    shutil.copytree(results, copied, ignore=shutil.ignore_patterns("preprocessed"))
    shutil.copytree(copied / "only", copied / "second")
    (copied / "second/fold-1/model.pt").unlink()
    (copied / "ensembles/both").mkdir(parents=True)
    shutil.copytree(copied / "only", copied / "refined")
    plan = load_plan(copied / "refined/plan.json")
    network = replace(plan.network, prior_channels=plan.network.classes - 1)
    save_plan(copied / "refined/plan.json", replace(plan, stage1=("coarse",), network=network))
    shutil.copytree(copied / "only", copied / "classes")
    (copied / "classes/plan.json").write_text('{"task": "classification"}')
    for named, words in (
        (["classes"], "it is of classification, of images; only models that segment scans are exported"),
        (["ensembles/both"], "an ensemble of settings; name its study file"),
        (["second"], "second/fold-1: there is no model.pt, so it is not trained yet"),
        (["only", "second/fold-0"], "are two settings: a model is one setting with its folds"),
        (["refined"], "it is the second stage of a cascade after coarse, and there is no"),
        (["nothing"], "no trained run; expected results/STUDY/SETTING"),
        (["only/fold-7"], "no trained run"),
    ):
        message = refused(capsys, "export", *(copied / name for name in named), "--to", tmp_path / "out")
        assert words in message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
    (copied / "only/fold-0/manifest.json").write_text("{}")
    assert "manifest.json: damaged, or of another version" in refused(
        capsys, "export", copied / "only", "--to", tmp_path / "out"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "bundle"])
def test_an_export_is_whole_or_absent_and_replaces_nothing(results, tmp_path, capsys, kind):
    copied = tmp_path / "little"
    shutil.copytree(results, copied, ignore=shutil.ignore_patterns("preprocessed"))
    weights = copied / "only/fold-1/model.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    words = ("export", copied / "only", "--to", tmp_path / "out", "--format", kind)
    assert "fold-1/model.pt: no weights of megavoxel, or damaged" in refused(capsys, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"little"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    assert "has content already" in refused(capsys, *words)


@pytest.mark.slow
def test_finished_cases_are_skipped_and_half_made_ones_are_made_again(model, scans, tmp_path, capsys, monkeypatch):
    images, output = sorted(scans.iterdir())[:2], tmp_path / "out"
    words = ("--model", model, "--input", *images, "--output", output)
    assert predict(*words) == 0
    first, second = (output / image.name for image in images)
    wanted, stamp = maps(output), first.stat().st_mtime_ns
    second.unlink()
    half = output / f"{partial_prefix().replace(str(os.getpid()), '999999')}a"  # as a killed job leaves it
    half.mkdir()
    (half / second.name).write_bytes(wanted[second.name][:100])
    monkeypatch.setattr(files, "_looked_at", set())  # as in a new process
    capsys.readouterr()
    assert predict(*words) == 0
    assert "1 of 2 cases are there already" in capsys.readouterr().out
    assert maps(output) == wanted
    assert first.stat().st_mtime_ns == stamp
    assert {path.name for path in output.iterdir()} == {first.name, second.name, "prediction.json"}


@pytest.mark.slow
def test_kept_predictions_of_unchanged_networks_are_handed_over_again(results, tmp_path, capsys):
    """Of a study, as its rules ask for them where a removed output is to be made again."""
    setting = results / "only"
    words = ["--plan", setting / "plan.json", "--weights", *(setting / f"fold-{fold}" / "model.pt" for fold in (0, 1))]
    words += ["--preprocessed", results / "preprocessed/cases", "--splits", results / "splits.json", "--split", "test"]
    for name in ("first", "second"):
        assert predict(*words, "--resume", tmp_path / "kept", "--keep", "--output", tmp_path / name) == 0
    assert "5 of 5 cases are there already" in capsys.readouterr().out
    assert maps(tmp_path / "first") == maps(tmp_path / "second") == maps(setting / "test-raw")


@pytest.mark.slow
def test_label_maps_of_two_models_are_not_mixed(results, model, scans, tmp_path, capsys):
    image = min(scans.iterdir())
    assert predict("--model", model, "--input", image, "--output", tmp_path / "out") == 0
    export(results / "only/fold-0", "--to", tmp_path / "one")
    words = ("predict", "--model", tmp_path / "one", "--input", image)
    assert "made by another model" in refused(capsys, *words, "--output", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert "has content already" in refused(capsys, *words, "--output", tmp_path / "mine")


@pytest.mark.slow
def test_probabilities_on_demand_are_those_of_the_label_map(results, model, scans, tmp_path):
    images, output = sorted(scans.iterdir())[3:], tmp_path / "out"
    words = ("--model", model, "--input", *images, "--output", output)
    assert predict(*words) == 0
    assert predict(*words, "--probabilities") == 0  # the label maps were there, the probabilities were not
    for image in images:
        case = image.name.removesuffix(".nii.gz")
        found = nibabel.load(output / f"{case}.probabilities.nii.gz")
        raw = nibabel.load(results / "only/test-raw" / image.name)
        np.testing.assert_allclose(found.affine, raw.affine)
        values = found.get_fdata(dtype=np.float32)
        assert values.shape == (*raw.shape, 5)
        np.testing.assert_allclose(values.sum(axis=-1), 1, atol=1e-5)
        chosen, largest = np.asanyarray(raw.dataobj)[..., None].astype(int), values.max(axis=-1)
        np.testing.assert_allclose(np.take_along_axis(values, chosen, -1)[..., 0], largest, atol=1e-6)


@pytest.mark.slow
def test_a_model_with_a_temperature_gives_other_probabilities_and_the_same_labels(results, model, scans, tmp_path):
    image, path = sorted(scans.iterdir())[3], results / "only/temperature.json"
    save_temperature(path, Temperature(temperature=2.0, cases=4, voxels=1, nll=1.0))
    try:
        export(results / "only", "--to", tmp_path / "tempered")
    finally:
        path.unlink()
    found = []
    for folder in (model, tmp_path / "tempered"):
        output = tmp_path / f"by-{folder.name}"
        assert predict("--model", folder, "--input", image, "--output", output, "--probabilities") == 0
        probabilities = nibabel.load(output / image.name.replace(".nii.gz", ".probabilities.nii.gz"))
        found.append((probabilities.get_fdata(dtype=np.float32), (output / image.name).read_bytes()))
    (plain, labels), (tempered, same) = found
    assert same == labels
    expected = np.sqrt(plain) / np.sqrt(plain).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(tempered, expected, atol=1e-5)
    (tmp_path / "tempered/temperature.json").write_text("{}")
    assert predict("--model", tmp_path / "tempered", "--input", image, "--output", tmp_path / "none") == 1


@pytest.mark.slow
def test_uncertainty_on_demand_lies_on_the_grid_of_the_scan_and_changes_no_label(results, model, scans, tmp_path):
    image, output = sorted(scans.iterdir())[3], tmp_path / "out"
    assert predict("--model", model, "--input", image, "--output", output, "--uncertainty") == 0
    found = nibabel.load(output / image.name.replace(".nii.gz", ".uncertainty.nii.gz"))
    np.testing.assert_allclose(found.affine, nibabel.load(image).affine)
    values = found.get_fdata(dtype=np.float32)
    assert values.shape == nibabel.load(image).shape
    assert 0 <= values.min() < values.max() <= np.log(2) + 1e-3
    np.testing.assert_array_equal(
        read_labels(output / image.name)[0], read_labels(results / "only/test" / image.name)[0]
    )


def test_a_model_of_one_network_has_no_uncertainty(results, scans, tmp_path, capsys):
    export(results / "only/fold-0", "--to", tmp_path / "one")
    words = ("--model", tmp_path / "one", "--input", scans, "--output", tmp_path / "out", "--uncertainty")
    assert "-only has one; leave it out, or take a model of several folds" in refused(capsys, "predict", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_damaged_scan_is_named_and_the_others_are_labelled(model, scans, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for image in sorted(scans.iterdir())[:3]:
        shutil.copy(image, tmp_path / "in")
    images = sorted((tmp_path / "in").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:-500])
    message = refused(
        capsys, "predict", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out", "--threads", 1
    )
    assert "1 of 3 cases were not labelled:" in message
    assert f"{images[1].name}: cannot be read to its end" in message
    assert set(maps(tmp_path / "out")) == {image.name for image in images if image != images[1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "package", "files"),
    [("onnx", "onnxruntime", {"fold-0.onnx"}), ("openvino", "openvino", {"fold-0.xml", "fold-0.bin"})],
)
def test_another_program_labels_scans_as_pytorch_does(results, scans, tmp_path, capsys, kind, package, files):
    for name in ("onnx", "onnxscript", package):
        pytest.importorskip(name, reason="not installed; 'make test' installs requirements-optional.lock")
    model, image = tmp_path / "model", min(scans.iterdir())
    export(results / "only/fold-0", "--to", model, "--format", kind)
    own = {"README.md", "model.json", "plan.json", "postprocessing.json"}
    assert {path.name for path in model.iterdir()} == files | own
    assert f".whl[{kind}]'" in (model / "README.md").read_text()
    export(results / "only/fold-0", "--to", tmp_path / "pytorch")
    for name in ("model", "pytorch"):
        assert predict("--model", tmp_path / name, "--input", image, "--output", tmp_path / f"by-{name}") == 0
    theirs, ours = (read_labels(tmp_path / f"by-{name}" / image.name)[0] for name in ("model", "pytorch"))
    assert ours.any()
    assert (theirs == ours).mean() >= 0.9999
    words = ("predict", "--model", model, "--input", image, "--output", tmp_path / "out")
    assert "runs on a CPU" in refused(capsys, *words, "--device", "cuda")
    last = max(files)
    (model / last).write_bytes((model / last).read_bytes()[:-1] + b"x")
    assert f"{last}: missing, damaged or changed since the export" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_changed_or_foreign_folder_is_no_model(model, scans, tmp_path, capsys):
    words = ("--input", scans, "--output", tmp_path / "out")
    assert "model.json: there is no such file, so" in refused(capsys, "predict", "--model", tmp_path, *words)
    shutil.copytree(model, tmp_path / "copy")
    weights = tmp_path / "copy/fold-1.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "fold-1.pt: missing, damaged or changed since the export" in refused(
        capsys, "predict", "--model", tmp_path / "copy", *words
    )
    description = json.loads((model / "model.json").read_text())
    for change, expected in (
        ({"format": 2}, "format 2, and this version of megavoxel reads 1"),
        ({"sha256": {"../plan.json": "0"}}, "names of files beside it"),
        ({"folds": []}, "expected one or more"),
    ):
        (tmp_path / "copy/model.json").write_text(json.dumps({**description, **change}))
        assert expected in refused(capsys, "predict", "--model", tmp_path / "copy", *words)


@pytest.mark.parametrize("name", ["plan.json", "fold-1.pt", "postprocessing.json"])
def test_files_without_a_checksum_are_not_read(model, scans, tmp_path, capsys, name):
    copy, output = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(model, copy)
    description = json.loads((model / "model.json").read_text())
    del description["sha256"][name]
    (copy / "model.json").write_text(json.dumps(description))
    message = refused(capsys, "predict", "--model", copy, "--input", scans, "--output", output)
    assert f"model.json: sha256: expected a checksum of {name}, without which it is not read" in message
    assert not output.exists()


def test_a_refused_model_leaves_nothing_in_the_output(model, scans, tmp_path, capsys):
    copy, output = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(model, copy)
    (copy / "fold-1.pt").write_bytes(b"no weights")
    description = json.loads((model / "model.json").read_text())
    description["sha256"]["fold-1.pt"] = file_sha256(copy / "fold-1.pt")
    (copy / "model.json").write_text(json.dumps(description))
    message = refused(capsys, "predict", "--model", copy, "--input", scans, "--output", output)
    assert "fold-1.pt: no weights of megavoxel, or damaged (no archive of PyTorch)" in message
    assert not output.exists()


def test_a_network_that_no_memory_holds_is_refused_by_its_weights(model, scans, tmp_path, capsys):
    """3 x 3 x 3 kernels between 4096 features take 1.8 GB each."""
    copy, output = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(model, copy)
    plan = load_plan(copy / "plan.json")
    huge = replace(plan, network=replace(plan.network, features=(4096,) * len(plan.network.features)))
    save_plan(copy / "plan.json", huge)
    description = json.loads((model / "model.json").read_text())
    for name in ("fold-0.pt", "fold-1.pt"):
        save_tensors(copy / name, load_tensors(copy / name) | {"plan_hash": huge.hash})
    description["sha256"] |= {name: file_sha256(copy / name) for name in ("plan.json", "fold-0.pt", "fold-1.pt")}
    (copy / "model.json").write_text(json.dumps(description))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(capsys, "predict", "--model", copy, "--input", scans, "--output", output)
    assert "fold-0.pt: its weights do not fit the network of the plan" in message
    assert len(message.splitlines()) == 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 2**19  # KiB


def test_options_that_do_not_go_together_are_refused(model, scans, tmp_path, capsys):
    words = ("predict", "--output", tmp_path / "out")
    assert "give either --model, or --plan and --weights" in refused(capsys, *words, "--input", scans)
    assert "--model needs --input" in refused(capsys, *words, "--model", model)
    mixed = (*words, "--model", model, "--input", scans, "--fold", 0)
    assert "--fold: not with --model; leave it out" in refused(capsys, *mixed)
    plain = (*words, "--plan", model / "plan.json", "--weights", model / "fold-0.pt")
    assert "--probabilities: not for cases of a study" in refused(capsys, *plain, "--probabilities")
    assert "--fold: not with --input; leave it out" in refused(capsys, *plain, "--input", scans, "--fold", 0)
    wrong = (*words, "--model", model, "--input", scans, "--assume-orientation", "RAR")
    assert "--assume-orientation RAR: expected where the axes i, j, k run to" in refused(capsys, *wrong)


@pytest.fixture(scope="module")
def bundle(results, tmp_path_factory) -> Path:
    """Both folds as a MONAI Bundle."""
    target = tmp_path_factory.mktemp("bundles") / "little"
    dataset = results.parents[1] / "dataset.yaml"
    export(results / "only", "--to", target, "--format", "bundle", "--dataset", dataset)
    return target


@pytest.mark.slow
def test_the_bundle_labels_every_voxel_as_the_study_did(repository, results, bundle, scans, tmp_path):
    pytest.importorskip("fire")
    command = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--bundle_root", ".",
        "--dataset_dir", str(scans), "--output_dir", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    paths = [str(repository / "workflow"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        command, cwd=bundle, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert maps(tmp_path / "out") == maps(results / "only" / "test")


@pytest.mark.parametrize("name", ["configs/plan.json", "models/model.pt", "configs/postprocessing.json"])
def test_a_bundle_is_held_to_its_checksums(bundle, tmp_path, name):
    from megavoxel.models.bundle_parts import FoldEnsemble, Labeller, WindowInferer

    def opened(folder: Path) -> None:
        inferer = WindowInferer(FoldEnsemble(f"{folder}/configs"), f"{folder}/models/model.pt", "cpu")
        Labeller(inferer, [], f"{folder}/configs", str(tmp_path / "out"))

    opened(bundle)
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes((bundle / name).read_bytes() + b"\n")
    with pytest.raises(UserError, match=f"{name}: missing, damaged or changed since the export"):
        opened(tmp_path / "copy")


def test_the_bundle_has_the_files_and_the_metadata_of_the_specification(bundle):
    for name in ("configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md"):
        assert (bundle / name).stat().st_size > 0
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert not [key for key in MANDATORY if key not in metadata]
    tensors = metadata["network_data_format"]
    for tensor in (tensors["inputs"]["image"], tensors["outputs"]["pred"]):
        assert not [key for key in MANDATORY_OF_TENSORS if key not in tensor]
    assert tensors["inputs"]["image"]["modality"] == "CT"
    assert tensors["outputs"]["pred"]["channel_def"]["0"] == "background"
    assert "validation_mean_dsc" in metadata["eval_metrics"]
    card = (bundle / "docs/README.md").read_text()
    assert "CC0-1.0" in card
    assert "monai.bundle run" in card
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_monai_finds_all_that_a_bundle_for_inference_has_to_have(bundle, scans, monkeypatch):
    from monai.bundle import ConfigWorkflow, verify_net_in_out

    monkeypatch.chdir(bundle)
    configuration, metadata = str(bundle / "configs/inference.json"), str(bundle / "configs/metadata.json")
    workflow = ConfigWorkflow(
        config_file=configuration, meta_file=metadata, workflow_type="infer", dataset_dir=str(scans)
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    verify_net_in_out("network_def", meta_file=metadata, config_file=configuration, device="cpu")
    logits = workflow.inferer(torch.zeros(1, 1, 10, 20, 20))
    assert logits.shape == (1, 5, 10, 20, 20)


def test_the_extras_that_cards_and_messages_name_are_there(repository):
    text = (repository / "pyproject.toml").read_text()
    for name in ("bundle", "onnx", "openvino"):
        assert f"\n{name} = [" in text
