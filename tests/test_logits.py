"""Logits back on the image's grid against PyTorch's own interpolation, and label maps in the file's own voxels."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import preprocessing_plan, properties, tiny_plan
from megavoxel.config.setting import Inference
from megavoxel.config.training import Augmentation
from megavoxel.errors import UserError
from megavoxel.inference import logits as module
from megavoxel.inference.decision import UNSEEN
from megavoxel.inference.logits import header_of, label_map, linear_weights, open_logits, write_logits
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.sliding_window import Slab
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.write import write_nifti


def stored(folder, array: torch.Tensor, case_properties, plan=None, order=1):
    header = header_of(case_properties, plan or preprocessing_plan(), order)
    rows = [Slab(start=row, stop=row + 1, logits=array[:, row : row + 1]) for row in range(array.shape[1])]
    return write_logits(folder, header, rows)


@pytest.mark.parametrize(("keep", "small_bytes", "files"), [(False, 2**26, 0), (False, 0, 2), (True, 2**26, 2)])
def test_small_logits_that_nobody_keeps_stay_in_memory(tmp_path, monkeypatch, keep, small_bytes, files):
    monkeypatch.setattr(module, "SMALL_BYTES", small_bytes)
    torch.manual_seed(0)
    plan = tiny_plan()
    network = SegmentationNetwork(plan.network)
    predictor = CasePredictor(plan, [network], "float32", torch.device("cpu"))
    case, image = properties("a", (12, 14, 13)), np.random.default_rng(0).normal(size=(1, 12, 14, 13))
    image = image.astype(np.float32)
    expected = write_logits(tmp_path / "expected", header_of(case, plan.preprocessing), predictor.slabs(image))
    scratch, kept = tmp_path / "scratch", tmp_path / "kept"
    logits = predictor.logits(image, case, kept if keep else None, scratch)
    assert torch.equal(logits.slab(0, 12), expected.slab(0, 12))
    found = [folder for folder in (scratch, kept) if folder.exists()]
    assert [len(list(folder.iterdir())) for folder in found] == [files] * (files > 0)
    assert found == ([kept if keep else scratch] if files else [])


@pytest.mark.parametrize("size", [(9, 10, 11), (14, 8, 20), (7, 15, 9)])
def test_resampled_logits_equal_trilinear_interpolation(tmp_path, size):
    torch.manual_seed(0)
    array = torch.randn(3, 9, 10, 11).half().float()
    case = properties(
        "a", size, shape=(9, 10, 11), spacing=tuple(o / n for o, n in zip((9, 10, 11), size, strict=True))
    )
    logits = stored(tmp_path, array, case)
    whole = torch.cat([slab.logits for slab in logits.slabs()], dim=1)
    expected = F.interpolate(array[None], size=size, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(6, 4, 9), (3, 2, 3), (5, 7, 4)])
def test_logits_of_order_0_are_those_of_the_voxel_in_which_the_new_centre_lies(tmp_path, size):
    torch.manual_seed(0)
    array = torch.randn(3, 3, 4, 3).half().float()
    case = properties("a", size, shape=(3, 4, 3), spacing=tuple(o / n for o, n in zip((3, 4, 3), size, strict=True)))
    logits = stored(tmp_path, array, case, order=0)
    assert open_logits(tmp_path, "a").header.order == 0
    whole = torch.cat([slab.logits for slab in logits.slabs()], dim=1)
    assert torch.equal(whole, F.interpolate(array[None], size=size, mode="nearest-exact")[0])


def test_a_predictor_takes_the_order_of_its_plan(tmp_path):
    plan = replace(tiny_plan(), inference=Inference(logits_order=0))
    predictor = CasePredictor(plan, [SegmentationNetwork(plan.network)], "float32", torch.device("cpu"))
    image = np.zeros((1, 12, 14, 13), dtype=np.float32)
    assert predictor.logits(image, properties("a", (12, 14, 13)), None, tmp_path).header.order == 0


def test_slabs_together_are_the_whole_whatever_their_height(tmp_path, monkeypatch):
    torch.manual_seed(0)
    case = properties("a", (13, 8, 9), shape=(7, 8, 9), spacing=(7 / 13, 1.0, 1.0))
    logits = stored(tmp_path, torch.randn(3, 7, 8, 9), case)
    whole = logits.slab(0, 13)
    for rows in (1, 4, 5):
        monkeypatch.setattr(module, "SLAB_BYTES", rows * 4 * 3 * 8 * 9)
        slabs = list(logits.slabs())
        assert max(slab.stop - slab.start for slab in slabs) == rows
        assert torch.equal(torch.cat([slab.logits for slab in slabs], dim=1), whole)


def test_the_coarse_axis_of_a_flat_case_is_resampled_by_nearest_neighbour(tmp_path):
    array = torch.zeros(3, 4, 6, 6)
    array[1] = torch.arange(4.0).view(4, 1, 1)
    case = properties("a", (8, 6, 6), shape=(4, 6, 6), spacing=(4.0, 1.0, 1.0))
    logits = stored(tmp_path, array, case, preprocessing_plan(spacing=(8.0, 1.0, 1.0)))
    assert logits.slab(0, 8)[1, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_weights_of_doubling_by_hand():
    low, high, share = linear_weights(2, 4, 0, 4)
    assert low.tolist() == [0, 0, 0, 1]
    assert high.tolist() == [1, 1, 1, 1]
    assert share.tolist() == pytest.approx([0, 0.25, 0.75, 0])


def test_outside_of_the_cropped_box_there_is_background(tmp_path):
    case = properties("a", (4, 4, 4), full_shape=(6, 5, 8), file_shape=(8, 5, 6), box=((1, 5), (0, 4), (3, 7)))
    array = torch.zeros(3, 4, 4, 4)
    array[2] = 1.0
    logits = stored(tmp_path, array, case)
    slab = logits.slab(0, 6)
    labels = label_map(logits.canonical_shape, logits.header.decision, logits.slabs())
    assert slab[0, 0, 0, 0] == UNSEEN
    assert (labels == 3).sum() == 64
    assert (labels[1:5, 0:4, 3:7] == 3).all()


def test_transposed_logits_come_back_in_canonical_order(tmp_path):
    """Network order (x, z, y): what lies at canonical (z, y, x) must come back there."""
    array = torch.zeros(3, 6, 4, 5)  # x, z, y
    array[1, 5, 2, 3] = 5.0
    case = properties("a", (6, 4, 5), file_shape=(6, 5, 4))
    logits = stored(tmp_path, array, case, preprocessing_plan(transpose=(2, 0, 1)))
    assert logits.canonical_shape == (4, 5, 6)
    labels = label_map(logits.canonical_shape, logits.header.decision, logits.slabs())
    assert np.argwhere(labels == 1).tolist() == [[2, 3, 5]]


def test_logits_cut_in_half_are_refused(tmp_path):
    stored(tmp_path, torch.zeros(3, 4, 4, 4), properties("a", (4, 4, 4)))
    path = tmp_path / "a.logits.b2nd"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"a\.logits\.b2nd: damaged"):
        open_logits(tmp_path, "a")


@pytest.fixture
def predictor(tmp_path) -> CasePredictor:
    plan = tiny_plan()
    for fold in range(2):
        save_weights(
            tmp_path / f"{fold}.pt",
            SegmentationNetwork(plan.network, seed=fold),
            plan_hash=plan.hash,
            precision="float32",
        )
    return CasePredictor.from_files(plan, [tmp_path / "0.pt", tmp_path / "1.pt"], torch.device("cpu"))


def test_logits_of_folds_are_averaged(predictor):
    image = np.random.default_rng(0).normal(size=(1, 8, 12, 12)).astype(np.float32)
    slab = next(predictor.slabs(image))
    axes = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    window = torch.from_numpy(image)[None]
    with torch.no_grad():
        mean = sum(network(window.flip(flips))[0].flip(flips) for network in predictor.networks for flips in axes) / (
            2 * len(axes)
        )
    torch.testing.assert_close(slab.logits, mean[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("mirror", "trained", "flips"),
    [(True, (0, 2), [(), (1,), (3,), (1, 3)]), (True, (), [()]), (False, (0, 1, 2), [()])],
)
def test_windows_are_mirrored_along_the_axes_of_the_training(predictor, mirror, trained, flips):
    predictor.plan = replace(
        predictor.plan, augmentation=Augmentation(mirror_axes=trained), inference=Inference(mirror=mirror)
    )
    seen = []
    predictor.networks[0].register_forward_pre_hook(lambda _, windows: seen.append(windows[0][0].clone()))
    image = torch.rand(1, *predictor.plan.patch)
    list(predictor.slabs(image.numpy()))
    assert len(seen) == len(flips)
    assert all(torch.equal(window, image.flip(axes)) for window, axes in zip(seen, flips, strict=True))


def test_a_label_map_has_the_shape_and_affine_of_its_image_voxel_for_voxel(predictor, tmp_path):
    affine = np.array([[0, 0, -2.0, 7], [1.056, 0.42, 0, -3], [0.308, -1.44, 0, 11], [0, 0, 0, 1]])
    geometry = Geometry(shape=(10, 14, 9), affine=affine)
    write_nifti(tmp_path / "image.nii.gz", np.zeros(geometry.shape, np.float32), affine)
    shape = geometry.canonical_shape
    case = properties("image", shape, file_shape=geometry.shape, affine=tuple(map(tuple, affine)))
    output = tmp_path / "out"
    output.mkdir()
    predictor.write(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), case, output)
    image, labels = nibabel.load(tmp_path / "image.nii.gz"), nibabel.load(output / "image.nii.gz")
    assert labels.shape == image.shape
    np.testing.assert_array_equal(labels.affine, image.affine)
    assert set(np.unique(labels.dataobj)) <= {0, 1, 3}
    assert list(output.iterdir()) == [output / "image.nii.gz"]
