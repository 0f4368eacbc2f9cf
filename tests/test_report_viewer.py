"""The slices of the page's viewer: small grids, their encoding, what fits, and the scores of single cases."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fake_study import LABELS, SHAPE, organs
from megavoxel.errors import UserError
from megavoxel.reporting import viewer
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.viewer import Viewer, build_viewer, case_data, ranked_cases
from megavoxel.reporting.viewer_size import (
    BYTES,
    FEWEST_MODELS,
    FEWEST_VOXELS,
    MOST_VOXELS,
    averaged,
    box_around,
    budget_for,
    bytes_of_voxel,
    grey,
    map_bytes,
    marked_box,
    mosaic,
    mosaic_columns,
    picture_bytes,
    reduction_of,
    refitted,
    sampled,
    within_budget,
)
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.write import write_labels

WHOLE = tuple(slice(0, length) for length in (4, 6, 8))


@pytest.fixture(scope="module")
def stored(scored) -> Stored:
    return load_stored(scored.results, str(scored.definition), need_cases=True)


@pytest.fixture(scope="module")
def shown(stored) -> Viewer:
    return build_viewer(stored, stored.cases, processes=1)


def maps_of(case: dict) -> np.ndarray:
    """(z, y, x, maps) of an encoded case, as the page's script decodes them."""
    content = zlib.decompress(base64.b64decode(case["maps"]))
    return np.frombuffer(content, np.uint8).reshape(*case["shape"], -1)


def test_the_box_of_all_labels_has_a_margin_in_millimetres_and_ends_at_the_image():
    labels = np.zeros((10, 20, 30), np.uint8)
    labels[4, 5:7, 28] = 3
    assert marked_box(labels) == (slice(4, 5), slice(5, 7), slice(28, 29))
    assert marked_box(np.zeros((2, 2, 2))) is None
    # A margin of 10 mm is 2 voxels of 5 mm, 5 of 2 mm and 10 of 1 mm.
    box = box_around([marked_box(labels), None, (slice(3, 4), slice(6, 9), slice(20, 22))], (10, 20, 30), (5, 2, 1))
    assert box == (slice(1, 7), slice(0, 14), slice(10, 30))
    assert box_around([None], (2, 3, 4), (1, 1, 1)) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_voxels_of_nanometres_keep_their_sides(stored, tmp_path):
    case, sides = stored.cases.case("case_0"), (4.6e-6, 4.6e-6, 4.5e-5)
    for file in (*case.images, case.label):
        voxels = nibabel.load(Path(stored.cases.root) / file).get_fdata(dtype=np.float32)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*sides, 1])), tmp_path / file)
    moved = replace(stored.cases, root=str(tmp_path))
    job = viewer.Job(case=case, predictions={})
    found = viewer.encoded_case(job, cases=moved, models=(), voxels=MOST_VOXELS)
    assert found["voxel_mm"] == pytest.approx(sides[::-1], rel=1e-3)


def test_a_grid_is_the_case_s_own_where_that_fits():
    reduction = reduction_of(WHOLE, (3.0, 1.0, 1.0), 4 * 6 * 8)
    assert reduction.shape == (4, 6, 8)
    assert reduction.voxel_mm == (3.0, 1.0, 1.0)
    image = np.arange(4 * 6 * 8.0).reshape(4, 6, 8)
    np.testing.assert_array_equal(averaged(image, reduction), image)
    np.testing.assert_array_equal(sampled(image, WHOLE, reduction), image)


