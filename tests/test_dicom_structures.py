"""Structures in DICOM: segments and contours on the image's voxels, and folders of patients with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import drawn_by_others
from megavoxel.config.dataset import load_dataset
from megavoxel.datasets.dicom_patients import drawn_series, open_structures, scans_of, with_structures
from megavoxel.errors import UserError
from megavoxel.volumes.formats.dicom import volume_of_series
from megavoxel.volumes.volume import Volume
from megavoxel.volumes.write import write_nifti
from new_dataset import checked, init
from structure_files import AXIAL, OBLIQUE, SAGITTAL, Scan, write_contours, write_segments

BROKEN = 150
"""Files that are broken at random; 10 000 of each kind were tried once."""
ROUND = 200
"""Points of a contour that stands for a circle."""


def drawn(folder: Path, name: str) -> tuple[np.ndarray, Volume]:
    """A structure below a patient's folder, bool (slices, rows, columns), and the image."""
    scans, structures = scans_of(folder, has_structures=True)
    image = volume_of_series(drawn_series(scans, structures))
    return with_structures(structures, name, image.geometry).T, image


def blobs(shape: tuple[int, int, int] = (6, 24, 24)) -> dict[str, np.ndarray]:
    """An ellipsoid, and a box with a voxel of its own in the first slice."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    liver = ((z - 2.5) / 2.2) ** 2 + ((y - 10) / 6) ** 2 + ((x - 9) / 7) ** 2 < 1
    kidney = np.zeros(shape, bool)
    kidney[1:4, 18:23, 12:19] = True
    kidney[0, 0, 0] = True
    return {"Liver": liver, "Left kidney": kidney}


def circle(radius: float, number: int, centre: tuple[float, float] = (40.0, 40.0), points: int = ROUND) -> np.ndarray:
    """A circle on a slice, in pixels."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack(
        [centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), np.full(points, float(number))]
    )


@pytest.mark.parametrize("content", [drawn_by_others.SEGMENTS, drawn_by_others.CONTOURS], ids=["SEG", "RTSTRUCT"])
def test_what_other_programs_wrote_is_read_voxel_by_voxel(tmp_path, content):
    scan = Scan(shape=(6, 24, 24), directions=OBLIQUE, spacing=(0.8, 0.8, 2.5), uid="1.2.826.1", frame="1.2.826.3")
    scan.write(tmp_path / "ct")
    (tmp_path / "other").write_bytes(content)
    for name, expected in blobs().items():
        np.testing.assert_array_equal(drawn(tmp_path, name)[0], expected)


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_segments_lie_where_their_frames_say(tmp_path, directions, is_reversed):
    scan = Scan(directions=directions)
    scan.write(tmp_path / "ct")
    masks = blobs(scan.shape)
    order = list(range(scan.shape[0]))[:: -1 if is_reversed else 1]
    write_segments(tmp_path / "seg", scan, {name: mask[order] for name, mask in masks.items()}, slices=order)
    for name, expected in masks.items():
        np.testing.assert_array_equal(drawn(tmp_path, name)[0], expected)


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_a_cylinder_has_its_volume_and_place(tmp_path, directions):
    """Radius 30.2 pixels of 0.5 mm over 4 slices of 2 mm: pi 15.1² 8 mm³."""
    scan = Scan(shape=(8, 90, 80), directions=directions, spacing=(0.5, 0.5, 2.0))
    scan.write(tmp_path / "ct")
    write_contours(tmp_path / "rt", scan, {"a": [circle(30.2, number) for number in (5, 2, 4, 3)]})
    mask, image = drawn(tmp_path, "a")
    assert mask.sum() * 0.5 * 0.5 * 2 == pytest.approx(np.pi * 15.1**2 * 8, rel=0.005)
    assert np.argwhere(mask).mean(axis=0) == pytest.approx([3.5, 40, 40], abs=0.05)
    centre = image.geometry.affine @ [*np.argwhere(mask.T).mean(axis=0), 1]
    assert centre[:3] == pytest.approx(scan.place(40, 40, 3.5) * [-1, -1, 1], abs=0.05)


