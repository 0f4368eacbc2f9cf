"""New scans in every format and orientation: what is labelled is where it was, on the scan's own grid."""

from __future__ import annotations

import locale
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as itk
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from helpers import preprocessing_plan, tiny_plan
from megavoxel.errors import UserError
from megavoxel.inference.predict import CasePredictor
from megavoxel.models.label import Labelling, label_scans, unfinished
from megavoxel.models.prepare import Reading, check_orientation_code, dicom_code
from megavoxel.models.scans import find_scans
from megavoxel.planning.plan import ChannelNormalisation, Plan
from scans import write_nrrd

SPACING = (1.5, 2.0, 4.0)  # x, y, z
SHAPE = (14, 12, 9)
TILT = Rotation.from_rotvec([0.1, -0.15, 0.12]).as_matrix()
CODES = ("RAS", "LPS", "PSR", "IAL")


class Threshold(torch.nn.Module):
    """Label 1 where the last channel is above the middle of its range."""

    def forward(self, window: torch.Tensor) -> list[torch.Tensor]:
        last = window[:, -1:]
        return [torch.cat([0.5 - last, last - 0.5, torch.full_like(last, -9)], dim=1)]


def threshold_plan(*channels: str, **changes) -> Plan:
    """Takes images whose canonical grid has SPACING, as they are."""
    rule = ChannelNormalisation(scheme="range", lower=0.0, upper=100.0)
    changes = {"normalisation": (rule,) * len(channels), **changes}
    rules = preprocessing_plan(channels=channels, spacing=SPACING[::-1], **changes)
    network = replace(tiny_plan().network, channels=len(channels))
    plan = tiny_plan(preprocessing=rules, patch=(6, 8, 8), network=network)
    return replace(plan, inference=replace(plan.inference, mirror=False))


def label(folder: Path, *inputs: Path, plan: Plan | None = None, single: bool = False, **reading) -> Path:
    """Labels scans into `folder`/out, which is returned."""
    plan = plan or threshold_plan("image")
    predictor = CasePredictor(plan, [Threshold()], "float32", torch.device("cpu"))
    labelling = Labelling(
        output=folder / "out", model={"model": "threshold"}, postprocessing=None, reading=Reading(**reading)
    )
    label_scans(unfinished(find_scans(inputs, one_file_per_case=single), labelling), predictor, labelling)
    return labelling.output


def box() -> np.ndarray:
    """What is bright, (x, y, z): an L that no turn or mirror image leaves as it is."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3:10, 2:5, 1:6] = True
    mask[3:5, 5:9, 1:3] = True
    return mask


def scan(code: str = "RAS", *, tilted: bool = False, kind: type = np.int16) -> nibabel.Nifti1Image:
    """The box, 100 on a ground of 10, with axes along `code`."""
    affine = np.eye(4)
    affine[:3, :3] = (TILT if tilted else np.eye(3)) @ np.diag(SPACING)
    affine[:3, 3] = (-11, 7, 30)
    image = nibabel.Nifti1Image(np.where(box(), 100, 10).astype(kind), affine)
    return image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(code)))


def to_itk(image: nibabel.Nifti1Image) -> itk.Image:
    """The same grid in ITK's terms."""
    lps = np.diag([-1.0, -1.0, 1.0])
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    converted = itk.GetImageFromArray(np.ascontiguousarray(np.asanyarray(image.dataobj).T))
    converted.SetSpacing(sizes.tolist())
    converted.SetDirection((lps @ image.affine[:3, :3] / sizes).ravel().tolist())
    converted.SetOrigin((lps @ image.affine[:3, 3]).tolist())
    return converted


@contextmanager
def keeping_locale() -> Iterator[None]:
    """ITK's writer of DICOM leaves the process in the locale C, in which Python reads text as ASCII, also later on."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@keeping_locale()
def write_dicom(folder: Path, image: nibabel.Nifti1Image, uid: str = "1.2.3", modality: str = "MR", **tags) -> None:
    """A file per slice, their names in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = to_itk(image)
    writer = itk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = volume.GetDirection()
    for number in range(volume.GetSize()[2]):
        part = volume[:, :, number]
        place = volume.TransformIndexToPhysicalPoint((0, 0, number))
        values = {
            "0008|0060": modality, "0020|000e": uid, "0020|000d": "1.2", "0008|103e": "made", "0020|0013": str(number),
            "0008|0018": f"{uid}.{number + 1}", "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "\\".join(str(direction[index]) for index in (0, 3, 6, 1, 4, 7)),
        }  # fmt: skip
        for key, value in {**values, **tags}.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}-{(7 * number) % 100:02}.dcm"))
        writer.Execute(part)


