"""DSC against values counted by hand and against MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from megavoxel.evaluation import compared
from megavoxel.evaluation.compared import dice_per_label, label_counts


def test_values_counted_by_hand():
    prediction = np.array([[1, 1, 0, 2], [0, 2, 2, 2]])
    reference = np.array([[1, 0, 0, 2], [1, 1, 2, 0]])
    # label 1: 2 predicted, 3 in the reference, 1 in both; label 2: 4, 2, 2
    assert dice_per_label(prediction, reference, [1, 2]).tolist() == [2 * 1 / 5, 2 * 2 / 6]
    both, predicted, referred = label_counts(prediction, reference, [2, 1])
    assert (both.tolist(), predicted.tolist(), referred.tolist()) == ([2, 1], [4, 2], [2, 3])


def test_both_empty_is_not_a_number_and_one_empty_is_zero():
    prediction, reference = np.array([0, 1, 0]), np.array([0, 0, 2])
    dice = dice_per_label(prediction, reference, [1, 2, 3])
    assert dice[:2].tolist() == [0.0, 0.0]
    assert np.isnan(dice[2])


def test_values_that_are_not_asked_for_count_as_no_label():
    assert dice_per_label(np.array([1, 9, 9]), np.array([1, 1, 9]), [1]).tolist() == [2 / 3]


def test_labels_above_255_and_in_any_order():
    prediction, reference = np.array([300, 300, 7], np.uint16), np.array([300, 7, 7], np.uint16)
    assert dice_per_label(prediction, reference, [300, 7]).tolist() == [2 / 3, 2 / 3]


def test_counts_do_not_depend_on_how_many_voxels_are_counted_at_once(monkeypatch):
    generator = np.random.default_rng(0)
    prediction, reference = generator.integers(0, 4, (2, 5, 6, 7), dtype=np.uint8)
    whole = dice_per_label(prediction, reference, [1, 2, 3])
    monkeypatch.setattr(compared, "VOXELS_AT_ONCE", 13)
    assert dice_per_label(prediction, reference, [1, 2, 3]).tolist() == whole.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_monai(seed):
    generator = np.random.default_rng(seed)
    prediction, reference = generator.integers(0, 5, (2, 6, 7, 8), dtype=np.uint8)
    labels = [1, 2, 3, 4]
    one_hot = [
        torch.from_numpy(np.stack([array == label for label in labels]))[None] for array in (prediction, reference)
    ]
    expected = compute_dice(*one_hot, include_background=True)[0].numpy()
    np.testing.assert_allclose(dice_per_label(prediction, reference, labels), expected, atol=1e-6)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        dice_per_label(np.zeros((2, 3), int), np.zeros((3, 2), int), [1])