def test_a_contour_in_another_one_is_a_hole_and_one_in_that_an_island(tmp_path):
    scan = Scan(shape=(3, 90, 80), spacing=(1.0, 1.0, 2.0))
    scan.write(tmp_path / "ct")
    write_contours(tmp_path / "rt", scan, {"a": [circle(10, 1), circle(30, 1), circle(20, 1)]})
    mask, _ = drawn(tmp_path, "a")
    assert mask.sum() == pytest.approx(np.pi * (30**2 - 20**2 + 10**2), rel=0.01)
    assert (mask[1, 40, 40], mask[1, 40, 55], mask[1, 40, 65]) == (True, False, True)


def test_a_keyhole_is_the_same_as_a_hole(tmp_path):
    scan = Scan(shape=(3, 90, 80), spacing=(1.0, 1.0, 2.0))
    scan.write(tmp_path / "ct")
    outer, inner = circle(30.2, 1), circle(15.3, 1)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner[-1:], inner, outer[:1]])
    write_contours(tmp_path / "rt", scan, {"key": [keyhole], "hole": [outer, inner]})
    key, hole = drawn(tmp_path, "key")[0], drawn(tmp_path, "hole")[0]
    assert hole.sum() == pytest.approx(np.pi * (30.2**2 - 15.3**2), rel=0.01)
    # The channel has no width: what lies exactly on it, from the inner to the outer circle, is inside as well.
    np.testing.assert_array_equal(key, hole)


def test_a_contour_through_the_middles_of_voxels_has_these_voxels(tmp_path):
    """As programs write it that take the outermost voxels of a mask for the contour."""
    scan = Scan(spacing=(0.7, 0.7, 3.3))
    scan.write(tmp_path / "ct")
    corners = [(3, 5, 2), (8, 5, 2), (8, 9, 2), (3, 9, 2)]
    spike = [(12, 4, 2), (16, 4, 2), (16, 8, 2), (16, 15, 2), (16, 8, 2), (12, 8, 2)]
    write_contours(tmp_path / "rt", scan, {"box": [np.array(corners)], "spike": [np.array(spike)], "dot": [spike[:1]]})
    box = np.zeros(scan.shape, bool)
    box[2, 5:10, 3:9] = True
    np.testing.assert_array_equal(drawn(tmp_path, "box")[0], box)
    assert drawn(tmp_path, "spike")[0].sum() == 5 * 5 + 7
    assert np.argwhere(drawn(tmp_path, "dot")[0]).tolist() == [[2, 4, 12]]


def masks_of_half(scan: Scan) -> dict[str, np.ndarray]:
    mask = np.zeros(scan.shape, bool)
    mask[1:5, 4:9, 5:12] = True
    return {"a": mask}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            lambda path, scan: write_segments(path, scan, masks_of_half(scan), spacing=(1.6, 2.4)),
            "other: 'a' does not lie on the image's voxels: its pixels are 2.4 x 1.6 mm",
        ),
        (
            lambda path, scan: write_segments(path, scan, masks_of_half(scan), slices=[0.4, 1.4, 2.4, 3.4, 4.4, 5.4]),
            "other: 'a' does not lie on the image's voxels",
        ),
        (
            lambda path, scan: write_segments(path, scan, masks_of_half(scan), slices=[4, 5, 6, 7, 8, 9]),
            "other: 'a' reaches beyond the image; slices of the image are missing",
        ),
        (
            lambda path, scan: write_contours(path, scan, {"a": [circle(5, 2.5, (9, 9))]}),
            "other: 'a' has a contour that lies between two slices of the image",
        ),
        (
            lambda path, scan: write_contours(path, scan, {"a": [circle(5, 2, (9, 9)) + [0, 0, 1] * np.eye(200, 3)]}),
            "other: 'a' has a contour that lies across the slices of the image",
        ),
        (
            lambda path, scan: write_contours(path, scan, {"a": [circle(5, 9, (9, 9))]}),
            "other: 'a' has a contour on a slice that the image does not have; bring all slices",
        ),
        (
            lambda path, scan: write_contours(path, scan, {"a": [circle(5, 2, (9, 9)), circle(5, 2, (9, 9))]}),
            "other: 'a' has the same contour twice on one slice; keep one of them",
        ),
    ],
)
def test_structures_off_the_images_voxels_are_refused(tmp_path, write, words):
    scan = Scan()
    scan.write(tmp_path / "ct")
    write(tmp_path / "other", scan)
    with pytest.raises(UserError) as refused:
        drawn(tmp_path, "a")
    assert words in str(refused.value)


