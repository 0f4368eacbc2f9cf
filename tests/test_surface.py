"""NSD against values worked out by hand and against MONAI on the whole masks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice

from megavoxel.evaluation.compared import compared_labels
from megavoxel.evaluation.metrics import METRICS


def by_monai(prediction, reference, tolerance, spacing):
    """MONAI's value on the whole masks, in the definition of Nikolov et al."""
    warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
    masks = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, reference)]
    return float(
        compute_surface_dice(
            *masks, class_thresholds=[tolerance], include_background=True, spacing=list(spacing), use_subvoxels=True
        )
    )


def surface_dice_per_label(prediction, reference, labels, *, tolerances, spacing):
    """NSD of each label."""
    found = compared_labels(prediction, reference, labels, tolerances=tolerances, spacing=spacing)
    return np.array([METRICS["nsd"].of(label) for label in found])


def surface_dice(prediction, reference, *, tolerance, spacing):
    """NSD of two masks."""
    maps = [mask.astype(np.uint8) for mask in (prediction, reference)]
    return surface_dice_per_label(*maps, [1], tolerances=[tolerance], spacing=spacing)[0]


def box(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))] = True
    return mask


def test_two_plates_three_millimetres_apart():
    # Two slabs that fill the field of view but for their height: the upper one is 3 voxels higher.
    prediction, reference = np.zeros((2, 12, 20, 20), bool)
    prediction[5:7], reference[2:4] = True, True
    spacing = (1.0, 1.0, 1.0)
    assert surface_dice(prediction, reference, tolerance=3.0, spacing=spacing) == 1.0
    below = surface_dice(prediction, reference, tolerance=0.5, spacing=spacing)
    # Within half a millimetre lie no two faces, only rims can: far less than the faces' 4 x 20 x 20 mm².
    assert below < 0.1


def test_tolerance_is_in_millimetres_along_the_right_axis():
    prediction, reference = np.zeros((2, 9, 9, 9), bool)
    prediction[4, 4, 4], reference[4, 4, 5] = True, True
    # One voxel to the side: all elements move by the spacing of the last axis, 2 mm.
    shifted = {
        tolerance: surface_dice(prediction, reference, tolerance=tolerance, spacing=(7.0, 5.0, 2.0))
        for tolerance in (1.9, 2.0)
    }
    assert shifted[2.0] == 1.0
    # A single voxel has 8 equal corner elements; the 4 between the two voxels are common to both.
    assert shifted[1.9] == pytest.approx(0.5)


def test_identical_masks_agree_at_tolerance_zero():
    mask = box((6, 7, 8), (1, 2, 3), (4, 5, 6))
    assert surface_dice(mask, mask, tolerance=0.0, spacing=(3.0, 1.0, 2.0)) == 1.0


def test_both_empty_is_not_a_number_and_one_empty_is_zero():
    empty, full = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    assert math.isnan(surface_dice(empty, empty, tolerance=1.0, spacing=(1, 1, 1)))
    assert surface_dice(full, empty, tolerance=1.0, spacing=(1, 1, 1)) == 0.0
    assert surface_dice(empty, full, tolerance=1000.0, spacing=(1, 1, 1)) == 0.0
    labels = np.where(full, 2, 0)
    scores = surface_dice_per_label(labels, np.zeros_like(labels), [1, 2], tolerances=[1.0, 1.0], spacing=(1, 1, 1))
    assert math.isnan(scores[0])
    assert scores[1] == 0.0


BOXES = {
    "inside": (((3, 4, 5), (8, 10, 12)), ((4, 4, 4), (9, 9, 13))),
    "at the first border": (((0, 0, 0), (5, 6, 7)), ((0, 1, 0), (6, 6, 6))),
    "at the last border": (((9, 11, 13), (14, 16, 18)), ((10, 10, 13), (14, 16, 17))),
    "whole field of view": (((0, 0, 0), (14, 16, 18)), ((1, 0, 0), (14, 16, 18))),
    "one voxel each, far apart": (((0, 0, 0), (1, 1, 1)), ((13, 15, 17), (14, 16, 18))),
    "one voxel each, adjacent at the border": (((0, 0, 5), (1, 1, 6)), ((0, 0, 6), (1, 1, 7))),
    "one slice at the border": (((0, 2, 2), (1, 9, 9)), ((0, 3, 2), (1, 9, 10))),
    "a line along an edge": (((0, 0, 0), (1, 1, 18)), ((0, 1, 0), (1, 2, 18))),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.7)])
def test_boxes_score_as_monai_scores_the_whole_masks(name, spacing):
    shape = (14, 16, 18)
    prediction, reference = (box(shape, *corners) for corners in BOXES[name])
    for tolerance in (0.0, 0.3, 0.75, 1.0, 2.0, 5.0, 40.0):
        expected = by_monai(prediction, reference, tolerance, spacing)
        value = surface_dice_per_label(
            prediction.astype(np.uint8), reference.astype(np.uint8), [1], tolerances=[tolerance], spacing=spacing
        )[0]
        assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_random_label_maps_score_as_monai_scores_the_whole_masks(seed):
    generator = np.random.default_rng(seed)
    prediction, reference = (np.zeros((11, 13, 15), np.uint8) for _ in range(2))
    for array in (prediction, reference):
        for label in (1, 2, 3):
            start = generator.integers(0, 7, 3)
            stop = start + generator.integers(1, 9, 3)
            array[tuple(map(slice, start, stop))] = label
    array[generator.random(array.shape) < 0.02] = 3
    spacing, tolerances = (2.5, 0.9, 0.9), [0.5, 1.8, 2.5]
    values = surface_dice_per_label(prediction, reference, [1, 2, 3], tolerances=tolerances, spacing=spacing)
    for label, tolerance, value in zip((1, 2, 3), tolerances, values, strict=True):
        if (prediction == label).any() and (reference == label).any():
            assert value == pytest.approx(
                by_monai(prediction == label, reference == label, tolerance, spacing), abs=1e-6
            )


def test_views_in_another_memory_order_score_the_same():
    prediction, reference = box((9, 8, 7), (2, 2, 2), (6, 6, 6)), box((9, 8, 7), (3, 2, 2), (7, 6, 5))
    turned = [np.asfortranarray(mask)[::-1] for mask in (prediction, reference)]
    straight = surface_dice(prediction[::-1], reference[::-1], tolerance=1.0, spacing=(2, 1, 1))
    assert surface_dice(*turned, tolerance=1.0, spacing=(2, 1, 1)) == straight


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    mask = box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    surface_dice(mask, mask, tolerance=1.0, spacing=(1, 1, 1))
    assert torch.get_num_threads() == before


def test_nothing_is_warned_of():
    mask = box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surface_dice(mask, mask, tolerance=1.0, spacing=(1, 1, 1))
        surface_dice(mask, np.zeros_like(mask), tolerance=1.0, spacing=(1, 1, 1))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="must agree"):
        surface_dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), tolerance=1.0, spacing=(1, 1, 1))
