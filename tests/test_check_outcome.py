"""What `megavoxel check` writes: all faults of all cases, or the list of sound cases."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest

from dataset_folder import AFFINE, SHAPE, Folder, image, labels
from megavoxel.config.dataset import load_dataset
from megavoxel.datasets.cases import load_cases
from megavoxel.datasets.check import check_layout
from megavoxel.datasets.layout import read_layout
from megavoxel.volumes.write import write_nifti


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_sound_cases_are_listed(folder, capsys):
    assert folder.check(keys="nsd_tolerance_mm: {one: 1.5, two: 3}\n") == 0
    assert folder.rows() == []
    assert [row[:2] for row in folder.rows("ok")] == [(f"case_{number}", "all") for number in range(3)]
    assert folder.rows("ok")[0][2] == "8 x 7 x 6 voxels of 2 x 1.5 x 1 mm (z, y, x), 1 channel"
    cases = load_cases(folder.base / "cases.json")
    assert cases.root == str(folder.data)
    assert cases.channels == ("c0",)
    assert cases.labels == {"one": 1, "two": 2}
    assert cases.nsd_tolerance_mm == {"one": 1.5, "two": 3.0}
    assert cases.read_image(cases.cases[0])[0].shape == (1, 8, 7, 6)
    assert "3 training and 0 test cases are sound" in capsys.readouterr().out


def test_a_label_without_foreground_is_only_a_warning(folder, capsys):
    folder.write("labelsTr/case_1", np.zeros(SHAPE, np.uint8))
    assert folder.check() == 0
    assert [row[:2] for row in folder.rows("warning")] == [("case_1", "foreground")]
    assert "warning: case_1" in capsys.readouterr().out
    assert len(load_cases(folder.base / "cases.json").cases) == 3


def test_an_unlabelled_test_case_is_sound(folder):
    folder.write("imagesTs/x", image())
    folder.content["test"] = ["./imagesTs/x.nii.gz"]
    assert folder.check() == 0
    assert load_cases(folder.base / "cases.json").of_split("test")[0].label is None


def test_all_faults_of_all_cases_are_collected_by_any_number_of_processes(folder, capsys):
    (folder.data / "imagesTr/case_0.nii.gz").unlink()
    array = labels()
    array[0, 0, 0] = 9
    folder.write("labelsTr/case_0", array)
    bad = image()
    bad[0, 0, 0] = np.nan
    folder.write("imagesTr/case_2", bad)
    folder.write("labelsTr/case_2", array[1:])
    expected = [
        ("case_0", "missing-image"),
        ("case_0", "label-values"),
        ("case_2", "finite"),
        ("case_2", "shape"),
    ]
    assert folder.check() == 1
    assert [row[:2] for row in folder.rows()] == expected
    assert "4 faults in 2 of 3 cases" in capsys.readouterr().err
    single = (folder.base / "checks.csv").read_bytes()
    assert folder.check("--processes", "2") == 1
    assert (folder.base / "checks.csv").read_bytes() == single


def test_a_long_list_is_cut_and_points_to_the_table(tmp_path, capsys):
    folder = Folder(tmp_path, cases=1)
    folder.content["training"] = [
        {"image": f"imagesTr/n{n}.nii.gz", "label": f"labelsTr/n{n}.nii.gz"} for n in range(60)
    ]
    assert folder.check() == 1
    printed = capsys.readouterr().err
    assert "120 faults in 60 of 60 cases" in printed
    assert "and 70 more" in printed
    assert "checks.csv" in printed
    assert len(printed.splitlines()) == 53
    assert len(folder.rows()) == 120


def test_excluded_cases_are_not_looked_at(folder):
    (folder.data / "imagesTr/case_1.nii.gz").write_bytes(b"rubbish")
    assert folder.check(keys="exclude: [case_1]\n") == 0
    assert [row[:2] for row in folder.rows("excluded")] == [("case_1", "all")]
    assert [case.id for case in load_cases(folder.base / "cases.json").cases] == ["case_0", "case_2"]


def test_two_cases_of_one_name_are_an_error(folder, capsys):
    folder.write("imagesTs/case_1", image())
    folder.content["test"] = ["imagesTs/case_1.nii.gz"]
    assert folder.check() == 1
    assert [row[:2] for row in folder.rows()] == [("case_1", "duplicate")]
    assert "imagesTr/case_1.nii.gz, imagesTs/case_1.nii.gz" in capsys.readouterr().err


def test_an_older_list_of_cases_does_not_survive_new_faults(folder):
    assert folder.check() == 0
    (folder.data / "imagesTr/case_1.nii.gz").unlink()
    assert folder.check() == 1
    assert not (folder.base / "cases.json").exists()


def test_an_empty_folder_is_an_error(folder, capsys):
    folder.content["training"] = []
    assert folder.check() == 1
    assert "there are no cases" in capsys.readouterr().err
    assert not (folder.base / "cases.json").exists()


def test_a_label_without_tolerance_is_an_error(folder, capsys):
    assert folder.check(keys="nsd_tolerance_mm: {one: 1}\n") == 1
    assert "no entry for the label 'two'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(("name", "folder"), [("hippocampus", "hippocampus"), ("chaos-mr", "chaos_mr_t2")])
def test_real_images_are_clean(real_data, repository, name, folder):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    dataset = load_dataset(repository / "config" / "datasets" / f"{name}.yaml")
    layout = read_layout(real_data / folder, dataset)
    findings = check_layout(real_data / folder, replace(layout, cases=layout.cases[:30]))
    assert len(findings) == min(30, len(layout.cases))
    assert {finding.severity for finding in findings} == {"ok"}


def test_one_image_under_two_names_is_a_warning_whatever_its_file(folder, capsys):
    folder.write("imagesTr/case_1", image() + 1)
    nibabel.save(nibabel.load(folder.data / "imagesTr/case_0.nii.gz"), folder.data / "imagesTr/other.nii")
    folder.content["test"] = ["imagesTr/other.nii"]
    assert folder.check() == 0
    found = {case: message for case, check, message in folder.rows("warning") if check == "same-image"}
    assert set(found) == {"case_0", "case_1", "other"}
    assert "its image (training) has the same voxels as that of case_1 (training), other (test)" in found["case_0"]
    assert [row[0] for row in folder.rows("ok")] == ["case_2"]
    assert "warning: other: same-image: " in capsys.readouterr().out


def in_units(folder: Folder, *units: str) -> int:
    """Checks the cases with headers in these units."""
    for number, unit in enumerate(units):
        write_nifti(folder.data / f"imagesTr/case_{number}.nii.gz", image() + number, AFFINE, unit)
        write_nifti(folder.data / f"labelsTr/case_{number}.nii.gz", labels(), AFFINE, unit)
    return folder.check()


def test_images_in_several_units_are_an_error_and_all_in_one_are_not(folder):
    assert in_units(folder, "micron", "mm", "mm") == 1
    ((case, check, message),) = folder.rows()
    assert (case, check) == ("case_0", "unit")
    assert "its header is in micron, and those of 2 cases are in mm" in message
    assert in_units(folder, "micron", "micron", "micron") == 0
    assert "8 x 7 x 6 voxels of 2 x 1.5 x 1 micron (z, y, x)" in folder.rows("ok")[0][2]


def test_links_to_nothing_are_called_so(folder):
    for kind in ("images", "labels"):
        path = folder.data / f"{kind}Tr/case_1.nii.gz"
        path.unlink()
        path.symlink_to("gone.nii.gz")
    assert folder.check() == 1
    assert [row[2] for row in folder.rows()] == [
        "imagesTr/case_1.nii.gz is a link to nothing", "labelsTr/case_1.nii.gz is a link to nothing"
    ]  # fmt: skip


def test_an_image_that_does_not_say_how_it_lies_is_a_warning(folder):
    for kind, array in (("images", image()), ("labels", labels())):
        nibabel.save(nibabel.Nifti1Image(array, None), folder.data / f"{kind}Tr/case_1.nii.gz")
    assert folder.check() == 0
    assert [row[:2] for row in folder.rows("warning")] == [("case_1", "orientation")]


def test_files_that_no_case_has_are_warnings_but_for_those_of_excluded_cases(folder):
    folder.write("imagesTr/extra", image())
    (folder.data / "imagesTr/scan.mgz").write_bytes(b"\0")
    (folder.data / "imagesTr/notes.txt").write_text("words")
    assert folder.check(keys="exclude: [case_1]\n") == 0
    assert folder.rows("warning") == [
        ("imagesTr", "unused", "2 files of this folder belong to no case: extra.nii.gz, scan.mgz")
    ]
