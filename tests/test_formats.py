"""Datasets in every format: trained on as they are, with the arrays of the same dataset in NIfTI."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as itk
import yaml

from helpers import tiny_plan
from megavoxel.cli import main
from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.errors import UserError
from megavoxel.inference.logits import open_logits
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan, load_plan, save_plan
from megavoxel.preprocessing.store import open_case
from megavoxel.volumes.checks import grid_faults
from megavoxel.volumes.open import FORMATS, SUFFIXES, open_volume, read_image, read_labels
from test_new_scans import to_itk, write_dicom
from trained_study import STUDY, train_study

CASES = ("a", "b", "c", "d")
SHAPE = (18, 15, 12)
CODES = ("RAS", "LPS", "LPS", "RAS")


def phantom(number: int) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """CT of two bodies and its label map; cases differ in their values and in where their axes run."""
    random = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    labels[3 : 9 + number, 3:9, 2:7] = 1
    labels[10:15, 8:13, 5:10] = 3
    image = (random.normal(-600, 30, SHAPE) + 300.0 * labels).astype(np.int16)
    signs = [1 if axis in "RAS" else -1 for axis in CODES[number]]
    affine = np.diag([*np.array([1.5, 1.25, 2.0]) * signs, 1.0])
    affine[:3, 3] = (-20, 12, 7.5)
    return nibabel.Nifti1Image(image, affine), nibabel.Nifti1Image(labels, affine)


def write(path: Path, image: nibabel.Nifti1Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nibabel.save(image, path)
    else:
        itk.WriteImage(to_itk(image), str(path), useCompression=True)


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def fetched(folder: Path, name: str) -> Cases:
    """What `init`, `fetch` and `check` make of a folder."""
    run("init", folder / "scans", "--name", name, "--to", folder / "config")
    dataset = folder / f"config/datasets/{name}.yaml"
    run("fetch", "--dataset", dataset, "--output", folder / "data", "--downloads", folder / "downloads")
    checks = ["--checks", folder / "checks.csv", "--output", folder / "cases.json"]
    run("check", "--dataset", dataset, "--data", folder / "data", *checks)
    return load_cases(folder / "cases.json")


def preprocessed(folder: Path, *options: object) -> None:
    """What `fingerprint`, `plan-preprocessing` and `preprocess` make of checked cases."""
    cases, fingerprint = ("--cases", folder / "cases.json"), folder / "fingerprint.json"
    run("fingerprint", *cases, "--output", fingerprint)
    definition = ("--definition", json.dumps({"spacing": [2.5, 1.5, 1.5]}))
    run("plan-preprocessing", *cases, "--fingerprint", fingerprint, *definition, "--output", folder / "plan.json")
    shard = ("--output", folder / "shard.json", "--patch", 8, 8, 8)
    run("preprocess", *cases, "--plan", folder / "plan.json", "--folder", folder / "stored", *shard, *options)


@pytest.fixture(autouse=True)
def hardware(repository, monkeypatch) -> Iterator[None]:
    """`init` finds the hardware file below the working directory."""
    monkeypatch.chdir(repository)
    return


@pytest.fixture(scope="module")
def twin(tmp_path_factory, repository) -> Path:
    """The dataset in NIfTI, preprocessed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        folder = written(tmp_path_factory.mktemp("nifti"), lambda kind, case: f"{kind}/{case}.nii.gz")
        fetched(folder, "nifti")
        preprocessed(folder)
    return folder


def written(folder: Path, name_of: Callable[[str, str], str]) -> Path:
    """All cases below `folder`/scans."""
    for number, case in enumerate(CASES):
        for kind, image in zip(("images", "labels"), phantom(number), strict=True):
            write(folder / "scans" / name_of(kind, case), image)
    return folder


def assert_same_arrays(folder: Path, twin: Path) -> None:
    """Preprocessed images and label maps are equal in every voxel, and lie on the same grids."""
    for case in CASES:
        found, wanted = (open_case(place / "stored", case) for place in (folder, twin))
        np.testing.assert_array_equal(found.image[:], wanted.image[:])
        np.testing.assert_array_equal(found.labels[:], wanted.labels[:])
        np.testing.assert_allclose(found.properties.affine, wanted.properties.affine, atol=1e-5)
        assert found.properties.spacing == wanted.properties.spacing
        assert found.properties.file_shape == wanted.properties.file_shape


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_a_dataset_of_any_format_is_trained_on_as_it_is(tmp_path, twin, suffix):
    folder = written(tmp_path, lambda kind, case: f"{kind}/{case}{suffix}")
    cases = fetched(folder, "other")
    assert [case.id for case in cases.cases] == list(CASES)
    assert all(name.endswith(suffix) for case in cases.cases for name in (*case.images, case.label))
    assert cases.channels == load_cases(twin / "cases.json").channels == ("CT",)
    preprocessed(folder)
    assert_same_arrays(folder, twin)
    texts = [(place / "fingerprint.json").read_text() for place in (folder, twin)]
    assert texts[0].replace('"other"', '"nifti"') == texts[1]
    preprocessed(folder, "--large-voxels", 1)
    for case in CASES:
        stored = open_case(folder / "stored", case)
        np.testing.assert_array_equal(stored.labels[:], open_case(twin / "stored", case).labels[:])


