"""The picture of a labelled scan: the right slices, the right way round, volumes, and little memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from helpers import preprocessing_plan, tiny_plan
from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.inference.predict import CasePredictor
from megavoxel.models.label import Labelling, label_scans, unfinished
from megavoxel.models.prepare import Reading
from megavoxel.models.scans import find_scans
from megavoxel.models.volumes import collect_volumes
from megavoxel.reporting.picture import counted, picture_figure, slices_at, write_picture
from megavoxel.volumes import slabs
from megavoxel.volumes.open import open_volume, read_geometry
from megavoxel.volumes.volume import Volume

SPACING = (2.0, 1.0, 4.0)  # x, y, z
SHAPE = (10, 12, 6)
CODES = ("RAS", "LPS", "PSR", "IAL")
NAMES = {"liver": 1, "spleen": 3}


class Halves(torch.nn.Module):
    """Label 1 where the image is above 0."""

    def forward(self, window: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([-window, window, torch.full_like(window, -9)], dim=1)]


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """(x, y, z) in RAS+: a liver on the patient's right in front, a spleen of one voxel, bright where the liver is."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[6:9, 8:11, 2:5] = 1
    labels[1, 1, 3] = 3
    return np.where(labels == 1, 90.0, 10.0).astype(np.float32), labels


def write_scan(folder: Path, code: str = "RAS") -> tuple[Path, Path]:
    """Image and label map with axes along `code`."""
    paths = []
    for name, array in zip(("image", "labels"), arrays(), strict=True):
        affine = np.diag([*SPACING, 1.0])
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(code))
        paths.append(folder / f"{code}-{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, affine).as_reoriented(turn), paths[-1])
    return tuple(paths)


def canonical() -> tuple[np.ndarray, np.ndarray]:
    """The arrays as (z, y, x)."""
    return tuple(array.transpose(2, 1, 0) for array in arrays())


def drawn() -> Figure:
    """The picture of slices through the liver."""
    image, labels = canonical()
    places = (3, 9, 7)
    greys, maps = ([np.take(array, place, axis) for axis, place in enumerate(places)] for array in (image, labels))
    return picture_figure(greys, maps, SPACING[::-1], NAMES, "MR")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("voxels", [1, 40, 10**6])
def test_planes_are_counted_and_cut_slab_by_slab(tmp_path, monkeypatch, code, voxels):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", voxels)
    paths, volumes = write_scan(tmp_path, code), canonical()
    shape = read_geometry(paths[0]).canonical_shape
    marked, count = counted(open_volume(paths[1]).label_slabs(), shape)
    for axis, found in enumerate(marked):
        others = tuple(other for other in range(3) if other != axis)
        np.testing.assert_array_equal(found, (volumes[1] != 0).sum(axis=others))
    assert count == {1: 27, 3: 1}
    places = (3, 9, 7)
    for path, volume, read in zip(paths, volumes, (Volume.image_slabs, Volume.label_slabs), strict=True):
        for axis, cut in enumerate(slices_at(read(open_volume(path)), places, shape)):
            np.testing.assert_array_equal(cut, np.take(volume, places[axis], axis))


def test_the_right_of_the_patient_is_on_the_left_and_the_head_and_the_front_are_up():
    axial, coronal, sagittal = drawn().axes[:3]
    for ax, (column, row) in ((axial, (2, 9)), (coronal, (2, 3)), (sagittal, (2, 3))):
        grey = np.asarray(ax.images[0].get_array())
        assert ax.images[0].origin == "lower"
        bright = np.argwhere(grey == 90)
        assert tuple(bright.mean(axis=0)[::-1]) == (column, row)
    letters = [{text.get_text() for text in ax.texts} for ax in (axial, coronal, sagittal)]
    assert letters == [set("RLAP"), set("RLSI"), set("APSI")]
    at = {text.get_text(): text.get_position() for text in sagittal.texts}
    assert at["A"][0] < at["P"][0]
    assert at["S"][1] > at["I"][1]


def test_voxels_have_their_shape_and_labels_their_place():
    figure = drawn()
    plain, labelled = figure.axes[:3], figure.axes[3:6]
    aspects = [ax.get_aspect() for ax in plain]
    assert aspects == [1 / 2, 4 / 2, 4 / 1]
    assert [len(ax.images) for ax in plain] == [1, 1, 1]
    for ax in labelled:
        grey, over = (np.ma.asarray(picture.get_array()) for picture in ax.images)
        np.testing.assert_array_equal(over.filled(0) == 1, grey == 90)


def test_the_same_scan_in_any_orientation_gives_the_same_picture(tmp_path):
    pictures = set()
    for code in CODES:
        path = tmp_path / f"{code}.png"
        image, labels = write_scan(tmp_path, code)
        write_picture(path, open_volume(image), labels, NAMES, title="scan", modality="MR")
        pictures.add(path.read_bytes())
    assert len(pictures) == 1


def test_volumes_stand_beside_the_labels(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr("megavoxel.reporting.picture.label_legend", lambda _figure, _names, texts: shown.update(texts))
    image, labels = write_scan(tmp_path)
    write_picture(tmp_path / "a.png", open_volume(image), labels, NAMES | {"kidney": 2}, title="scan", modality="MR")
    # A voxel has 8 mm³.
    assert shown == {"liver": "liver: 0.216 mL", "spleen": "spleen: 0.008 mL", "kidney": "kidney: 0 mL"}


def test_a_scan_without_any_label_is_shown_in_its_middle(tmp_path):
    image, labels = write_scan(tmp_path)
    nothing = nibabel.load(labels)
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), nothing.affine), labels)
    write_picture(tmp_path / "a.png", open_volume(image), labels, NAMES, title="scan", modality="CT")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000


