"""What comes in from outside: nothing wrong passes, nothing disappears, and what is sound goes on working."""

from __future__ import annotations

import gzip
import shutil
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as itk
import torch

from dicom_bytes import write_series
from fake_study import GEOMETRY
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.sliding_window import Slab, finite
from megavoxel.models import prepare
from megavoxel.models.label import Labelling, label_scans, unfinished
from megavoxel.models.prepare import Reading, as_in_training
from megavoxel.models.scans import find_scans
from megavoxel.volumes.grid import compare_grids
from megavoxel.volumes.no_scans import is_no_scan
from megavoxel.volumes.open import open_volume, read_labels
from megavoxel.volumes.volume import Hints
from megavoxel.volumes.write import write_labels
from test_new_scans import Threshold, assert_in_place, label, scan, threshold_plan, write

PIXDIM = 76
QUATERNION = 256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edited_nifti(path: Path, place: int, kind: str, *values: float, sform: bool = False) -> Path:
    """The scan with other bytes in its header; without an sform, so that voxel size and quaternion count."""
    image = scan()
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine if sform else None, int(sform))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, place, *values)
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("side", [0.0, float("nan"), float("inf")])
def test_a_voxel_size_that_is_none_is_refused_where_it_counts_and_can_be_said(tmp_path, side, capfd):
    path = edited_nifti(tmp_path / "a.nii", PIXDIM + 12, "<f", side)
    with pytest.raises(UserError, match=r"a\.nii: its header states voxels of 1.5 x 2 x .*--assume-spacing X Y Z"):
        open_volume(path)
    volume = open_volume(path, Hints(sides=(1.5, 2.0, 4.0)))
    np.testing.assert_allclose(volume.geometry.affine, scan().affine, atol=1e-5)
    counts = edited_nifti(tmp_path / "b.nii", PIXDIM + 12, "<f", side, sform=True)
    np.testing.assert_allclose(open_volume(counts).geometry.affine, scan().affine, atol=1e-5)
    assert capfd.readouterr().err == ""


def test_a_quaternion_that_rounding_made_too_long_is_a_half_turn(tmp_path):
    path = edited_nifti(tmp_path / "a.nii", QUATERNION, "<fff", 0, 0.70710695, 0.70710695)
    found = open_volume(path).geometry
    direction = np.array(itk.ReadImage(str(path)).GetDirection()).reshape(3, 3)
    sides = np.linalg.norm(found.affine[:3, :3], axis=0)
    np.testing.assert_allclose(found.affine[:3, :3], np.diag([-1, -1, 1]) @ direction * sides, atol=1e-4)
    edited_nifti(path, QUATERNION, "<fff", 0, 0.9, 0.9)
    with pytest.raises(UserError, match=r"a\.nii: "):
        open_volume(path)


def test_a_name_that_says_another_compression_is_told_with_the_right_name(tmp_path):
    nibabel.save(scan(), tmp_path / "a.nii")
    (tmp_path / "b.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a\.nii\.gz: it is not compressed, though .*: rename it to a\.nii$"):
        open_volume(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii: it is compressed, .*: rename it to b\.nii\.gz$"):
        open_volume(tmp_path / "b.nii")


@pytest.mark.parametrize("tail", [(1,), (1, 1), (1, 2)])
def test_axes_of_one_voxel_behind_the_third_are_passed_over(tmp_path, tail):
    image = scan()
    array = np.broadcast_to(np.asanyarray(image.dataobj)[(..., *(None,) * len(tail))], (*image.shape, *tail))
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), image.affine), tmp_path / "a.nii.gz")
    volume = open_volume(tmp_path / "a.nii.gz")
    assert volume.shape == (tail[-1], 9, 12, 14)
    slabs = [slab.voxels for slab in volume.image_slabs()]
    np.testing.assert_array_equal(np.stack(slabs), volume.image())


@pytest.mark.parametrize(("suffix", "dropped"), [(".mha", b"ElementSpacing"), (".nrrd", b"space directions")])
def test_a_header_without_the_size_of_voxels_is_refused_and_can_be_said(tmp_path, suffix, dropped):
    path = write(tmp_path / f"a{suffix}", scan("LPS"))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(dropped)))
    with pytest.raises(UserError, match=r"its header does not state the size of its voxels; .*--assume-spacing X Y Z"):
        open_volume(path)
    found = open_volume(path, Hints(sides=(1.5, 2.0, 4.0)))
    assert found.geometry.spacing == pytest.approx((4.0, 2.0, 1.5))