def test_formats_may_be_mixed_and_label_maps_be_drawn_in_another(tmp_path, twin):
    folder = written(tmp_path, lambda kind, case: f"{kind}/{case}{'.nrrd' if kind == 'images' else '.nii.gz'}")
    fetched(folder, "mixed")
    preprocessed(folder)
    assert_same_arrays(folder, twin)


def raw(folder: Path, suffix: str) -> Path:
    """All cases in the raw layout of nnU-Net."""
    written(folder, lambda kind, case: f"{kind}Tr/{case}{'_0000' if kind == 'images' else ''}{suffix}")
    labels = {"background": 0, "one": 1, "three": 3}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": suffix, "numTraining": 4}
    (folder / "scans/dataset.json").write_text(json.dumps(content))
    return folder


def test_the_raw_layout_of_nnunet_may_end_in_mha(tmp_path, twin):
    folder = raw(tmp_path, ".mha")
    assert next(case.images for case in fetched(folder, "raw").cases) == ("imagesTr/a_0000.mha",)
    preprocessed(folder)
    assert_same_arrays(folder, twin)


def mixed(folder: Path, images: Sequence[str] = (".nrrd", ".mha", "", ".mha")) -> Path:
    """Cases with images of some formats, named by a dataset.json: endings of files, or empty for DICOM slices."""
    entries = []
    for number, (case, suffix) in enumerate(zip(CASES, images, strict=True)):
        label = f"labelsTr/{case}{suffix or '.nii.gz'}"
        entries.append({"image": f"imagesTr/{case}{suffix}", "label": label})
        image, labels = phantom(number)
        write(folder / "scans" / label, labels)
        if suffix:
            write(folder / f"scans/imagesTr/{case}{suffix}", image)
        else:
            write_dicom(folder / f"scans/imagesTr/{case}", image, modality="CT")
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "one", "3": "three"}, "training": entries}
    (folder / "scans/dataset.json").write_text(json.dumps(content))
    return folder


def test_a_folder_of_dicom_slices_may_be_an_image_of_dataset_json(tmp_path, twin):
    folder = mixed(tmp_path, images=[""] * len(CASES))
    fetched(folder, "dicom")
    preprocessed(folder)
    assert_same_arrays(folder, twin)


def reported(folder: Path) -> Path:
    """The results of a study that `init` begins on a folder, trained on three cases and tested on the fourth."""
    run("init", folder / "scans", "--name", "scans", "--to", folder / "config")
    keys = {"labels": {"one": 1, "three": 3}, "test_cases": ["d"]}
    dataset = yaml.safe_load((folder / "config/datasets/scans.yaml").read_text()) | keys
    training = {
        "epochs": 1, "iterations_per_epoch": 40, "validation_iterations": 1, "workers": 0, "precision": "float32",
        "learning_rate": 0.03,
    }  # fmt: skip
    keys = {"patch": [8, 8, 8], "batch": 2, "network": {"base_features": 4, "levels": 2}, "training": training}
    results = train_study(folder, dataset, {**STUDY, "defaults": keys})
    definition = {"study": "little", "dataset": "scans", "settings": ["only"], "folds": {"only": [0, 1]}}
    run("report", "--results", results, "--definition", json.dumps(definition))
    return results


@pytest.mark.slow
def test_a_study_of_nrrd_mha_and_dicom_is_trained_scored_and_reported_like_its_twin_in_nifti(tmp_path):
    twin = reported(written(tmp_path / "nifti", lambda kind, case: f"{kind}/{case}.nii.gz"))
    scores = (twin / "scores.csv").read_text()
    assert scores.count("DSC") == 2 * 4
    assert max(float(line.rpartition(",")[2] or 0) for line in scores.splitlines()[1:]) > 0.3
    results = reported(mixed(tmp_path / "mixed"))
    assert (results / "scores.csv").read_text() == scores
    assert (results / "report/index.html").stat().st_size > 10_000
    tables = [(place / "report/tables/labels.csv").read_text() for place in (results, twin)]
    assert tables[0] == tables[1]
    for path in sorted(twin.glob("only/**/*.nii.gz")):
        found, wanted = (read_labels(place / path.relative_to(twin))[0] for place in (results, twin))
        np.testing.assert_array_equal(found, wanted)