def test_a_structure_on_every_second_slice_is_refused(tmp_path):
    scan = Scan(shape=(9, 24, 20))
    scan.write(tmp_path / "ct")
    write_contours(tmp_path / "rt", scan, {"a": [circle(5, number, (9, 9)) for number in (0, 2, 4, 6)]})
    with pytest.raises(UserError, match=r"rt: 'a' is drawn on every 2\. slice only; fill in the slices between"):
        drawn(tmp_path, "a")


def test_points_and_open_lines_are_no_structures(tmp_path):
    scan = Scan()
    scan.write(tmp_path / "ct")
    write_contours(tmp_path / "rt", scan, {"isocentre": [circle(5, 2, (9, 9))[:1]]}, kind="POINT")
    assert scans_of(tmp_path, has_structures=True)[1][0].names == ()


@pytest.mark.parametrize("content", [drawn_by_others.SEGMENTS, drawn_by_others.CONTOURS], ids=["SEG", "RTSTRUCT"])
def test_broken_files_are_drawn_or_refused_in_one_line(tmp_path, content):
    scan = Scan(shape=(6, 24, 24), directions=OBLIQUE, spacing=(0.8, 0.8, 2.5), uid="1.2.826.1", frame="1.2.826.3")
    scans, _ = scans_of(scan.write(tmp_path / "ct"), has_structures=False)
    grid = volume_of_series(scans[0]).geometry
    random, file = np.random.default_rng(0), tmp_path / "other"
    for _ in range(BROKEN):
        broken = bytearray(content)
        for place in random.integers(0, len(broken), random.integers(1, 6)):
            broken[place] = random.integers(0, 256)
        file.write_bytes(broken[: len(broken) - int(random.integers(0, 50) * random.integers(0, 2))])
        try:
            structures = open_structures(file)
            for name in structures.names:
                structures.draw(name, grid)
        except UserError as fault:
            assert "\n" not in str(fault)  # noqa: PT017


def patient_scan(name: str) -> Scan:
    return Scan(uid=f"1.2.{ord(name[-1])}.1", frame=f"1.2.{ord(name[-1])}.2")


def write_patient(root: Path, name: str, **changes: object) -> Scan:
    """A series in a folder of a study, and a file of segments beside it."""
    scan = patient_scan(name)
    scan.write(root / name / "study/ct")
    write_segments(root / name / "study/seg/1", scan, blobs(scan.shape), **changes)
    return scan


def with_nifti(mask: Callable[[Path, str, np.ndarray], None]) -> Callable[[Path, str], None]:
    """A patient whose masks are NIfTI files on the grid of the series."""

    def write(root: Path, name: str) -> None:
        scan = patient_scan(name)
        scan.write(root / name / "dicom")
        image = volume_of_series(drawn_series(scans_of(root / name, has_structures=False)[0], ()))
        mask(root / name, image.geometry.affine, blobs(scan.shape))

    return write


def label_map(folder: Path, affine: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    write_nifti(folder / "segmentation.nii.gz", (masks["Left kidney"] + 2 * masks["Liver"]).T.astype(np.uint8), affine)


def one_each(folder: Path, affine: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    for name, mask in masks.items():
        write_nifti(folder / f"masks/{name}.nii.gz", mask.T.astype(np.uint8), affine)


def contours(root: Path, name: str) -> None:
    scan = patient_scan(name)
    scan.write(root / name)
    corners = [(12, 18), (18, 18), (18, 22), (12, 22)]
    boxes = [np.array([(*corner, number) for corner in corners]) for number in (1, 2, 3)]
    write_contours(root / name / "rtstruct.dcm", scan, {"Left kidney": boxes})


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        (write_patient, "DICOM structure"),
        (with_nifti(one_each), "mask"),
        (with_nifti(label_map), "label map"),
    ],
    ids=["segments", "masks", "label maps"],
)
def test_patients_with_dicom_go_from_disk_to_sound_cases(work, tmp_path, write, layout, capsys):
    root = tmp_path / "disk"
    for name in ("p1", "p2", "p3"):
        write(root, name)
    assert init(root) == 0
    shown = capsys.readouterr().out
    assert f"a folder per patient, with a {layout}" in shown
    assert "channels: CT; median size 6 x 24 x 20 voxels of 2.5 x 1.2 x 0.8 mm (z, y, x)" in shown
    cases = checked(work)
    names = ("label-1", "label-2") if layout == "label map" else ("Left kidney", "Liver")
    assert cases.labels == {names[0]: 1, names[1]: 2}
    assert [case.id for case in cases.cases] == ["p1", "p2", "p3"]
    masks = blobs((6, 24, 20))
    expected = masks["Left kidney"] + 2 * masks["Liver"]
    for case in cases.cases:
        np.testing.assert_array_equal(cases.read_labels(case)[:, ::-1, ::-1], expected)
        image, _ = cases.read_image(case)
        assert image[0, 0, -1, -1] == np.random.default_rng(0).integers(0, 2000, (24, 20))[0, 0] - 1000