def write(path: Path, image: nibabel.Nifti1Image) -> Path:
    """Writes a scan by the library of its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(image, path)
    else:
        itk.WriteImage(to_itk(image), str(path))
    return path


def assert_in_place(answer: Path, image: nibabel.Nifti1Image) -> None:
    """The label map has the scan's grid, and by ITK's reader its voxels lie where the box is."""
    found, wanted = itk.ReadImage(str(answer)), to_itk(image)
    assert found.GetSize() == wanted.GetSize()
    np.testing.assert_allclose(found.GetSpacing(), wanted.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(found.GetOrigin(), wanted.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(found.GetDirection(), wanted.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(itk.GetArrayFromImage(found).T, np.asanyarray(image.dataobj) == 100)


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
def test_a_scan_of_any_format_and_orientation_is_labelled_in_its_place(tmp_path, suffix, code, tilted):
    image = scan(code, tilted=tilted)
    path = write(tmp_path / "in" / f"scan{suffix}", image)
    output = label(tmp_path, path)
    answer = {".nii": ".nii.gz", ".mhd": ".mha"}.get(suffix, suffix)
    assert {file.name for file in output.iterdir()} == {f"scan{answer}", "prediction.json"}
    assert_in_place(output / f"scan{answer}", image)


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("code", ["LPS", "PSR"])
def test_a_dicom_series_is_labelled_in_its_place(tmp_path, code, tilted):
    image = scan(code, tilted=tilted)
    if np.linalg.det(image.affine[:3, :3]) < 0:  # slices are stacked along the normal of a right-handed grid
        image = image.as_reoriented(np.array([[0, 1], [1, 1], [2, -1]]))
    write_dicom(tmp_path / "in/patient/series", image)
    (tmp_path / "in/patient/notes.txt").write_text("not a slice")
    output = label(tmp_path, tmp_path / "in")  # a folder per case
    assert_in_place(output / "patient.nii.gz", image)
    assert_in_place(label(tmp_path / "again", tmp_path / "in/patient/series") / "series.nii.gz", image)


def test_an_nrrd_file_of_another_program_in_ras_is_labelled_in_its_place(tmp_path):
    image = scan("LPS", tilted=True)
    place = {"space directions": image.affine[:3, :3].T, "space origin": image.affine[:3, 3]}
    write_nrrd(tmp_path / "scan.nrrd", np.asanyarray(image.dataobj), space="right-anterior-superior", **place)
    assert_in_place(label(tmp_path, tmp_path / "scan.nrrd") / "scan.nrrd", image)


def test_large_scans_go_block_by_block_to_the_same_label_map(tmp_path):
    image = scan("PSR", tilted=True)
    path = write(tmp_path / "scan.mha", image)
    assert_in_place(label(tmp_path, path, large_voxels=1) / "scan.mha", image)


def two_channels(folder: Path, first: str, second: str) -> None:
    """The box in the second channel, next to nothing in the first."""
    image = scan("LPS")
    write(folder / second, image)
    write(folder / first, nibabel.Nifti1Image(next_to_nothing(), image.affine))


def next_to_nothing() -> np.ndarray:
    """A ground of 10 with one voxel of 11, int16 (x, y, z)."""
    array = np.full(SHAPE, 10, np.int16)
    array[0, 0, 0] = 11
    return array


def test_channels_are_told_by_number_by_name_or_in_one_file(tmp_path):
    plan, image = threshold_plan("T1", "T2"), scan("LPS")
    two_channels(tmp_path / "numbered", "a_0000.nii.gz", "a_0001.nii.gz")
    two_channels(tmp_path / "named/b", "x-t2-t1.nii.gz", "a-t2.nii.gz")  # alphabetical order would exchange them
    two_channels(tmp_path / "named/c", "1_0000.mha", "1_0001.mha")
    both = np.stack([next_to_nothing(), np.asanyarray(image.dataobj)], axis=-1)
    write(tmp_path / "d.nii.gz", nibabel.Nifti1Image(both.astype(np.int16), image.affine))
    vector = itk.Compose(to_itk(nibabel.Nifti1Image(next_to_nothing(), image.affine)), to_itk(image))
    itk.WriteImage(vector, str(tmp_path / "e.mha"))
    inputs = [tmp_path / name for name in ("numbered", "named", "d.nii.gz", "e.mha")]
    output = label(tmp_path, *inputs, plan=plan)
    for name in ("a.nii.gz", "b.nii.gz", "c.mha", "d.nii.gz", "e.mha"):
        assert_in_place(output / name, image)


def test_numbers_that_do_not_begin_with_zero_are_no_channels(tmp_path):
    for name in ("phantom_0001.nii.gz", "phantom_0002.nii.gz", "other_0000.nii.gz", "other_0001.nii.gz"):
        write(tmp_path / "in" / name, scan())
    found = find_scans([tmp_path / "in"])
    assert [(found.case, len(found.files)) for found in found] == [
        ("other", 2), ("phantom_0001", 1), ("phantom_0002", 1)
    ]  # fmt: skip
    assert len(find_scans([tmp_path / "in"], one_file_per_case=True)) == 4
    given = sorted((tmp_path / "in").iterdir())
    assert [found.case for found in find_scans(given)] == ["other", "phantom_0001", "phantom_0002"]


def test_another_number_of_channels_is_refused(tmp_path):
    write(tmp_path / "a.nii.gz", scan())
    with pytest.raises(
        UserError, match=r"case a: the scan has 1 channel in 1 file; the model takes 2 \(T1, T2\): give"
    ):
        label(tmp_path, tmp_path / "a.nii.gz", plan=threshold_plan("T1", "T2"))
    two_channels(tmp_path / "two", "b_0000.nii.gz", "b_0001.nii.gz")
    with pytest.raises(UserError, match=r"case b: the scan has 2 channels in 2 files; .* --one-file-per-case"):
        label(tmp_path, tmp_path / "two")
    output = label(tmp_path, tmp_path / "two", single=True)
    assert (output / "b_0001.nii.gz").is_file()


def test_channels_on_different_grids_or_without_names_are_refused(tmp_path):
    plan = threshold_plan("T1", "T2")
    write(tmp_path / "in/a_0000.nii.gz", scan("LPS"))
    write(tmp_path / "in/a_0001.nii.gz", scan("RAS"))
    with pytest.raises(UserError, match=r"case a: its channels lie on different grids \(their affines .*resample"):
        label(tmp_path, tmp_path / "in", plan=plan)
    two_channels(tmp_path / "unnamed/b", "first.nii.gz", "second.nii.gz")
    with pytest.raises(UserError, match=r"unnamed/b: which file is which channel\? End their names in _0000, _0001"):
        label(tmp_path, tmp_path / "unnamed", plan=plan)


def test_a_stated_modality_that_is_another_one_is_refused_unless_told_to_go_on(tmp_path):
    write_dicom(tmp_path / "a", scan("LPS"), modality="MR")
    ct = threshold_plan("CT")
    with pytest.raises(UserError, match=r"case a: it is MR, and the model was trained on CT: .*--any-modality"):
        label(tmp_path, tmp_path / "a", plan=ct)
    with pytest.raises(UserError, match="case a: it is CT, and the model was trained on T1"):
        label(tmp_path, tmp_path / "a", plan=threshold_plan("T1"), modality="CT")
    assert_in_place(label(tmp_path, tmp_path / "a", plan=ct, any_modality=True) / "a.nii.gz", scan("LPS"))


def test_a_scan_of_a_dataset_with_modalities_takes_the_rules_of_its_own(tmp_path):
    rule = ChannelNormalisation(scheme="range", lower=0.0, upper=100.0)
    dark = replace(rule, upper=1000.0)
    plan = threshold_plan("image", normalisation=(), normalisation_by_modality={"CT": (dark,), "MR": (rule,)})
    write_dicom(tmp_path / "a", scan("LPS"), modality="MR")
    assert_in_place(label(tmp_path, tmp_path / "a", plan=plan) / "a.nii.gz", scan("LPS"))
    write(tmp_path / "b.nii.gz", scan("LPS"))
    with pytest.raises(UserError, match="case b: its modality is not known; the plan normalises CT, MR"):
        label(tmp_path, tmp_path / "b.nii.gz", plan=plan)
    assert_in_place(label(tmp_path, tmp_path / "b.nii.gz", plan=plan, modality="MR") / "b.nii.gz", scan("LPS"))


@pytest.mark.parametrize(
    ("channel", "values", "words"),
    [
        ("CT", (10, 100), "no value below 0, so it is no CT in Hounsfield units"),
        ("MR", (-1000, 100), "values down to -1000, so it is no magnitude image of MR"),
    ],
)
def test_values_that_the_modality_cannot_have_are_refused_unless_told_to_go_on(tmp_path, channel, values, words):
    image = scan()
    array = np.where(box(), values[1], values[0]).astype(np.int16)
    write(tmp_path / "a.nii.gz", nibabel.Nifti1Image(array, image.affine))
    rule = ChannelNormalisation(scheme="ct", mean=0.0, std=100.0, lower=-50.0, upper=300.0)
    plan = threshold_plan(channel, normalisation=(rule,))
    with pytest.raises(UserError, match=rf"case a: the model takes {channel} here, and it has {words}"):
        label(tmp_path, tmp_path / "a.nii.gz", plan=plan)
    assert_in_place(label(tmp_path, tmp_path / "a.nii.gz", plan=plan, any_modality=True) / "a.nii.gz", image)


def test_names_of_channels_are_understood_as_modalities():
    assert [dicom_code(name) for name in ("CT", "mri", "T1ce", "T2-FLAIR", "PET", "FLAIR")] == [
        "CT", "MR", "MR", "MR", "PT", "MR"
    ]  # fmt: skip
    assert dicom_code("image") is None
    assert dicom_code("") is None


def test_a_folder_with_two_series_lists_them_and_takes_the_one_named(tmp_path):
    first, second = scan("LPS"), scan("LPS", tilted=True)
    write_dicom(tmp_path / "patient", first, uid="1.2.3")
    write_dicom(tmp_path / "patient", second, uid="1.2.4", modality="CT")
    write_dicom(tmp_path / "patient", first, uid="1.2.5", modality="SEG")  # no scan
    with pytest.raises(UserError) as error:
        label(tmp_path, tmp_path / "patient")
    message = str(error.value)
    assert "it holds 2 DICOM series; choose one by --series UID" in message
    assert "1.2.3 (MR, 9 files, made); 1.2.4 (CT, 9 files, made)" in message
    assert "\n" not in message
    output = label(tmp_path, tmp_path / "patient", series=("1.2.4",))
    assert_in_place(output / "patient.nii.gz", second)


def test_a_series_with_a_missing_slice_is_refused(tmp_path):
    write_dicom(tmp_path / "patient", scan("LPS"))
    (tmp_path / "patient" / "1.2.3-28.dcm").unlink()  # the fifth
    with pytest.raises(UserError, match=r"series 1\.2\.3: its 8 slices are not evenly spaced, .*slices are missing"):
        label(tmp_path, tmp_path / "patient")


def test_a_series_of_a_tilted_gantry_is_refused(tmp_path):
    write_dicom(tmp_path / "patient", scan("LPS"))
    for number in range(SHAPE[2]):
        path = tmp_path / "patient" / f"1.2.3-{(7 * number) % 100:02}.dcm"
        part = itk.ReadImage(str(path))
        x, y, z = map(float, part.GetMetaData("0020|0032").split("\\"))
        part.SetMetaData("0020|0032", f"{x}\\{y + number}\\{z}")
        writer = itk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        with keeping_locale():
            writer.Execute(part)
    with pytest.raises(UserError, match=r"or their stack is not straight .*the gantry was tilted"):
        label(tmp_path, tmp_path / "patient")


@pytest.mark.parametrize(("suffix", "key"), [(".mha", b"DimSize = "), (".nrrd", b"sizes: ")])
def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path, suffix, key):
    path = write(tmp_path / f"a{suffix}", scan())
    sizes = key + b"14 12 9"
    assert path.read_bytes().count(sizes) == 1
    path.write_bytes(path.read_bytes().replace(sizes, key + b"30000 30000 30000"))
    with pytest.raises(UserError, match="its header claims 27000000000000 voxels, which is more than the file can"):
        label(tmp_path, path)


def test_a_folder_without_scans_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match="there is no scan in this folder"):
        find_scans([tmp_path / "in"])
    with pytest.raises(UserError, match=r"no such image; allowed: files that end in \.nii\.gz"):
        find_scans([tmp_path / "in/readme.txt"])
    for name in ("a/x.nii.gz", "b/x.nii.gz"):
        write(tmp_path / name, scan())
    with pytest.raises(UserError, match="two scans are called x"):
        find_scans([tmp_path / "a", tmp_path / "b"])


def without_orientation(path: Path, code: str) -> Path:
    """A scan whose header does not say how it lies."""
    write(path, scan(code))
    if path.name.endswith(".nii.gz"):
        image = nibabel.Nifti1Image(np.asanyarray(scan(code).dataobj), None)
        image.header.set_zooms(np.linalg.norm(scan(code).affine[:3, :3], axis=0))
        nibabel.save(image, path)
        return path
    lines = path.read_bytes().split(b"\n")
    dropped = (b"TransformMatrix", b"AnatomicalOrientation", b"space: ", b"space origin")
    kept = [line for line in lines if not line.startswith(dropped)]
    sizes = " ".join(map(str, np.linalg.norm(scan(code).affine[:3, :3], axis=0))).encode()
    path.write_bytes(
        b"\n".join(b"spacings: " + sizes if line.startswith(b"space directions") else line for line in kept)
    )
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_an_unknown_orientation_is_refused_and_can_be_assumed(tmp_path, suffix):
    path = without_orientation(tmp_path / "in" / f"scan{suffix}", "LPS")
    with pytest.raises(UserError, match=r"scan.*: its header does not say how the scan lies .*--assume-orientation"):
        label(tmp_path, path)
    output = label(tmp_path, path, orientation="LPS")
    answer, source = itk.ReadImage(str(output / path.name)), itk.ReadImage(str(path))
    np.testing.assert_array_equal(itk.GetArrayFromImage(answer), itk.GetArrayFromImage(source) == 100)
    assert answer.GetSpacing() == pytest.approx(source.GetSpacing())
    assert answer.GetDirection() == source.GetDirection()
    if suffix == ".nii.gz":
        header = nibabel.load(output / path.name).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


def test_the_network_is_shown_an_assumed_orientation(tmp_path):
    from megavoxel.models.prepare import open_scan, prepared

    plan, (scan_given,) = threshold_plan("image"), find_scans([without_orientation(tmp_path / "a.nii.gz", "PSR")])
    reading = Reading(orientation="PSR")
    volumes = open_scan(scan_given, ("image",), reading)
    image, properties = prepared(scan_given, volumes, plan, reading, tmp_path)
    np.testing.assert_array_equal(image[0] > 0.5, box().transpose(2, 1, 0))
    assert properties.spacing == SPACING[::-1]


@pytest.mark.parametrize("code", ["RA", "RAL", "RASS", "XYZ", "RRS"])
def test_an_orientation_that_is_none_is_refused(code):
    with pytest.raises(UserError, match="expected where the axes i, j, k run to"):
        check_orientation_code(code)
    assert check_orientation_code("lpi") == "LPI"


def test_damaged_scans_are_named_and_the_others_go_on(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "c.mha", "d.nrrd", "e.nii.gz"):
        path = write(tmp_path / "in" / name, scan("LPS"))
        if name[0] in "bcd":
            path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError) as error:
        label(tmp_path, tmp_path / "in")
    first, *named = str(error.value).splitlines()
    assert first == "3 of 5 cases were not labelled:"
    assert [line.split(":")[0].split("/")[-1].strip() for line in named] == ["b.nii.gz", "c.mha", "d.nrrd"]
    assert all("cannot be read to its end" in line for line in named)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"a.nii.gz", "e.nii.gz", "prediction.json"}
