"""`megavoxel init` on folders of patients with a mask per label, as TotalSegmentator and PDDCA lie on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from megavoxel.config.dataset import Dataset, Declared, load_dataset
from megavoxel.config.first_files import study_text
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Setting
from megavoxel.config.source import Source
from megavoxel.datasets.patient_naming import guess_patients
from megavoxel.errors import UserError
from megavoxel.planning.larger_patch import larger_patch
from megavoxel.planning.spacing import times
from new_dataset import checked, init

SHAPE = (9, 8, 7)
"""Columns, rows and slices."""
BOXES = {"liver": np.s_[1:6, 1:7, 1:8], "spleen": np.s_[0:3, 0:2, 5:9], "lesion": np.s_[2:4, 2:4, 2:4]}
"""(z, y, x); the lesion lies in the liver, the spleen shares 2 x 1 x 3 voxels with it."""


def write(path: Path, array: np.ndarray, spacing: Sequence[float] = (1.5, 1.5, 3.0)) -> None:
    """A volume (z, y, x) in the format of the file's name, by ITK."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-10, 20, 30))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def mask(label: str) -> np.ndarray:
    array = np.zeros(SHAPE[::-1], np.uint8)
    array[BOXES[label]] = 1
    return array


def write_patient(root: Path, name: str, *, image: str, masks: str, labels: Sequence[str] = tuple(BOXES)) -> None:
    """An image and masks, whose file names are `masks` with the label for `{}`."""
    voxels = np.random.default_rng(len(name) + ord(name[-1])).integers(-1000, 1000, SHAPE[::-1]).astype(np.int16)
    write(root / name / image, voxels)
    for label in labels:
        write(root / name / masks.format(label), mask(label))


def totalsegmentator(root: Path, names: Sequence[str] = ("s0001", "s0002", "s0003")) -> Path:
    for name in names:
        write_patient(root, name, image="ct.nii.gz", masks="segmentations/{}.nii.gz")
    return root


def refused(capsys: pytest.CaptureFixture, folder: Path, *options: str) -> list[str]:
    """The lines that are said of a folder for which nothing is written."""
    assert init(folder, *options) == 1
    assert not Path("config/datasets/new.yaml").exists()
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("reading")]


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("ct.nii.gz", "segmentations/{}.nii.gz"),  # TotalSegmentator
        ("img.nrrd", "structures/{}.nrrd"),  # PDDCA
        ("scan.mha", "mask_{}.mha"),
        ("image.nii", "masks/{}_mask.mhd"),
    ],
)
def test_folders_of_patients_go_from_disk_to_sound_cases(work, tmp_path, image, masks, capsys):
    root = tmp_path / "disk"
    for name in ("p1", "p2", "p3"):
        write_patient(root, name, image=image, masks=masks)
    assert init(root) == 0
    shown = capsys.readouterr().out
    assert "a folder per patient, with a mask per label; 3 labelled images" in shown
    assert "labels: lesion 1, liver 2, spleen 3" in shown
    assert f"{3 * (8 + 6)} voxels lie in several masks: the smaller mask counts" in shown
    cases = checked(work)
    assert cases.channels == ("CT",)
    assert cases.labels == {"lesion": 1, "liver": 2, "spleen": 3}
    assert [case.id for case in cases.cases] == ["p1", "p2", "p3"]
    expected = np.zeros(SHAPE[::-1], np.uint8)
    for label in ("liver", "spleen", "lesion"):  # by size: 210, 24 and 8 voxels
        expected[BOXES[label]] = cases.labels[label]
    for case in cases.cases:  # ITK's axes run to the left and to the back
        np.testing.assert_array_equal(cases.read_labels(case)[:, ::-1, ::-1], expected)


def test_what_a_name_says_beside_words_for_masks_is_the_label(work, tmp_path):
    names = ["P1/P1_ct.nii.gz", "P1/seg/P1_Kidney_L_seg.nii.gz", "P1/seg/P1_aorta.nii.gz"]
    found = guess_patients([*names, *(name.replace("P1", "P2") for name in names)])
    assert found.image == "{case}_ct.nii.gz"
    assert found.masks == {"Kidney_L": ("seg/{case}_Kidney_L_seg.nii.gz",), "aorta": ("seg/{case}_aorta.nii.gz",)}
    assert (found.single, found.faults) == ({}, ())