def test_lengths_of_another_unit_in_nrrd_and_metaimage_are_refused(tmp_path):
    for suffix, line in ((".nrrd", b'space units: "um" "um" "um"\n'), (".mha", b"DistanceUnits = um\n")):
        path = write(tmp_path / f"a{suffix}", scan("LPS"))
        content = path.read_bytes()
        place = content.index(b"encoding:") if suffix == ".nrrd" else content.index(b"ElementSpacing")
        path.write_bytes(content[:place] + line + content[place:])
        with pytest.raises(UserError, match="its header states lengths in um; write it with lengths in mm"):
            open_volume(path)


def in_unit(unit: str, factor: float) -> nibabel.Nifti1Image:
    """The scan with a header in another unit."""
    affine = scan().affine.copy()
    affine[:3] *= factor
    image = nibabel.Nifti1Image(np.asanyarray(scan().dataobj), affine)
    image.header.set_xyzt_units(unit)
    return image


@pytest.mark.parametrize(("unit", "factor"), [("meter", 0.001), ("micron", 1000.0)])
def test_a_scan_in_another_unit_is_labelled_as_in_mm_and_keeps_its_own_numbers(tmp_path, unit, factor):
    write(tmp_path / "in/a.nii.gz", in_unit(unit, factor))
    answer = nibabel.load(label(tmp_path, tmp_path / "in") / "a.nii.gz")
    np.testing.assert_allclose(answer.affine, in_unit(unit, factor).affine, rtol=1e-6)
    assert answer.header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(np.asanyarray(answer.dataobj), np.asanyarray(scan().dataobj) == 100)


def test_a_model_of_a_dataset_in_micrometres_takes_scans_as_their_numbers_are(tmp_path):
    write(tmp_path / "in/a.nii.gz", in_unit("micron", 1.0))
    answer = nibabel.load(label(tmp_path, tmp_path / "in") / "a.nii.gz")
    np.testing.assert_allclose(answer.affine, scan().affine, rtol=1e-6)
    assert answer.header.get_xyzt_units()[0] == "micron"
    write(tmp_path / "far/a.nii.gz", in_unit("meter", 1000.0))
    with pytest.raises(UserError, match=r"voxels of 4000 x 2000 x 1500 meter, the model's are 4 x 2 x 1.5 mm: neither"):
        as_in_training(threshold_plan("image").preprocessing, "a", [open_volume(tmp_path / "far/a.nii.gz")])


def test_label_maps_in_another_unit_than_their_image_lie_elsewhere(tmp_path):
    grids = []
    for unit, factor in (("mm", 1.0), ("micron", 1000.0), ("micron", 1.0), ("unknown", 1.0)):
        nibabel.save(in_unit(unit, factor), tmp_path / "a.nii.gz")
        grids.append(open_volume(tmp_path / "a.nii.gz").geometry)
    assert [bool(compare_grids(grids[0], other)) for other in grids] == [False, False, True, False]
    write_labels(tmp_path / "b.nii.gz", np.zeros(grids[1].canonical_shape, np.uint8), grids[1])
    assert nibabel.load(tmp_path / "b.nii.gz").header.get_xyzt_units()[0] == "micron"


def test_whatever_is_no_scan_is_named_unless_it_is_left_out_by_request(tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "a.nii.gz", scan())
    (folder / "b.nii.gz").symlink_to("nothing.nii.gz")
    (folder / "c.mgz").write_bytes(b"\0\1")
    write(folder / "case/deep/d.nii.gz", scan())
    for name in ("notes.txt", ".DS_Store", "._a.nii.gz", "Thumbs.db", "a.png", "README"):
        (folder / name).write_text("words")
    write(folder / ".hidden/e.nii.gz", scan())
    with pytest.raises(UserError) as error:
        label(tmp_path, folder)
    first, *named = str(error.value).splitlines()
    assert first == "3 of 4 cases were not labelled:"
    assert "b.nii.gz: a link to nothing" in named[0]
    assert "c.mgz: files of this kind are not read" in named[1]
    assert "d.nii.gz: it lies deeper than the folder of a case; name " in named[2]
    assert named[2].endswith("--leave-out")
    assert names(tmp_path / "out") == ["a.nii.gz", "prediction.json"]
    assert [found.case for found in find_scans([folder], leave_out=True)] == ["a"]
    assert capsys.readouterr().out.count("left out: ") == 3


def test_many_files_of_one_kind_are_one_line(tmp_path):
    write(tmp_path / "in/a.nii.gz", scan())
    write_series(tmp_path / "in")
    (fault,) = [found.fault for found in find_scans([tmp_path / "in"]) if found.fault]
    assert "IM1 and 5 more beside it: DICOM files beside scans of other formats" in fault


def test_voxels_beside_their_header_belong_to_it(tmp_path):
    write(tmp_path / "in/a.mhd", scan())
    assert names(tmp_path / "in") == ["a.mhd", "a.raw"]
    assert [found.fault for found in find_scans([tmp_path / "in"])] == [None]