def test_structures_of_contours_become_labels(work, tmp_path):
    for name in ("p1", "p2"):
        contours(tmp_path / "disk", name)
    assert init(tmp_path / "disk") == 0
    cases = checked(work)
    assert cases.labels == {"Left kidney": 1}
    box = np.zeros((6, 24, 20), bool)
    box[1:4, 18:23, 12:19] = True
    np.testing.assert_array_equal(cases.read_labels(cases.cases[0])[:, ::-1, ::-1], box)


def test_all_faulty_patients_are_named_at_once_and_left_out_when_asked(work, tmp_path, capsys):
    root = tmp_path / "disk"
    write_patient(root, "p0")
    write_patient(root, "p1")
    write_patient(root, "p2", uid="1.9.9")
    write_patient(root, "p3", frame="1.8.8")
    shutil.rmtree(write_patient(root, "p4") and root / "p4/study/seg")
    scan = write_patient(root, "p5")
    other = Scan(uid="1.7", frame=scan.frame)
    other.write(root / "p5/study/ct2")
    write_segments(root / "p5/study/seg/2", other, {"Spleen": blobs(scan.shape)["Liver"]})
    scan = write_patient(root, "p6")
    write_segments(root / "p6/study/seg/2", scan, {"Lver": blobs(scan.shape)["Liver"]})
    write_patient(root, "p7")
    path = next((root / "p7/study/ct").iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    shutil.rmtree(root / "p8", ignore_errors=True)
    patient_scan("p8").write(root / "p8/mr", modality="MR")
    write_segments(root / "p8/seg", patient_scan("p8"), blobs(scan.shape))
    assert init(root) == 1
    assert not Path("config/datasets/new.yaml").exists()
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("  p")]
    for line, words in zip(
        lines,
        [
            ("p2: 1 was drawn in the series 1.9.9, which is not there; there is 1.2.50.1 (CT, 6 files, ",),
            ("p3: 1 lies in the frame of reference 1.8.8, and the image in 1.2.51.2: bring the scan",),
            ("p4: none of its masks is there: ",),
            ("p5: no other patient has a structure 'Spleen'",),
            ("p5: there are 2 images: 1.2.53.1 (CT, ", "1.7 (CT, ", "; keep one of them in the folder"),
            ("p6: no other patient has a structure 'Lver' (did you mean 'Liver'?)",),
            ("p7: ", "copy it again"),
            ("p8: its image is MR, that of the others CT",),
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line
    assert init(root, "--leave-out") == 0
    dataset = load_dataset(work / "config/datasets/new.yaml")
    assert dataset.exclude == ("p2", "p3", "p4", "p5", "p7", "p8")
    assert dataset.labels == {"Left kidney": 1, "Liver": 2}
    assert [case.id for case in checked(work).cases] == ["p0", "p1", "p6"]


def test_two_images_without_a_word_which_one_is_meant_are_refused(work, tmp_path, capsys):
    write = with_nifti(one_each)
    for name in ("p1", "p2"):
        write(tmp_path / "disk", name)
    Scan(uid="1.7").write(tmp_path / "disk/p2/other")
    assert init(tmp_path / "disk") == 1
    assert "p2: there are 2 images: " in capsys.readouterr().err


def test_series_without_anything_drawn_say_what_is_expected(work, tmp_path, capsys):
    for name in ("p1", "p2"):
        patient_scan(name).write(tmp_path / "disk" / name)
    assert init(tmp_path / "disk") == 1
    assert (
        "nothing is drawn in the DICOM series of its 2 folders: expected SEG, RTSTRUCT, or" in capsys.readouterr().err
    )
    assert init(tmp_path / "disk/p1") == 1
    assert "DICOM files lie directly in it; give each patient a folder of its own" in capsys.readouterr().err