def test_blocks_are_cut_in_the_format_of_their_volume(tmp_path):
    cut = {}
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        folder = raw(tmp_path / suffix, suffix)
        fetched(folder, "whole")
        file = folder / "config/datasets/whole.yaml"
        keys = yaml.safe_load(file.read_text()) | {"blocks": {"counts": [1, 2, 1], "margin": [0, 1, 0]}}
        file.write_text(yaml.safe_dump(keys))
        run("fetch", "--dataset", file, "--output", folder / "cut", "--downloads", folder / "downloads")
        cut[suffix] = folder / "cut"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (cut[".nii.gz"] / "imagesTr").iterdir())
    assert names[:2] == ["a-b0-0-0_0000", "a-b0-1-0_0000"]
    for suffix in (".nrrd", ".mha"):
        for kind, read in (("imagesTr", read_image), ("labelsTr", read_labels)):
            for path in (cut[".nii.gz"] / kind).iterdir():
                wanted, grid = read(path)
                found, own = read(cut[suffix] / kind / path.name.replace(".nii.gz", suffix))
                np.testing.assert_array_equal(found, wanted)
                np.testing.assert_allclose(own.affine, grid.affine, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_faults_of_a_file_are_told_alike_in_all_formats(tmp_path, suffix, capsys):
    folder = written(tmp_path, lambda kind, case: f"{kind}/{case}{suffix}")
    fetched(folder, "sound")
    image, labels = phantom(0)
    values = np.asanyarray(image.dataobj).astype(np.float32)
    values[0, 0, 0] = np.nan
    write(folder / f"scans/images/a{suffix}", nibabel.Nifti1Image(values, image.affine))
    write(folder / f"scans/images/b{suffix}", nibabel.Nifti1Image(np.full(SHAPE, 7, np.int16), phantom(1)[0].affine))
    write(folder / f"scans/labels/c{suffix}", nibabel.Nifti1Image(np.full(SHAPE, 9, np.uint8), phantom(2)[0].affine))
    moved = labels.affine.copy()
    moved[0, 3] += 3
    write(folder / f"scans/labels/d{suffix}", nibabel.Nifti1Image(np.asanyarray(labels.dataobj), moved))
    checks = ["--checks", folder / "checks.csv", "--output", folder / "cases.json"]
    words = ["check", "--dataset", folder / "config/datasets/sound.yaml", "--data", folder / "data", *checks]
    assert main([str(word) for word in words]) == 1
    message = capsys.readouterr().err
    assert f"a: finite: imagesTr/a_0000{suffix} has 1 voxels that are NaN or infinite" in message
    assert f"b: empty: imagesTr/b_0000{suffix} has the value 7 in every voxel" in message
    assert f"c: label-values: labelsTr/c{suffix} has the undeclared value 9; declared are 0 background" in message
    assert "d: affine: " in message


def untrained_model(folder: Path, plan: Plan, *, seed: int) -> list[object]:
    """Writes a plan and random weights of its network; returns the command that predicts with them."""
    save_plan(folder / "plan.json", plan)
    known = {"plan_hash": load_plan(folder / "plan.json").hash, "precision": "float32"}
    save_weights(folder / "model.pt", SegmentationNetwork(plan.network, seed=seed), **known)
    files = ["--plan", folder / "plan.json", "--weights", folder / "model.pt"]
    return ["predict", *files, "--device", "cpu", "--threads", 1]


def test_what_check_refuses_is_refused_of_a_new_scan(tmp_path, capsys):
    words = untrained_model(tmp_path, tiny_plan(), seed=0)
    image, _ = phantom(0)
    values = np.asanyarray(image.dataobj).astype(np.float32)
    values[0, 0, 0] = np.nan
    write(tmp_path / "in/a.nrrd", nibabel.Nifti1Image(values, image.affine))
    write(tmp_path / "in/b.nii.gz", nibabel.Nifti1Image(np.full(SHAPE, 7, np.int16), image.affine))
    for large in (1, 10**9):
        options = ["--input", tmp_path / "in", "--output", tmp_path / f"out-{large}", "--large-voxels", large]
        assert main([str(word) for word in (*words, *options)]) == 1
        message = capsys.readouterr().err
        assert "case a: the scan has 1 voxels that are NaN or infinite; mend the file" in message
        assert "case b: the scan has the value 7 in every voxel; mend the file" in message
        assert {path.name for path in (tmp_path / f"out-{large}").iterdir()} == {"prediction.json"}


def test_a_copied_header_would_leave_its_voxels_behind(tmp_path, capsys):
    folder = written(tmp_path, lambda kind, case: f"{kind}/{case}.mhd")
    fetched(folder, "some")
    words = ["--dataset", folder / "config/datasets/some.yaml", "--downloads", folder / "downloads", "--copy"]
    assert main([str(word) for word in ("fetch", *words, "--output", folder / "copy")]) == 1
    assert "a.mhd: its voxels lie in another file, which a copy would leave behind" in capsys.readouterr().err
    assert not (folder / "copy").exists()


def test_every_suffix_is_of_one_format_and_others_are_refused_by_name(tmp_path):
    endings = [suffix for found in FORMATS for suffix in found.suffixes]
    assert len(set(endings)) == len(endings)
    assert SUFFIXES[:2] == (".nii.gz", ".nii")
    assert set(SUFFIXES) == set(endings) - {".npy"}
    (tmp_path / "a.xyz").touch()
    with pytest.raises(UserError, match=r"a\.xyz: files of this kind are not read; convert it to one of \.nii\.gz"):
        open_volume(tmp_path / "a.xyz")
    shutil.copy(tmp_path / "a.xyz", tmp_path / "b.mha")
    with pytest.raises(UserError, match=r"b\.mha: cannot be read to its end"):
        open_volume(tmp_path / "b.mha")


def test_headers_alone_tell_grid_and_channels(tmp_path):
    image, labels = phantom(1)
    write(tmp_path / "a.nii.gz", image)
    write(tmp_path / "a.mha", labels)
    itk.WriteImage(itk.Compose(to_itk(image), to_itk(image)), str(tmp_path / "two.nrrd"))
    volumes = {name: open_volume(tmp_path / name) for name in ("a.nii.gz", "a.mha", "two.nrrd")}
    assert grid_faults(volumes) == []
    assert [volume.shape for volume in volumes.values()] == [(1, 12, 15, 18), (1, 12, 15, 18), (2, 12, 15, 18)]
    with pytest.raises(UserError, match=r"two\.nrrd: a label map must have three axes, this file has shape"):
        volumes["two.nrrd"].labels()


def test_label_maps_of_any_format_are_scored_against_one_another(tmp_path, capsys):
    for number, case in enumerate(CASES):
        _, labels = phantom(number)
        write(tmp_path / f"references/{case}.nii.gz", labels)
        write(tmp_path / f"predictions/{case}{'.mha' if number % 2 else '.nrrd'}", labels)
    words = ["evaluate", tmp_path / "predictions", tmp_path / "references", "--tolerance", 1]
    run(*words, "--output", tmp_path / "scores.csv")
    scores = (tmp_path / "scores.csv").read_text()
    assert scores.count("1.0") >= 8
    write(tmp_path / "predictions/a.mha", phantom(0)[1])
    assert main([str(word) for word in (*words, "--output", tmp_path / "again.csv")]) == 1
    assert "predictions: a.mha and a.nrrd are both of the case a; remove one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_second_stage_labels_new_scans_with_the_first_stage_s_label_maps_of_them(tmp_path, suffix, capsys):
    plan = tiny_plan(stage1=("first",))
    plan = replace(plan, network=replace(plan.network, prior_channels=plan.network.classes - 1))
    words = untrained_model(tmp_path, plan, seed=1)
    image, labels = phantom(0)
    write(tmp_path / f"in/a{suffix}", image)
    write(tmp_path / f"first/a{suffix}", labels)
    write(tmp_path / f"other/a{suffix}", nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), labels.affine))
    words += ["--input", tmp_path / "in"]
    found = {}
    for first in ("first", "other"):
        run(
            *words,
            "--output",
            tmp_path / first / "out",
            "--stage1-labels",
            tmp_path / first,
            "--logits",
            tmp_path / f"{first}-logits",
        )
        assert {path.name for path in (tmp_path / first / "out").iterdir()} == {f"a{suffix}", "prediction.json"}
        found[first] = open_logits(tmp_path / f"{first}-logits", "a").array[:]
    assert (found["first"] != found["other"]).any()
    assert main([str(word) for word in (*words, "--output", tmp_path / "none")]) == 1
    assert "it is the second stage after first; give --stage1-labels" in capsys.readouterr().err