def test_label_maps_in_a_folder_of_the_input_are_no_scans(tmp_path):
    folder = tmp_path / "in"
    write(folder / "a.nii.gz", scan())
    plan = threshold_plan("image")
    predictor = CasePredictor(plan, [Threshold()], "float32", torch.device("cpu"))
    labelling = Labelling(output=folder / "out", model={"model": "t"}, postprocessing=None, reading=Reading())
    for left in (1, 0):
        scans = unfinished(find_scans([folder]), labelling)
        assert len(scans) == left
        label_scans(scans, predictor, labelling)


def test_channels_may_come_in_any_order_and_none_may_be_missing_between(tmp_path):
    for name in ("p_0000", "p_0001", "q_0000", "q_0001"):
        write(tmp_path / f"{name}.nii.gz", scan())
    given = [tmp_path / f"{name}.nii.gz" for name in ("q_0001", "p_0000", "q_0000", "p_0001")]
    found = {entry.case: [path.name for path in entry.files] for entry in find_scans(given)}
    assert found == {
        "p": ["p_0000.nii.gz", "p_0001.nii.gz"],
        "q": ["q_0000.nii.gz", "q_0001.nii.gz"],
    }
    (tmp_path / "p_0001.nii.gz").rename(tmp_path / "p_0002.nii.gz")
    with pytest.raises(UserError, match="the channels 0000, 0002 are there; expected 0000 and on"):
        label(tmp_path / "x", tmp_path / "p_0000.nii.gz", tmp_path / "p_0002.nii.gz", plan=threshold_plan("T1", "T2"))


def test_a_series_that_is_divided_among_folders_is_one_scan(tmp_path):
    write_series(tmp_path / "patient/S0", [0, 1, 2])
    write_series(tmp_path / "patient/S1", [3, 4, 5])
    assert [(found.case, found.dicom) for found in find_scans([tmp_path / "patient"])] == [
        ("patient", tmp_path / "patient")
    ]
    assert [found.case for found in find_scans([tmp_path])] == ["patient"]
    write_series(tmp_path / "patient/other", uid="1.2.4")
    with pytest.raises(UserError, match=r"patient: S0, S1 hold slices of one series; bring them into one folder"):
        find_scans([tmp_path / "patient"])
    for name in ("a", "b"):  # two scans to which somebody gave one UID
        write_series(tmp_path / "twins" / name)
    assert [found.case for found in find_scans([tmp_path / "twins"])] == ["a", "b"]


def test_a_series_that_may_lack_its_ends_is_refused_unless_the_user_says_it_is_all(tmp_path):
    write_series(tmp_path / "in/a", [2, 3, 4, 5], modality="MR")
    with pytest.raises(UserError, match=r"a: its slices are numbered from 3 on, .* add --incomplete-series"):
        label(tmp_path, tmp_path / "in/a")
    output = label(tmp_path, tmp_path / "in/a", incomplete_series=True)
    assert nibabel.load(output / "a.nii.gz").shape == (5, 4, 4)


def test_files_are_known_to_be_no_scans_by_name_or_as_texts(tmp_path):
    contents = {"a.csv": b"1", "CHANGES": b"text", "x": b"", "y": b"\0", "z": b"/annex/objects/MD5E", "a.dcm": b"text"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in contents if is_no_scan(tmp_path / name)] == ["a.csv", "CHANGES"]