def test_thick_slices_are_kept_and_blocks_are_averaged():
    reduction = reduction_of(WHOLE, (4.0, 1.0, 1.0), 4 * 3 * 4)
    assert reduction.shape == (4, 3, 4)
    image = np.random.default_rng(0).normal(size=(4, 6, 8))
    expected = image.reshape(4, 3, 2, 4, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(averaged(image, reduction), expected, atol=1e-6)
    np.testing.assert_array_equal(sampled(image, WHOLE, reduction), image[:, 1::2, 1::2])


@pytest.mark.parametrize("seed", range(20))
def test_every_voxel_counts_once_and_no_grid_is_too_large(seed):
    random = np.random.default_rng(seed)
    lengths, voxels = random.integers(1, 60, 3), int(random.integers(1, 5000))
    box = tuple(slice(3, 3 + int(length)) for length in lengths)
    reduction = reduction_of(box, random.uniform(0.3, 6, 3), voxels)
    assert math.prod(reduction.shape) <= voxels
    for edges, length in zip(reduction.edges, lengths, strict=True):
        assert (edges[0], edges[-1]) == (0, length)
        assert (np.diff(edges) > 0).all()
        assert np.ptp(np.diff(edges)) <= 1


def test_a_map_cut_to_its_labels_is_sampled_as_the_whole_one():
    labels = np.zeros((9, 20, 20), np.uint8)
    labels[2:6, 3:15, 8:11] = 2
    reduction = reduction_of((slice(1, 9), slice(2, 20), slice(0, 20)), (2, 1, 1), 400)
    whole = sampled(labels, tuple(slice(0, length) for length in labels.shape), reduction)
    box = marked_box(labels)
    np.testing.assert_array_equal(sampled(labels[box], box, reduction), whole)
    assert whole.any()
    # SciPy's nearest neighbour at the centres of the blocks gives the same map.
    centres = [
        (edges[:-1] + edges[1:]) // 2 + part.start for edges, part in zip(reduction.edges, reduction.box, strict=True)
    ]
    peer = ndimage.map_coordinates(labels, np.meshgrid(*centres, indexing="ij"), order=0)
    np.testing.assert_array_equal(whole, peer)


def test_intensities_beyond_the_window_are_black_and_white():
    assert grey(np.array([-300.0, -160.0, 40.0, 240.0, 900.0]), (-160.0, 240.0)).tolist() == [0, 0, 128, 255, 255]


def test_a_picture_holds_all_slices_in_order():
    volume = np.random.default_rng(0).integers(0, 255, (5, 3, 4)).astype(np.uint8)
    tiled = mosaic(volume, 2)
    assert tiled.shape == (9, 8)
    np.testing.assert_array_equal(tiled[3:6, 4:8], volume[3])
    assert not tiled[6:, 4:].any()
    smooth = ndimage.zoom(np.random.default_rng(0).uniform(0, 255, (3, 4, 4)), (4, 8, 8), order=1).astype(np.uint8)
    with Image.open(io.BytesIO(picture_bytes(smooth))) as picture:
        found = np.asarray(picture.convert("L")).astype(int)
    assert np.abs(found - mosaic(smooth, mosaic_columns(smooth.shape))).mean() < 8


def test_maps_come_back_byte_by_byte():
    maps = [np.random.default_rng(seed).integers(0, 16, (3, 4, 5)).astype(np.uint8) for seed in range(3)]
    content = np.frombuffer(zlib.decompress(map_bytes(maps)), np.uint8).reshape(3, 4, 5, 3)
    for number, own in enumerate(maps):
        np.testing.assert_array_equal(content[..., number], own)


def test_few_cases_are_shown_finely_and_many_coarsely():
    assert budget_for(4, 3).voxels == MOST_VOXELS
    asked = budget_for(240, 13)
    assert (asked.cases, asked.models) == (240, 13)
    # 62 500 bytes per case, 0.10 for a voxel of the image and 0.014 for one of each of 14 maps.
    assert asked.voxels == int(62_500 / (0.10 + 14 * 0.014))
    assert asked.cases * asked.voxels * bytes_of_voxel(13) <= BYTES


def test_the_grid_is_fitted_to_what_cases_turn_out_to_take():
    asked = budget_for(240, 13)
    allowed = 0.95 * BYTES / 240
    assert refitted(asked, allowed) == asked.voxels
    assert refitted(asked, allowed / 2) == pytest.approx(2 * asked.voxels, abs=1)
    assert refitted(asked, 4 * allowed) == pytest.approx(asked.voxels / 8, abs=1)
    assert refitted(asked, 1) == MOST_VOXELS


def test_models_are_left_out_before_cases():
    fewer_models = budget_for(400, 60)
    assert fewer_models.cases == 400
    assert FEWEST_MODELS <= fewer_models.models < 60
    assert fewer_models.voxels >= FEWEST_VOXELS
    fewer_cases = budget_for(5000, 60)
    assert fewer_cases.models == FEWEST_MODELS
    assert fewer_cases.cases == int(BYTES / (FEWEST_VOXELS * (0.10 + 9 * 0.014)))
    assert budget_for(1, 1).cases == 1
    assert budget_for(10**9, 1).models == 1


def test_cases_that_turn_out_too_large_are_left_out_from_the_end():
    assert within_budget([BYTES // 2, BYTES // 2, 1]) == 2
    assert within_budget([BYTES + 1, 1]) == 0
    assert within_budget([1, 1]) == 2


def test_cases_are_ranked_by_the_mean_over_models_worst_first(stored):
    ranked = ranked_cases(stored)
    # case_1 misses its spleen in all models; the others differ by the movement of the liver alone.
    assert ranked["case"].tolist() == ["case_1", "case_3", "case_0", "case_2", "case_4"]
    assert ranked["DSC"][0] == pytest.approx((4 / 6 + 5 / 6 + 1) / 3 / 2)


def test_scores_of_cases_are_those_of_the_table(stored):
    data = case_data(stored)
    place = (data["metrics"].index("DSC"), data["models"].index("small"))
    names = [case["id"] for case in data["cases"]]
    liver, spleen = data["labels"].index("liver"), data["labels"].index("spleen")
    rows = data["scores"][place[0]][place[1]]
    assert rows[names.index("case_1")][spleen] == 0
    assert rows[names.index("case_3")][spleen] is None
    assert rows[names.index("case_0")][liver] == round(4 / 6 * data["parts"])
    assert data["cases"][0] == {"id": "case_1", "split": "validation", "fold": "0"}
    json.dumps(data, allow_nan=False)


def test_the_viewer_has_reference_and_predictions_of_every_case(stored, shown):
    assert [case["id"] for case in shown.cases] == ranked_cases(stored)["case"].tolist()
    assert shown.models == ("small", "large", "both")
    assert shown.cases_left_out == shown.models_left_out == shown.absent == ()
    for case in shown.cases:
        maps = maps_of(case)
        assert case["shape"] == SHAPE
        assert case["voxel_mm"] == [3.0, 1.5, 1.0]
        np.testing.assert_array_equal(maps[..., 0], organs(case["id"]))
        for number, shift in ((1, 2), (2, 1), (3, 0)):
            spleen = case["id"] != "case_1"
            np.testing.assert_array_equal(maps[..., number], organs(case["id"], shift=shift, spleen=spleen))


def test_labels_are_numbered_by_their_values(stored, monkeypatch):
    numbered = viewer._numbered(
        np.array([[[0, 7, 200, 5]]]), type(stored.cases)(**{**vars(stored.cases), "labels": {"b": 200, "a": 7}})
    )
    assert numbered.tolist() == [[[0, 1, 2, 0]]]
    assert len(LABELS) == 2


def test_what_does_not_fit_is_named_and_it_is_the_best_cases(stored, shown, monkeypatch):
    sizes = [len(case["picture"]) + len(case["maps"]) for case in shown.cases]
    monkeypatch.setattr("megavoxel.reporting.viewer_size.BYTES", sum(sizes[:3]) * 3 // 4)
    less = build_viewer(stored, stored.cases, processes=1)
    assert [case["id"] for case in less.cases] == ["case_1", "case_3", "case_0"][: len(less.cases)]
    assert set(less.cases_left_out) >= {"case_2", "case_4"}


def test_predictions_that_are_gone_are_named(stored, scored, tmp_path):
    shutil.copytree(scored.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    (tmp_path / "results/large/fold-0/validation/case_1.nii.gz").unlink()
    moved = replace(stored, results=tmp_path / "results")
    found = build_viewer(moved, stored.cases, processes=1)
    assert found.absent == ("large/fold-0/validation/case_1.nii.gz",)
    assert found.cases[0]["id"] == "case_1"
    assert found.cases[0]["models"] == ["small", "both"]


def test_a_prediction_on_another_grid_is_refused_with_its_case(stored, scored, tmp_path):
    shutil.copytree(scored.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    path = tmp_path / "results/large/fold-0/validation/case_1.nii.gz"
    write_labels(path, np.zeros((3, 3, 3), np.uint8), Geometry(shape=(3, 3, 3), affine=np.eye(4)))
    moved = replace(stored, results=tmp_path / "results")
    with pytest.raises(UserError, match=r"case case_1: .*case_1\.nii\.gz: lies on another grid"):
        build_viewer(moved, stored.cases, processes=1)