@pytest.mark.parametrize(
    "names",
    [
        "images/a.nii.gz labels/a.nii.gz images/b.nii.gz labels/b.nii.gz",
        "c_1/imaging.nii.gz c_1/segmentation.nii.gz c_1/instances/kidney_annotation.nii.gz",
        "B_1/B_1_t1.nii.gz B_1/B_1_seg.nii.gz B_2/B_2_t1.nii.gz B_2/B_2_seg.nii.gz",
        "data/a_ct.nii.gz data/a_seg.nii.gz data/b_ct.nii.gz data/b_seg.nii.gz",
        "P1/t1.nii.gz P1/t1_seg.nii.gz P2/t1.nii.gz P2/t1_seg.nii.gz",
        "a/images/x.nii.gz a/labels/x.nii.gz b/images/y.nii.gz b/labels/y.nii.gz",
        "x/a.nii.gz x/b.nii.gz",
    ],
)
def test_label_maps_are_no_masks_of_labels(names):
    assert guess_patients(names.split()) is None


def test_two_spellings_of_a_label_are_one(work, tmp_path):
    root = totalsegmentator(tmp_path / "disk")
    (root / "s0002/segmentations/liver.nii.gz").rename(root / "s0002/segmentations/Liver.nii.gz")
    write(root / "s0003/segmentations/spleen.mha", mask("spleen"))
    (root / "s0003/segmentations/spleen.nii.gz").unlink()
    assert init(root) == 0
    masks = load_dataset(work / "config/datasets/new.yaml").patients.masks
    assert masks == {
        "liver": ("segmentations/Liver.nii.gz", "segmentations/liver.nii.gz"),
        "spleen": ("segmentations/spleen.mha", "segmentations/spleen.nii.gz"),
        "lesion": "segmentations/lesion.nii.gz",
    }
    cases = checked(work)
    assert all(case.unannotated == () for case in cases.cases)