class Broken(torch.nn.Module):
    """A network that gives a value which is none in one voxel."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, window: torch.Tensor) -> list[torch.Tensor]:
        logits = torch.zeros(1, 3, *window.shape[2:])
        logits[0, 1, 0, 0, 0] = self.value
        return [logits]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("large", [1, 10**9])
def test_logits_that_are_not_finite_are_an_error_of_the_case(tmp_path, value, large):
    write(tmp_path / "in/a.nii.gz", scan())
    plan = threshold_plan("image")
    predictor = CasePredictor(plan, [Threshold(), Broken(value)], "float32", torch.device("cpu"))
    reading = Reading(large_voxels=large)
    labelling = Labelling(output=tmp_path / "out", model={"model": "t"}, postprocessing=None, reading=reading)
    with pytest.raises(UserError, match="case a: the network gives values that are NaN or infinite"):
        label_scans(unfinished(find_scans([tmp_path / "in"]), labelling), predictor, labelling)
    assert names(tmp_path / "out") == ["prediction.json"]


def label_one(path: Path, output: Path, **said: object) -> None:
    plan = threshold_plan("image")
    reading = Reading(any_modality=True, **said)
    labelling = Labelling(output=output, model={}, postprocessing=None, reading=reading)
    predictor = CasePredictor(plan, [Threshold()], "float32", torch.device("cpu"))
    label_scans(unfinished(find_scans([path]), labelling), predictor, labelling)


@pytest.mark.parametrize(("name", "voxels"), [("a.nii.gz", "a.nii.gz"), ("a.mhd", "a.raw")])
def test_a_scan_that_changed_since_it_was_labelled_is_labelled_again(tmp_path, capsys, name, voxels):
    path, output = tmp_path / "in" / name, tmp_path / "out"
    write(path, scan())
    label_one(path, output)
    (labels,) = (file for file in output.iterdir() if file.name != "prediction.json")
    first, stamp = labels.read_bytes(), labels.stat().st_mtime_ns
    label_one(path, output)
    assert "1 of 1 cases are there already" in capsys.readouterr().out
    assert labels.stat().st_mtime_ns == stamp
    label_one(path, output, modality="MR")
    assert "there already" not in capsys.readouterr().out
    header = path.read_bytes()
    write(path, nibabel.Nifti1Image(np.asanyarray(scan().dataobj)[::-1], scan().affine, scan().header))
    assert name == voxels or path.read_bytes() == header
    label_one(path, output)
    assert "there already" not in capsys.readouterr().out
    assert labels.read_bytes() != first


def test_a_scan_that_memory_does_not_hold_is_refused_by_its_header_and_read_in_parts(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write(path, scan())
    monkeypatch.setattr(prepare, "free_memory", lambda: 8 * scan().dataobj.size - 1)
    monkeypatch.setattr(prepare, "joined_image", lambda _: pytest.fail("its voxels are read"))
    with pytest.raises(UserError, match=r"case a: .*a\.nii\.gz takes 0\.0 GB .*add --large-voxels 1, so that"):
        label_one(path, tmp_path / "out")
    label_one(path, tmp_path / "out", large_voxels=1)
    assert (tmp_path / "out/a.nii.gz").is_file()


@pytest.mark.parametrize("kind", [np.int16, np.float64])
def test_a_scan_takes_no_more_than_24_bytes_for_a_voxel_until_it_is_refused(tmp_path, kind):
    nibabel.Nifti1Image(np.zeros((120, 120, 120), kind), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    tracemalloc.start()
    with pytest.raises(UserError, match="has the value 0 in every voxel"):
        label_one(tmp_path / "a.nii.gz", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 120**3


def test_a_mean_of_stored_logits_that_is_not_finite_names_its_subject():
    slab = Slab(start=0, stop=1, logits=torch.tensor([[[[float("nan"), 1.0]]]]))
    with pytest.raises(UserError, match="case x: the network gives values"):
        finite(slab, name="case x")
    assert finite(replace(slab, logits=torch.zeros(1, 0, 2, 2)), name="x").logits.numel() == 0


def test_labels_that_are_whole_but_for_rounding_are_whole(tmp_path):
    array = np.zeros((4, 4, 4), np.float32)
    array[1], array[2] = 0.99999994, 999.9999
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    assert set(np.unique(read_labels(tmp_path / "a.nii.gz")[0])) == {0, 1, 1000}
    array[1] = 0.9999
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"the label map holds 0\.9999; labels are whole numbers"):
        read_labels(tmp_path / "a.nii.gz")


def test_folders_to_be_scored_hold_nothing_that_is_not_understood(tmp_path, capsys):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3] = 1
    grid = replace(GEOMETRY, shape=(4, 4, 4))
    for side in ("ours", "theirs"):
        write_labels(tmp_path / side / "a.nii.gz", labels, grid)
        (tmp_path / side / "dataset.json").write_text("{}")
    words = ["evaluate", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--tolerance", "1"]
    assert main(words) == 0
    (tmp_path / "theirs/b.mgz").write_bytes(b"\0")
    assert main(words) == 1
    assert "theirs: b.mgz: neither label maps that can be read" in capsys.readouterr().err
    assert main([*words, "--allow-extra"]) == 0
    write_labels(tmp_path / "ours/a.nii.gz", labels * 7, grid)
    capsys.readouterr()
    assert main([*words, "--allow-extra"]) == 0
    assert "values of predictions that no reference has, which are not scored: 7" in capsys.readouterr().out


def test_copied_scans_go_on_as_they_are(tmp_path):
    write(tmp_path / "in/a b.nii.gz", scan())
    for name in ("c.d.v2", "名-ü", "NA", "001", "1e3", "null"):
        shutil.copy(tmp_path / "in/a b.nii.gz", tmp_path / f"in/{name}.nii.gz")
    output = label(tmp_path, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        assert_in_place(output / path.name, scan())
