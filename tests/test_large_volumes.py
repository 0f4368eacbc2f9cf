"""Cases by blocks: the same as in memory, in memory that does not grow with the volume."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from helpers import preprocessing_plan, tiny_plan
from megavoxel.cli import main
from megavoxel.config.regions import LabelScheme
from megavoxel.config.setting import Inference
from megavoxel.config.source import Phantom
from megavoxel.datasets import phantom
from megavoxel.datasets.cases import Case, save_cases
from megavoxel.datasets.check import check_case
from megavoxel.datasets.phantom import STORAGE, make_case, write_case
from megavoxel.errors import UserError
from megavoxel.inference import sliding_window
from megavoxel.inference.sliding_window import predict_slabs, window_strips
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning import fingerprint
from megavoxel.planning.plan import ChannelNormalisation, load_plan, save_plan
from megavoxel.preprocessing import foreground, large
from megavoxel.preprocessing.case import preprocess_case
from megavoxel.preprocessing.normalise import merged_moments, moments_of
from megavoxel.preprocessing.store import open_case
from megavoxel.volumes import slabs
from megavoxel.volumes.masks import fill_holes, filled_slabs
from megavoxel.volumes.open import read_image
from megavoxel.volumes.write import write_nifti
from scans import dataset

RANGE = ChannelNormalisation(scheme="range", lower=-20.0, upper=80.0)
CT = ChannelNormalisation(scheme="ct", mean=50.0, std=25.0, lower=-100.0, upper=200.0)
RESCALE, UNCHANGED = (ChannelNormalisation(scheme=scheme) for scheme in ("rescale-0-1", "unchanged"))
Z_SCORE = ChannelNormalisation(scheme="z-score")
INSIDE = ChannelNormalisation(scheme="z-score", inside_nonzero=True)
SHAPE = (40, 44, 37)
"""In the file's own order."""
PATCH = (12, 12, 12)
STORAGES = {
    "upright": np.diag([1.0, 1.0, 1.0, 1]),
    "upside down": np.diag([-1.0, 1.0, -1.0, 1]),
    "slices along x": np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "slices along y, backwards": np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Slabs, blocks and parts so small that a little case has many of each."""
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 9 * 44 * 44)
    monkeypatch.setattr(slabs, "CHUNK", (8, 32))
    monkeypatch.setattr(slabs, "BLOCK", 16)
    monkeypatch.setattr(large, "BLOCK_VOXELS", 20**3)
    monkeypatch.setattr(large, "EDGE", 19)
    monkeypatch.setattr(foreground, "VOXELS_AT_ONCE", 5 * 44 * 44)


def write_scan(root: Path, affine: np.ndarray, *, channels: int = 1) -> Case:
    """Noise with air around it and a hole in it; two labels, one of them with a hole."""
    random = np.random.default_rng(0)
    image = random.normal(60, 90, (*SHAPE, channels)).round(1).astype(np.float32)
    image[:5] = image[:, 41:] = image[..., 30:, :] = 0
    image[14:20, 14:20, 14:20] = 0
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[8:30, 9:33, 6:28] = 1
    labels[12:17, 12:17, 2:29] = 3
    labels[random.random(SHAPE) < 0.01] = 3
    files = [f"imagesTr/a_{number}.nii.gz" for number in range(channels)]
    for number, file in enumerate(files):
        write_nifti(root / file, image[..., number], affine)
    write_nifti(root / "labelsTr/a.nii.gz", labels, affine)
    return Case(id="a", images=tuple(files), label="labelsTr/a.nii.gz")


def both_ways(root: Path, case: Case, plan):
    """The stored case, made in memory and by blocks."""
    cases = dataset(root, [case], channels=plan.channels, labels=plan.labels)
    for folder, least in (("whole", 10**9), ("blocks", 1)):
        keys = {"cases": cases, "plan": plan, "folder": root / folder, "patch": PATCH, "large_voxels": least}
        properties = preprocess_case(case, **keys)
        assert properties == open_case(root / folder, "a").properties
    assert sorted(path.name for path in (root / "blocks").iterdir()) == sorted(
        path.name for path in (root / "whole").iterdir()
    )
    return open_case(root / "whole", "a"), open_case(root / "blocks", "a")


def assert_same(whole, blocks, tolerance: float) -> None:
    assert blocks.properties == whole.properties
    assert blocks.image.chunks == whole.image.chunks
    np.testing.assert_allclose(blocks.image[:], whole.image[:], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(blocks.labels[:], whole.labels[:])
    assert blocks.labels.dtype == whole.labels.dtype
    assert list(blocks.foreground) == list(whole.foreground) == [1, 2]
    for label, voxels in whole.foreground.items():
        np.testing.assert_array_equal(blocks.foreground[label], voxels)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("storage", STORAGES)
def test_without_resampling_blocks_give_the_same_case(tmp_path, storage, transpose):
    case = write_scan(tmp_path, STORAGES[storage])
    plan = preprocessing_plan(transpose=transpose, normalisation=(CT,))
    whole, blocks = both_ways(tmp_path, case, plan)
    assert_same(whole, blocks, tolerance=0)
    assert np.prod(whole.image.shape) == 35 * 41 * 30
    assert sum(whole.properties.class_voxels) == np.prod(whole.labels.shape)
    assert whole.properties.class_voxels == tuple(np.bincount(whole.labels[:].ravel()))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "rules", [(Z_SCORE, Z_SCORE), (INSIDE, CT), (CT, INSIDE), (RANGE, INSIDE), (RESCALE, UNCHANGED)]
)
def test_moments_and_holes_of_the_whole_image_reach_every_block(tmp_path, rules):
    case = write_scan(tmp_path, STORAGES["upside down"], channels=2)
    plan = preprocessing_plan(channels=("T1", "T2"), normalisation=rules)
    assert_same(*both_ways(tmp_path, case, plan), tolerance=2e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("spacing", "order"),
    [((1.3, 0.8, 1.0), 3), ((0.6, 0.7, 0.7), 3), ((1.9, 2.1, 1.0), 1), ((4.0, 1.2, 0.9), 3), ((0.7, 1.0, 3.5), 2)],
)
def test_resampled_blocks_together_are_the_resampled_case(tmp_path, spacing, order):
    case = write_scan(tmp_path, STORAGES["slices along x"])
    plan = preprocessing_plan(spacing=spacing, normalisation=(INSIDE,), image_order=order)
    whole, blocks = both_ways(tmp_path, case, plan)
    assert whole.image.schunk.nchunks >= 4
    assert_same(whole, blocks, tolerance=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_an_unknown_label_is_refused_and_leaves_nothing_behind(tmp_path):
    case = write_scan(tmp_path, STORAGES["upright"])
    plan = preprocessing_plan(labels={"ball": 1}, normalisation=(CT,))
    cases = dataset(tmp_path, [case], labels=plan.labels)
    with pytest.raises(UserError, match="case a: the label map holds 3; the plan knows 0 and 1"):
        preprocess_case(case, cases=cases, plan=plan, folder=tmp_path / "out", patch=PATCH, large_voxels=1)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_holes_are_filled_by_slabs_as_in_one_piece(share, rows):
    mask = np.random.default_rng(0).random((11, 12, 13)) < share
    slabs_of = dict(filled_slabs(lambda first, last: mask[first:last], len(mask), rows))
    assert list(slabs_of) == list(range(0, 11, rows))
    np.testing.assert_array_equal(np.concatenate(list(slabs_of.values())), fill_holes(mask))


def test_a_well_that_opens_far_below_is_no_hole():
    """A shaft closed at the top and around, open at the bottom: the first slab alone would call it a hole."""
    mask = np.ones((9, 5, 5), dtype=bool)
    mask[2:, 2, 2] = False
    slabs_of = filled_slabs(lambda first, last: mask[first:last], 9, 2)
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in slabs_of]), mask)


def test_moments_of_parts_together_are_those_of_the_whole():
    voxels = np.random.default_rng(0).normal(1000, 3, 10_001).astype(np.float32)
    merged = merged_moments(map(moments_of, np.array_split(voxels, [0, 1, 17, 5000])))
    assert merged.count == 10_001
    assert merged.mean == pytest.approx(voxels.mean(dtype=np.float64), rel=1e-14)
    assert merged.std == pytest.approx(voxels.std(dtype=np.float64), rel=1e-12)
    assert merged_moments([]).count == 0


@pytest.mark.parametrize("fault", ["none", "not finite", "constant", "undeclared"])
def test_faults_are_found_whatever_the_slabs(monkeypatch, tmp_path, fault):
    case = write_scan(tmp_path, STORAGES["slices along y, backwards"], channels=2)
    image, geometry = read_image(tmp_path / case.images[1])
    if fault == "not finite":
        image[0, 3, 4, [5, 6]] = image[0, -1, -1, -1] = np.nan
    if fault == "constant":
        image[...] = 7
    write_nifti(tmp_path / case.images[1], geometry.restore(image[0]), geometry.affine)
    labels = {"ball": 1} if fault == "undeclared" else {"ball": 1, "cube": 3}
    findings = []
    for voxels in (2**22, 2 * 44 * 44):
        monkeypatch.setattr(slabs, "SLAB_VOXELS", voxels)
        findings.append(check_case(tmp_path, case, channels=("T1", "T2"), scheme=LabelScheme(labels=labels)).findings)
    assert findings[0] == findings[1]
    expected = {"none": "2 channels", "not finite": "3 voxels", "constant": "value 7 in", "undeclared": "value 3;"}
    assert len(findings[0]) == 1
    assert expected[fault] in findings[0][0].message


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("most", [500, 10**6])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_fingerprint_of_a_large_case_is_that_of_a_small_one(monkeypatch, tmp_path, storage, most):
    monkeypatch.setattr(fingerprint, "MOST_VOXELS", most)
    case = write_scan(tmp_path, STORAGES[storage], channels=2)
    cases = replace(dataset(tmp_path, [case], channels=("T1", "T2")), background_values=(1,))
    whole = fingerprint.measure(cases)
    monkeypatch.setattr(fingerprint, "LARGE_VOXELS", 1)
    assert fingerprint.measure(cases) == whole
    assert whole.cases[0].cropped_shape != whole.cases[0].shape


@pytest.mark.parametrize(("step", "widest"), [(0.5, 1), (0.5, 20), (0.25, 13), (1.0, 8), (0.7, 25)])
@pytest.mark.parametrize("shape", [(21, 43, 17), (5, 43, 30), (21, 6, 17)])
def test_strips_of_windows_together_are_the_whole_plane(monkeypatch, tmp_path, shape, step, widest):
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    keys = {"patch": (8, 8, 12), "step": step, "sigma": 0.125, "device": torch.device("cpu")}
    expected = torch.cat([slab.logits for slab in predict_slabs(network, image, **keys)], dim=1)
    monkeypatch.setattr(sliding_window, "HOST_SUMS_BYTES", 3 * 4 * 8 * max(12, shape[2]) * widest)
    together, seen = torch.zeros(3, *shape), torch.zeros(shape)
    for slab in predict_slabs(network, image, classes=3, scratch=tmp_path, **keys):
        place = np.s_[slab.start : slab.stop, slab.first_column : slab.first_column + slab.logits.shape[2]]
        together[:, *place] = slab.logits
        seen[place] += 1
    assert (seen == 1).all()
    torch.testing.assert_close(together, expected)
    assert list(tmp_path.iterdir()) == []


def test_windows_in_strips_by_hand():
    strips = window_strips([0, 4, 8, 12, 15], 8, 13)
    assert [strip.columns for strip in strips] == [(0, 4), (8, 12), (15,)]
    assert [strip.end for strip in strips] == [8, 15, 23]
    assert [strip.received for strip in strips] == [0, 4, 5]
    assert [strip.is_last for strip in strips] == [False, False, True]
    assert [strip.columns for strip in window_strips([0, 4, 8], 8, 1)] == [(0,), (4,), (8,)]
    assert [strip.columns for strip in window_strips([0, 4, 8], 8, None)] == [(0, 4, 8)]


@pytest.fixture
def predict(tmp_path):
    """A function that predicts an image file by the stage, and gives the bytes of the label map."""
    plan = tiny_plan(inference=Inference(mirror=False))
    save_plan(tmp_path / "plan.json", plan)
    weights = {"plan_hash": load_plan(tmp_path / "plan.json").hash, "precision": "float32"}
    save_weights(tmp_path / "model.pt", SegmentationNetwork(plan.network, seed=1), **weights)

    def run(image: Path, *options: str) -> bytes:
        paths = ["--plan", tmp_path / "plan.json", "--weights", tmp_path / "model.pt", "--input", image]
        output = tmp_path / f"predicted-{len(list(tmp_path.glob('predicted-*')))}"
        assert main(["predict", *map(str, [*paths, "--output", output]), "--device", "cpu", *options]) == 0
        assert {path.name for path in output.iterdir()} == {image.name, "prediction.json"}
        return (output / image.name).read_bytes()

    return run


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("storage", ["upright", "slices along x"])
def test_a_large_image_is_predicted_as_a_small_one(monkeypatch, tmp_path, predict, storage):
    case = write_scan(tmp_path, STORAGES[storage])
    image = tmp_path / case.images[0]
    whole = predict(image)
    monkeypatch.setattr(sliding_window, "HOST_SUMS_BYTES", 1)
    assert predict(image, "--large-voxels", "1") == whole
    assert len(np.unique(nibabel.load(tmp_path / "predicted-1/a_0.nii.gz").dataobj)) > 1


@pytest.mark.parametrize("index", range(len(STORAGE)))
def test_a_large_phantom_is_the_small_one_without_partial_volume(monkeypatch, tmp_path, index):
    drawn = Phantom(training_cases=5, seed=3, shape=(40, 48, 44), noise=12.0)
    whole, whole_labels = make_case(drawn, index)
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 9 * 44 * 44)
    monkeypatch.setattr(phantom, "LARGE_VOXELS", 1)
    write_case(drawn, index, tmp_path / "images/a.nii.gz", tmp_path / "labels/a.nii.gz")
    image, labels = (nibabel.load(tmp_path / name / "a.nii.gz") for name in ("images", "labels"))
    assert (image.get_data_dtype(), labels.get_data_dtype()) == (np.int16, np.uint8)
    assert image.shape == labels.shape == whole.shape
    np.testing.assert_allclose(image.affine[:3, :3], whole.affine[:3, :3], atol=1e-5)
    np.testing.assert_array_equal(image.affine, labels.affine)
    same = np.asarray(labels.dataobj) == np.asarray(whole_labels.dataobj)
    assert same.mean() > 0.985
    assert set(np.unique(labels.dataobj)) == {0, 1, 2, 3, 4}
    difference = np.asarray(image.dataobj, dtype=float) - np.asarray(whole.dataobj)
    assert abs(np.median(difference)) < 2
    assert np.percentile(np.abs(difference), 50) < 1.4 * 12
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.nii.gz", "a.nii.gz", "images", "labels"]
    again = tmp_path / "again"
    write_case(drawn, index, again / "images/a.nii.gz", again / "labels/a.nii.gz")
    for name in ("images/a.nii.gz", "labels/a.nii.gz"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


MEASURED = """
import sys
from pathlib import Path
from megavoxel.volumes import slabs
from megavoxel.preprocessing import foreground, large
slabs.SLAB_VOXELS, large.BLOCK_VOXELS, foreground.VOXELS_AT_ONCE = 2**18, 2**18, 2**18
from megavoxel.cli import main
from megavoxel.network.host_memory import peak_resident_bytes
status = main(sys.argv[1:])
print("peak", status, peak_resident_bytes())
"""


@pytest.mark.slow
def test_memory_of_preprocessing_does_not_grow_with_the_volume(tmp_path):
    """Six times as many slices: in memory that is 45 MiB more of float32 voxels alone; by blocks next to nothing."""
    peaks = []
    for slices in (64, 384):
        root = tmp_path / str(slices)
        block = np.random.default_rng(0).integers(0, 4, (32, 192, 192)).astype(np.int16)
        write_nifti(root / "images/a.nii.gz", np.tile(block.T, (1, 1, slices // 32)), np.eye(4))
        write_nifti(root / "labels/a.nii.gz", np.tile((block.T > 2).astype(np.uint8), (1, 1, slices // 32)), np.eye(4))
        case = Case(id="a", images=("images/a.nii.gz",), label="labels/a.nii.gz")
        save_cases(root / "cases.json", dataset(root, [case]))
        save_plan(root / "plan.json", preprocessing_plan(normalisation=(Z_SCORE,)))
        paths = {"--cases": "cases.json", "--plan": "plan.json", "--folder": "out", "--output": "marker.json"}
        words = [word for name, path in paths.items() for word in (name, str(root / path))]
        call = [sys.executable, "-c", MEASURED, "preprocess", *words, "--large-voxels", "1"]
        done = subprocess.run([*call, "--patch", "64", "64", "64"], capture_output=True, text=True, check=True)
        _, status, peak = done.stdout.splitlines()[-1].split()
        assert status == "0"
        peaks.append(int(peak) / 2**20)
    assert peaks[1] - peaks[0] < 15, peaks