def test_prediction_writes_pictures_on_demand_also_later(tmp_path):
    image, _ = write_scan(tmp_path)
    rules = preprocessing_plan(channels=("MR",), spacing=SPACING[::-1])
    plan = tiny_plan(preprocessing=rules, patch=(4, 8, 8))
    labelling = Labelling(output=tmp_path / "out", model={"model": "tiny"}, postprocessing=None, reading=Reading())
    predictor = CasePredictor(plan, [Halves()], "float32", torch.device("cpu"))
    for pictures in (False, True):
        job = replace(labelling, pictures=pictures)
        left = unfinished(find_scans([image]), job)
        assert len(left) == 1
        label_scans(left, predictor, job)
        assert (tmp_path / "out/RAS-image.png").is_file() == pictures
        assert (tmp_path / "out/volumes.csv").is_file() == pictures
    assert not unfinished(find_scans([image]), job)


def test_volumes_are_written_per_case_and_for_all_cases_of_a_folder(tmp_path):
    image, _ = write_scan(tmp_path)
    rules = preprocessing_plan(channels=("MR",), spacing=SPACING[::-1])
    plan = tiny_plan(preprocessing=rules, patch=(4, 8, 8))
    output = tmp_path / "out"
    labelling = Labelling(output=output, model={"model": "tiny"}, postprocessing=None, reading=Reading(), pictures=True)
    predictor = CasePredictor(plan, [Halves()], "float32", torch.device("cpu"))
    for name in ("a", "b"):  # one call after the other
        shutil.copy(image, tmp_path / f"{name}.nii.gz")
        label_scans(find_scans([tmp_path / f"{name}.nii.gz"]), predictor, labelling)
    expected = []
    for name in ("a", "b"):
        labels = np.asarray(nibabel.load(output / f"{name}.nii.gz").dataobj)
        found = read_json(output / f"{name}.volumes.json", what="volumes")
        assert found["case"] == name
        for label, value in plan.preprocessing.labels.items():
            voxels = int((labels == value).sum())
            # A voxel has 8 mm³.
            assert found["labels"][label] == {"voxels": voxels, "ml": pytest.approx(voxels * 0.008)}
            expected.append((name, label, voxels))
    table = pd.read_csv(output / "volumes.csv")
    assert list(table.columns) == ["case", "label", "voxels", "ml"]
    assert list(table[["case", "label", "voxels"]].itertuples(index=False, name=None)) == expected
    assert sum(voxels for _, _, voxels in expected) > 0
    (output / "volumes.csv").unlink()
    collect_volumes(output)
    pd.testing.assert_frame_equal(pd.read_csv(output / "volumes.csv"), table)


def test_a_picture_of_a_file_that_is_not_there_is_refused(tmp_path):
    _, labels = write_scan(tmp_path)
    image, picture = tmp_path / "none.nii.gz", tmp_path / "a.png"
    with pytest.raises(UserError, match=r"none\.nii\.gz: no such file"):
        write_picture(picture, open_volume(image), labels, NAMES, title="scan", modality="CT")
    assert not picture.exists()
