"""Labels as solid bodies: on which side they lie, their proportions in mm, and what hides what."""

from __future__ import annotations

import numpy as np
import pytest

from megavoxel.reporting import solid
from megavoxel.reporting.solid import box_of, evenly_spaced, line_of_sight, picture, solid_figure
from megavoxel.reporting.style import figure_style

COLOURS = np.array([(1, 1, 1), (1, 0, 0), (0, 0, 1)], dtype=float)
RED, BLUE = 0, 2


def middle(seen: np.ndarray, channel: int) -> tuple[float, float]:
    """Mean row and column of what has mostly one colour."""
    others = seen[..., [other for other in range(3) if other != channel]].max(axis=-1)
    rows, columns = np.nonzero(seen[..., channel] > others + 0.1)
    return float(rows.mean()), float(columns.mean())


@pytest.fixture
def straight(monkeypatch):
    """The eye right in front of the patient."""
    monkeypatch.setattr(solid, "YAW", 0.0)
    monkeypatch.setattr(solid, "PITCH", 0.0)


def test_directions_are_at_right_angles_and_the_eye_is_in_front_above_and_to_the_left():
    axes = line_of_sight()
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    away = axes[0]
    # Of (up, to the front, to the right): it looks down, to the back and to the right.
    assert away[0] < 0
    assert away[1] < 0
    assert away[2] > 0


def test_the_patients_right_is_on_the_left_and_the_head_is_up(straight):
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    labels[8:11, 4:8, 8:11] = 1  # up, to the right
    labels[1:4, 4:8, 1:4] = 2  # down, to the left
    seen = picture(labels, (1.0, 1.0, 1.0), COLOURS)
    (row, column), (other_row, other_column) = middle(seen, RED), middle(seen, BLUE)
    assert row < other_row
    assert column < other_column


def test_what_lies_in_front_hides_what_lies_behind(straight):
    labels = np.zeros((8, 12, 8), dtype=np.uint8)
    labels[:, 9:12], labels[:, 0:3] = 1, 2  # the higher along y, the further to the front
    seen = picture(labels, (1.0, 1.0, 1.0), COLOURS)
    inner = seen[seen.shape[0] // 3 : -seen.shape[0] // 3, seen.shape[1] // 3 : -seen.shape[1] // 3]
    assert (inner[..., RED] > inner[..., BLUE]).all()


def test_a_label_within_another_shines_through(straight):
    labels = np.ones((24, 24, 24), dtype=np.uint8)
    labels[8:16, 8:16, 8:16] = 2
    seen = picture(labels, (1.0, 1.0, 1.0), COLOURS)
    rows, columns = seen.shape[:2]
    assert seen[rows // 2, columns // 2, BLUE] > 0.3
    assert seen[rows // 2, columns // 8, BLUE] < 0.1


def test_proportions_are_those_in_mm(straight):
    """Sections five times as thick as a voxel is wide: a cube of 40 mm has 8 of them."""
    labels = np.ones((8, 40, 40), dtype=np.uint8)
    assert evenly_spaced(labels, (5.0, 1.0, 1.0)).shape == (128, 128, 128)
    seen = picture(labels, (5.0, 1.0, 1.0), COLOURS)
    rows, columns = np.nonzero(seen[..., RED] > seen[..., BLUE] + 0.1)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)


def test_a_large_map_is_reduced_and_nothing_thin_is_lost():
    labels = np.zeros((300, 40, 512), dtype=np.uint8)
    labels[:, 20, 77] = 1
    reduced = evenly_spaced(labels, (1.0, 1.0, 1.0))
    assert max(reduced.shape) == 128
    assert reduced.any(axis=(1, 2)).all()


def test_the_same_maps_give_the_same_picture_in_one_frame():
    labels = np.zeros((10, 12, 14), dtype=np.uint8)
    labels[2:5, 3:6, 4:9] = 7
    other = np.roll(labels, 4, axis=2)
    assert box_of([labels, other]) == (slice(2, 5), slice(3, 6), slice(4, 13))
    with figure_style():
        drawn = [solid_figure({"Reference": labels, "a": other}, (2.0, 1.0, 1.0), {"spleen": 7}) for _ in range(2)]
    first, second = ([ax.images[0].get_array() for ax in figure.axes] for figure in drawn)
    assert first[0].shape == first[1].shape
    assert all(map(np.array_equal, first, second))
    assert [ax.get_title() for ax in drawn[0].axes] == ["Reference", "a"]


def test_values_that_are_no_labels_are_not_shown():
    labels = np.full((4, 4, 4), 9, dtype=np.uint8)
    with figure_style():
        assert not solid_figure({"Reference": labels}, (1.0, 1.0, 1.0), {"spleen": 7}).axes
