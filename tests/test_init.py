"""`megavoxel init`: four layouts as people have them, from the folder to sound cases, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from dataset_layouts import CASES, bids, label_values, link, make_phantoms, nnunet_raw, plain
from megavoxel.cli import main
from megavoxel.config.dataset import load_dataset
from megavoxel.config.hardware import load_device
from megavoxel.config.study_file import load_study
from megavoxel.datasets.naming import guess_files
from megavoxel.errors import UserError
from new_dataset import checked, init
from workflow_runs import snakemake


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("phantoms"))


def refused(capsys: pytest.CaptureFixture, folder: Path, *options: str) -> str:
    """What is said of a folder for which nothing is written."""
    assert init(folder, *options) == 1
    assert not Path("config/datasets/new.yaml").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "channels", "tests"),
    [(None, ("CT",), 1), (nnunet_raw, ("CT", "PET"), 0), (bids, ("T1w",), 0), (plain, ("CT",), 0)],
    ids=["decathlon", "nnunet", "bids", "plain"],
)
def test_every_layout_goes_from_folder_to_sound_cases(work, tmp_path, phantoms, make, channels, tests, capsys):
    folder = make(phantoms, tmp_path) if make else phantoms
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert init(folder) == 0
    shown = capsys.readouterr().out
    commands = [line.split("#")[0].split() for line in shown.split("next:\n")[1].splitlines()]
    study = ["--configfile", "config/studies/new.yaml"]
    assert commands == [["snakemake", "plan", *study], ["snakemake", *study]]
    cases = checked(work)
    assert cases.channels == channels
    assert len(cases.of_split("training")) == CASES
    assert len(cases.of_split("test")) == tests
    named = make is not plain
    values = label_values(phantoms)
    assert cases.labels == (values if named else {f"label-{value}": value for value in values.values()})
    assert ("no file names the labels" in shown) == (not named)
    first = cases.of_split("training")[0]
    image, _ = cases.read_image(first)
    assert image.shape[0] == len(channels)
    assert set(np.unique(cases.read_labels(first))) == {0, *values.values()}
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


@pytest.mark.slow
def test_the_workflow_takes_patterns_for_cases_and_not_for_wildcards(work, tmp_path, phantoms, repository):
    assert init(plain(phantoms, tmp_path)) == 0
    done = snakemake(repository, work, "--configfile", "config/studies/new.yaml", "-n")
    assert done.returncode == 0, done.stderr
    counts = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    assert ["train", "1"] in counts


def test_the_study_suits_the_device(work, phantoms, capsys):
    assert init(phantoms, "--gpu", "a100-40") == 0
    study = load_study(work / "config/studies/new.yaml")
    (setting,) = study.settings
    assert (study.hardware, study.folds, study.baseline) == ("a100-40", CASES, "default")
    assert setting.parallel is None  # auto
    assert setting.patch is None
    assert study.folds_of(setting) == tuple(range(CASES))
    assert init(phantoms, "--force") == 0
    study = load_study(work / "config/studies/new.yaml")
    (setting,) = study.settings
    assert (study.hardware, study.folds_of(setting), setting.network.base_features) == ("cpu", (0,), 16)
    assert init(phantoms, "--gpu", "a100", "--force") == 1
    assert "allowed: cpu, cpu-core, rtx-3090" in capsys.readouterr().err


class SeenGpu:
    """What PyTorch says of a GPU."""

    def __init__(self, name: str, gib: float) -> None:
        self.name, self.total_memory = name, int(gib * 2**30)


@pytest.mark.parametrize(
    ("seen", "gib", "expected"),
    [
        ("NVIDIA GeForce RTX 3090", 23.7, "rtx-3090"),
        ("NVIDIA GeForce RTX 2080 Ti", 10.8, "rtx-2080-ti"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.3, "a100-80"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100-32"),
        ("Tesla T4", 14.6, "t4"),
        ("NVIDIA L40S", 44.5, "l40s"),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "rtx-6000-ada"),
        ("NVIDIA H200", 139.8, "h200"),
        ("AMD Instinct MI300X", 191.7, "mi300x"),
        ("NVIDIA GeForce RTX 3080", 11.8, "gpu-11-8"),
        ("Some GPU of tomorrow", 24.0, "gpu-24"),
    ],
)
def test_the_gpu_that_is_there_is_known_by_name_and_memory_or_added(work, phantoms, monkeypatch, seen, gib, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SeenGpu(seen, gib))
    shipped = (work / "config/hardware.yaml").read_text()
    assert init(phantoms, "--gpu", "auto", "--force") == 0
    assert load_study(work / "config/studies/new.yaml").hardware == expected
    assert (work / "config/hardware.yaml").read_text() == shipped
    own = work / "config/hardware.local.yaml"
    assert own.exists() == expected.startswith("gpu-")
    device = load_device(work / "config/hardware.yaml", expected, source="test")
    assert device.memory_gib == pytest.approx(gib, rel=0.1)


def test_a_gpu_is_given_by_its_memory_and_keeps_what_users_wrote_of_it(work, phantoms, capsys):
    assert init(phantoms, "--gpu-memory", "20") == 0
    assert "config/hardware.local.yaml, device gpu-20; 'megavoxel calibrate gpu-20'" in capsys.readouterr().out
    own = work / "config/hardware.local.yaml"
    own.write_text(f"{own.read_text()}    most_devices: 2  # we have two\n")
    before = own.read_text()
    assert init(phantoms, "--gpu-memory", "20", "--force") == 0
    assert own.read_text() == before
    device = load_device(work / "config/hardware.yaml", "gpu-20", source="test")
    assert (device.kind, device.memory_gib, device.most_devices) == ("gpu", 20, 2)
    assert init(phantoms, "--gpu-memory", "0", "--force") == 1
    assert "--gpu-memory 0: allowed: a number of GiB" in capsys.readouterr().err


def test_without_a_gpu_auto_says_what_to_do(work, phantoms, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert init(phantoms, "--gpu", "auto") == 1
    assert "--gpu auto: PyTorch sees no GPU here; run it on a machine that has one" in capsys.readouterr().err


def test_an_incomplete_name_is_offered_all_devices_that_it_begins(work, phantoms, capsys):
    assert init(phantoms, "--gpu", "a100") == 1
    said = capsys.readouterr().err
    assert "(did you mean 'a100-40' or 'a100-80'?)" in said
    assert "to add another, give it 'kind' and 'memory_gib' in config/hardware.local.yaml" in said


def test_the_forecast_needs_no_data_but_what_was_found(work, phantoms, capsys):
    assert init(phantoms) == 0
    declared = load_dataset(work / "config/datasets/new.yaml").declared
    shapes = [nibabel.load(path).shape for path in (phantoms / "imagesTr").iterdir()]
    assert declared.training_cases == CASES
    assert sorted(declared.largest_shape)[-1] == max(map(max, shapes))
    assert main(["estimate", "--study", "config/studies/new.yaml", "--processes", "1"]) == 0
    assert "small" in capsys.readouterr().out


def test_left_and_right_labels_are_not_mirrored(work, tmp_path, phantoms):
    names = ["--labels", "left-kidney=1", "right-kidney=2", "aorta=3", "gland=4"]
    assert init(phantoms, *names) == 0
    (setting,) = load_study(work / "config/studies/new.yaml").settings
    assert setting.augmentation.mirror_axes == ()
    assert init(phantoms, "--force") == 0
    (setting,) = load_study(work / "config/studies/new.yaml").settings
    assert setting.augmentation.mirror_axes == (0, 1, 2)


def test_files_of_the_user_are_not_replaced_unasked(work, phantoms, capsys):
    file = work / "config/datasets/new.yaml"
    file.parent.mkdir()
    file.write_text("mine")
    assert init(phantoms) == 1
    assert "config/datasets/new.yaml: already there" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert not (work / "config/studies/new.yaml").exists()
    assert init(phantoms, "--force") == 0
    assert load_dataset(file).name == "new"


def test_the_name_comes_from_the_folder_and_files_go_where_asked(work, tmp_path, phantoms):
    folder = nnunet_raw(phantoms, tmp_path)
    assert main(["init", str(folder), "--to", "mine"]) == 0
    study = load_study(work / "mine/studies/abdomen.yaml")
    assert (study.name, study.dataset) == ("abdomen", "mine/datasets/abdomen.yaml")


def test_a_folder_around_the_dataset_will_do_and_two_datasets_in_it_will_not(work, tmp_path, phantoms, capsys):
    outer = tmp_path / "outer"
    outer.mkdir()
    first = nnunet_raw(phantoms, outer)
    assert init(outer) == 0
    assert load_dataset(work / "config/datasets/new.yaml").source.folder == str(first)
    shutil.copytree(first, outer / "Dataset018_Twin", symlinks=True)
    assert init(outer, "--force") == 1
    assert "several datasets lie in it (Dataset017_Abdomen, Dataset018_Twin); name one" in capsys.readouterr().err


def test_a_folder_without_images_says_what_it_has(work, tmp_path, capsys):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom/1.dcm").touch()
    message = refused(capsys, tmp_path / "dicom")
    assert "no images are found: there is no file that ends in .nii.gz or .nii" in message
    assert ".dcm" in message
    assert "no such folder" in refused(capsys, tmp_path / "nowhere")


def test_images_without_label_maps_are_listed_and_left_out_when_asked(work, tmp_path, phantoms, capsys):
    folder = plain(phantoms, tmp_path)
    (folder / "labels/patient 2_seg.nii.gz").unlink()
    message = refused(capsys, folder)
    assert "1 images have no label map: patient 2; " in message
    assert "--leave-out" in message
    assert init(folder, "--leave-out") == 0
    assert load_dataset(work / "config/datasets/new.yaml").exclude == ("patient 2",)
    assert [case.id for case in checked(work).cases] == ["patient 0", "patient 1", "patient 3"]


def test_links_to_nothing_are_listed_and_left_out_when_asked(work, tmp_path, phantoms, capsys):
    folder = plain(phantoms, tmp_path)
    images = sorted(path for path in folder.rglob("*.nii*") if "patient 2" in path.name)
    for path in images:
        path.unlink()
        path.symlink_to("not-fetched")
    message = refused(capsys, folder)
    assert "these files are links to nothing: " in message
    assert images[0].name in message
    assert "--leave-out" in message
    assert init(folder, "--leave-out") == 0
    assert load_dataset(work / "config/datasets/new.yaml").exclude == ("patient 2",)
    assert [case.id for case in checked(work).cases] == ["patient 0", "patient 1", "patient 3"]


@pytest.mark.parametrize("name", ["NA", "None", "n/a", "null", "nan", "yes", "1e3"])
def test_a_label_of_bids_is_called_what_its_table_says(work, tmp_path, phantoms, name):
    folder = bids(phantoms, tmp_path)
    for table in folder.rglob("*dseg.tsv"):
        lines = table.read_text().splitlines()
        value = lines[2].split("\t")[0]
        table.write_text("\n".join([*lines[:2], f"{value}.0\t{name}", *lines[3:]]) + "\n", encoding="utf-8-sig")
    assert init(folder) == 0
    assert name in load_dataset(work / "config/datasets/new.yaml").labels


def test_label_maps_without_images_are_listed(work, tmp_path, phantoms, capsys):
    folder = plain(phantoms, tmp_path)
    (folder / "images/patient 3.nii.gz").unlink()
    assert "label maps, but no images, of patient 3" in refused(capsys, folder)
    shutil.rmtree(folder / "labels")
    assert "no label maps are recognised among 3 images" in refused(capsys, folder)


def test_values_without_a_name_are_listed_with_a_case(work, tmp_path, phantoms, capsys):
    folder = nnunet_raw(phantoms, tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    gone = {name for name, value in content["labels"].items() if value == 4}
    content["labels"] = {name: value for name, value in content["labels"].items() if name not in gone}
    (folder / "dataset.json").write_text(json.dumps(content))
    message = refused(capsys, folder)
    assert "label maps hold values that have no name: 4 (in phantom_0001)" in message
    assert "named are liver=1, stomach=2, aorta=3" in message


def test_four_dimensions_are_named_and_taken_as_channels_when_asked(work, tmp_path, phantoms, capsys):
    folder = plain(phantoms, tmp_path)
    for path in (folder / "images").iterdir():
        image = nibabel.load(path)
        twice = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
        path.unlink()
        nibabel.save(nibabel.Nifti1Image(twice, image.affine), path)
    message = refused(capsys, folder)
    assert "patient 0.nii has four dimensions, with 2 volumes" in message
    assert "--channels, 2 in all" in message
    assert init(folder, "--channels", "CT", "PET") == 0
    cases = checked(work)
    assert cases.read_image(cases.cases[0])[0].shape[0] == 2


def test_two_candidates_are_named_and_chosen_by_a_pattern(work, tmp_path, phantoms, capsys):
    folder = bids(phantoms, tmp_path)
    for path in list(folder.glob("sub-*/anat/*_T1w.nii.gz")):
        link(path, path.with_name(path.name.replace("T1w", "FLAIR")))
    message = refused(capsys, folder)
    assert "'sub-*/anat/{case}_FLAIR.nii.gz' (4 cases), 'sub-*/anat/{case}_T1w.nii.gz' (4 cases)" in message
    both = ["--image", "sub-*/anat/{case}_T1w.nii.gz", "sub-*/anat/{case}_FLAIR.nii.gz"]
    assert init(folder, *both) == 0
    assert checked(work).channels == ("T1w", "FLAIR")
    shutil.copytree(folder / "derivatives/manual", folder / "derivatives/other", symlinks=True)
    assert init(folder, *both, "--force") == 1
    assert "several patterns would do for the label maps: 'derivatives/manual/" in capsys.readouterr().err
    label = "derivatives/other/sub-*/anat/{case}_desc-manual_dseg.nii.gz"
    assert init(folder, *both, "--label", label, "--force") == 0
    assert load_dataset(work / "config/datasets/new.yaml").files.label == label


def test_label_maps_that_are_images_are_refused(work, tmp_path, phantoms, capsys):
    folder = plain(phantoms, tmp_path)
    for path in (folder / "labels").iterdir():
        path.unlink()
        image = np.random.default_rng(0).integers(0, 1000, (8, 9, 10)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    assert "values, so they are most likely no label maps" in refused(capsys, folder)


@pytest.mark.parametrize(
    ("names", "images", "label"),
    [
        ("images/a.nii.gz labels/a.nii.gz", ["images/{case}.nii.gz"], "labels/{case}.nii.gz"),
        ("img/img0001.nii.gz label/label0001.nii.gz", ["img/img{case}.nii.gz"], "label/label{case}.nii.gz"),
        ("volume-1.nii segmentation-1.nii", ["volume-{case}.nii"], "segmentation-{case}.nii"),
        ("a.nii.gz a_seg.nii.gz", ["{case}.nii.gz"], "{case}_seg.nii.gz"),
        ("c_1/imaging.nii.gz c_1/segmentation.nii.gz", ["{case}/imaging.nii.gz"], "{case}/segmentation.nii.gz"),
        ("B_1/B_1_t1.nii.gz B_1/B_1_seg.nii.gz", ["{case}/{case}_t1.nii.gz"], "{case}/{case}_seg.nii.gz"),
        ("imagesTr/a_1.nii labelsTr/a_1.nii imagesTs/a_2.nii", ["imagesTr/{case}.nii"], "labelsTr/{case}.nii"),
        (
            "imagesTr/a_0000.nii.gz imagesTr/a_0001.nii.gz labelsTr/a.nii.gz",
            ["imagesTr/{case}_0000.nii.gz", "imagesTr/{case}_0001.nii.gz"],
            "labelsTr/{case}.nii.gz",
        ),
        (
            "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz derivatives/m/sub-1/ses-a/anat/sub-1_ses-a_dseg.nii.gz",
            ["sub-*/ses-*/anat/{case}_T1w.nii.gz"],
            "derivatives/m/sub-*/ses-*/anat/{case}_dseg.nii.gz",
        ),
        (
            "images/a_t2.nrrd images/b_t2.nrrd labels/a_organs.nrrd labels/b_organs.nrrd",
            ["images/{case}_t2.nrrd"],
            "labels/{case}_organs.nrrd",
        ),
        (
            "images/a_venous.mha images/b_venous.mha labels/a-1_x.mha labels/b-1_x.mha",
            ["images/{case}_venous.mha"],
            "labels/{case}-1_x.mha",
        ),
        (
            "images/a_late.mha images/b_late.mha labels/a_late.mha labels/b_late.mha",
            ["images/{case}.mha"],
            "labels/{case}.mha",
        ),
    ],
)
def test_common_namings_are_recognised(names, images, label):
    files = guess_files(names.split()).files
    assert (list(files.images), files.label) == (images, label)


def test_the_patterns_that_are_not_told_are_asked_for():
    with pytest.raises(UserError, match=r"no images are found for the 1 label maps .*'b'; the other files are x/a"):
        guess_files(["x/a.nii.gz", "labels/b.nii.gz"])
    with pytest.raises(UserError, match=r"--label 'y/\{case\}\.nii\.gz' matches no file"):
        guess_files(["x/a.nii.gz"], label="y/{case}.nii.gz")


def test_every_line_of_the_written_files_is_plain_yaml(work, tmp_path, phantoms):
    """Names that YAML would read as something else stay text."""
    assert init(phantoms, "--labels", "yes=1", "3rd: ventricle=2", "null=3", "#gland=4", "--channels", "1") == 0
    values = yaml.safe_load((work / "config/datasets/new.yaml").read_text())
    assert values["labels"] == {"yes": 1, "3rd: ventricle": 2, "null": 3, "#gland": 4}
    assert values["channels"] == ["1"]