def test_all_faulty_files_are_named_at_once_and_left_out_when_asked(work, tmp_path, capsys):
    root = totalsegmentator(tmp_path / "disk", [f"s{number}" for number in range(1, 10)])
    (root / "s1/segmentations/liver.nii.gz").write_bytes(b"no volume")
    write(root / "s2/segmentations/spleen.nii.gz", mask("spleen"), spacing=(1.5, 1.5, 3.1))
    write(root / "s2/segmentations/lesion.nii.gz", mask("lesion") + mask("liver"))
    shutil.rmtree(root / "s3/segmentations")
    (root / "s4/ct.nii.gz").rename(root / "s4/scan.nii.gz")
    shutil.copy(root / "s5/ct.nii.gz", root / "s5/ct_old.nii.gz")
    shutil.copy(root / "s6/segmentations/liver.nii.gz", root / "s6/segmentations/Lver.nii.gz")
    shutil.copy(root / "s7/segmentations/liver.nii.gz", root / "s7/segmentations/liver.mha.nii.gz")
    first, *lines, last = refused(capsys, root)
    assert first == f"megavoxel init: error: {root}: 8 faults:"
    for line, words in zip(
        lines,
        [
            ("s1: ", "liver.nii.gz", "copy it again"),
            ("s2: lesion.nii.gz has several values besides 0, such as",),
            ("s2: the image and spleen.nii.gz lie on different grids: spacings of",),
            ("s3: none of its masks is there: segmentations/",),
            ("s4: no image 'ct.nii.gz', which the others have; it has scan.nii.gz",),
            ("s5: 2 images (ct.nii.gz, ct_old.nii.gz); keep one, or choose by --image PATTERN",),
            ("s6: no other patient has a mask 'Lver' (did you mean 'liver'?); rename it, or",),
            ("s7: no other patient has a mask 'liver.mha' (did you mean 'liver'?)",),
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line
    assert last == "mend these, or go on without them by --leave-out"
    assert init(root, "--leave-out") == 0
    assert load_dataset(work / "config/datasets/new.yaml").exclude == ("s1", "s2", "s3")
    cases = checked(work)
    assert [case.id for case in cases.cases] == ["s5", "s6", "s7", "s8", "s9"]
    assert cases.labels == {"lesion": 1, "liver": 2, "spleen": 3}


def test_masks_and_the_image_are_chosen_by_name(work, tmp_path, capsys):
    root = totalsegmentator(tmp_path / "disk")
    for name in ("s0001", "s0002", "s0003"):
        shutil.copy(root / name / "ct.nii.gz", root / name / "pet.nii.gz")
    said = refused(capsys, root)
    assert said == [
        f"megavoxel init: error: {root}: several images lie in each patient's folder: ct.nii.gz, pet.nii.gz; choose "
        "one by --image PATTERN"
    ]
    assert "no mask is called 'Spleen' (did you mean 'spleen'?); there are lesion, liver, spleen" in " ".join(
        refused(capsys, root, "--image", "pet.nii.gz", "--labels", "Spleen=1")
    )
    assert init(root, "--image", "pet.nii.gz", "--labels", "spleen=4", "liver=2") == 0
    dataset = load_dataset(work / "config/datasets/new.yaml")
    assert (dataset.patients.image, dataset.channels) == ("pet.nii.gz", ("pet",))
    assert [*dataset.patients.masks] == ["liver", "spleen"]
    assert dataset.labels == {"liver": 2, "spleen": 4}


def test_masks_that_are_empty_everywhere_are_no_label(work, tmp_path, capsys):
    root = totalsegmentator(tmp_path / "disk")
    for name in ("s0001", "s0002", "s0003"):
        write(root / name / "segmentations/stent.nii.gz", np.zeros(SHAPE[::-1], np.uint8))
    assert init(root) == 0
    assert "left out, because their masks are empty in all cases: stent\n" in capsys.readouterr().out
    assert [*load_dataset(work / "config/datasets/new.yaml").labels] == ["lesion", "liver", "spleen"]


def test_several_images_in_each_folder_are_asked_about():
    names = ["P1/ct.nii.gz", "P1/pet.nii.gz", "P1/mask_a.nii.gz"]
    with pytest.raises(UserError, match=r"several images lie in each patient's folder: ct\.nii\.gz, pet\.nii\.gz"):
        guess_patients([*names, *(name.replace("P1", "P2") for name in names)])


@pytest.mark.parametrize(
    ("shape", "spacing", "proposed", "words"),
    [
        # 160³ is less than twice 128³, so that one axis takes a step more.
        ((512, 512, 512), (0.7, 0.7, 0.7), (192, 160, 160), "2.3 times the voxels of theirs (128 × 128 × 128)"),
        # A thick slice counts for many thin voxels: the two other axes grow as well, as far as the image goes.
        ((40, 320, 320), (5.0, 0.8, 0.8), (40, 320, 288), "2 times the voxels of theirs (32 × 256 × 224)"),
        ((50, 40, 40), (1.0, 1.0, 1.0), None, ""),
    ],
)
def test_the_larger_patch_that_is_proposed_has_the_shape_of_the_images(shape, spacing, proposed, words):
    declared = Declared(training_cases=5, shape=shape, spacing=spacing)
    dataset = Dataset(
        name="a",
        source=Source(folder="a"),
        labels={"liver": 1},
        channels=("CT",),
        nsd_tolerance_mm=1,
        declared=declared,
    )
    found = larger_patch(dataset, Setting(name="default"))
    if proposed is None:
        assert found is None
        assert "holds the median image already" in first_study(None)
    else:
        assert found == (proposed, f"{words}; the median image has {times(shape)}")
        assert f"\n  # large-patch: {{patch: {list(proposed)}, batch: 2}}\n" in first_study(found)


@pytest.mark.parametrize(
    ("label", "is_sided"),
    [("LeftParotid", True), ("Parotid_R", True), ("lungL", True), ("kidney-left", True), ("Liver", False)],
)
def test_labels_of_a_side_are_known_by_their_names(label, is_sided):
    assert ("mirror_axes: []" in first_study(None, label)) == is_sided


def first_study(larger: tuple[Sequence[int], str] | None, *labels: str) -> str:
    gpu = Device(name="g", kind="gpu", memory_gib=24)
    known = {"name": "a", "dataset": "a", "path": "a.yaml", "cases": 5, "labels": labels}
    return study_text(device=gpu, larger=larger, **known)
