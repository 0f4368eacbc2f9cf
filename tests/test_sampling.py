"""Roulette sampling on a case of four windows per axis, one of which has the foreground."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import properties, store_case, tiny_plan
from megavoxel.preprocessing.store import Box, StoredCase, open_case, save_case
from megavoxel.training import patches
from megavoxel.training.patches import (
    TRAINING,
    PatchDataset,
    draw_start,
    foreground_share,
    foreground_start,
    is_on_foreground,
    roulette_start,
)
from megavoxel.volumes.grid import window_starts

PATCH = (4, 4, 4)
STARTS = [0, 2, 4]
"""Of patches of 4 in 8 voxels, half overlapping."""
CORNER = (4, 4, 4)
"""The only one of 27 windows that has foreground: the voxel in the far corner."""


def case_with_a_corner(folder: Path) -> StoredCase:
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[7, 7, 7] = 2
    image = np.zeros((1, 8, 8, 8), dtype=np.float32)
    save_case(folder, properties("corner", (8, 8, 8)), image, labels, {2: np.argwhere(labels)}, PATCH)
    return open_case(folder, "corner")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> StoredCase:
    return case_with_a_corner(tmp_path_factory.mktemp("cases"))


def starts_of(case: StoredCase, count: int, *, threshold: float, acceptance: float) -> list[tuple[int, ...]]:
    random = np.random.default_rng(5)
    return [roulette_start(case, PATCH, threshold, acceptance, random) for _ in range(count)]


def test_the_share_counts_all_voxels_of_the_patch(case):
    assert foreground_share(case, Box(start=CORNER, shape=PATCH)) == 1 / 64
    assert foreground_share(case, Box(start=(2, 2, 2), shape=PATCH)) == 0
    assert foreground_share(case, Box(start=(7, 7, 7), shape=(2, 2, 2))) == 1 / 8, "what lies outside is background"


@pytest.mark.slow
@pytest.mark.parametrize("acceptance", [0.1, 0.5])
def test_windows_come_as_often_as_they_are_accepted(case, acceptance):
    """One window of 27 is always accepted, 26 with `acceptance`: it has 1 of 1 + 26 acceptance shares."""
    count = 1500
    found = starts_of(case, count, threshold=1 / 64, acceptance=acceptance).count(CORNER) / count
    expected = 1 / (1 + 26 * acceptance)
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5)


def test_without_acceptance_only_windows_with_enough_foreground_come(case, monkeypatch):
    monkeypatch.setattr(patches, "MOST_DRAWS", 10_000)
    assert set(starts_of(case, 5, threshold=1 / 64, acceptance=0.0)) == {CORNER}


@pytest.mark.parametrize(("threshold", "acceptance"), [(0.0, 0.01), (1.0, 1.0), (1 / 64, 0.2)])
def test_every_window_of_the_grid_is_reached_and_no_other(case, threshold, acceptance):
    assert window_starts(8, 4, 0.5) == STARTS
    found = set(starts_of(case, 800, threshold=threshold, acceptance=acceptance))
    assert found == set(itertools.product(STARTS, repeat=3))


def test_a_case_that_has_nothing_to_accept_gives_its_last_draw(case, monkeypatch):
    """A share above 1 does not exist: every draw is refused."""
    shares = []
    monkeypatch.setattr(patches, "foreground_share", lambda _, box: shares.append(box.start) or 0.0)
    start = roulette_start(case, PATCH, 0.5, 0.0, np.random.default_rng(0))
    assert len(shares) == patches.MOST_DRAWS
    assert start == shares[-1]


def test_a_patch_larger_than_the_case_is_centred(case):
    assert roulette_start(case, (12, 4, 9), 0.0, 1.0, np.random.default_rng(0))[::2] == (-2, 0)


def test_the_key_says_how_patches_are_drawn(case):
    def drawn(**training) -> tuple[int, ...]:
        return draw_start(case, tiny_plan(patch=PATCH, training=training), 0, np.random.default_rng(3))

    expected = roulette_start(case, PATCH, 0.5, 0.5, np.random.default_rng(3))
    assert drawn(sampling="roulette", roulette_threshold=0.5, roulette_acceptance=0.5) == expected
    assert drawn(foreground_fraction=1.0) == foreground_start(case, PATCH, True, np.random.default_rng(3)) == CORNER
    assert drawn(foreground_fraction=0.0) == foreground_start(case, PATCH, False, np.random.default_rng(3)) != CORNER


@pytest.mark.parametrize(
    ("batch", "fraction", "last"),
    [(2, 0.33, 1), (3, 0.33, 1), (4, 0.33, 1), (8, 0.33, 3), (2, 0.0, 0), (4, 0.5, 2), (5, 1.0, 5)],
)
def test_the_last_patches_of_each_batch_are_centred_on_foreground(batch, fraction, last):
    random = np.random.default_rng(0)
    drawn = [is_on_foreground(number, batch, fraction, random) for number in range(3 * batch)]
    assert drawn == ([False] * (batch - last) + [True] * last) * 3


def test_which_patches_are_centred_on_foreground_is_nnunets_rule():
    loading = pytest.importorskip("nnunetv2.training.dataloading.data_loader", reason="the peer is not installed")
    for batch, fraction in itertools.product(range(2, 40), [0.0, 0.33, 0.5, 0.67, 1.0]):
        theirs = SimpleNamespace(batch_size=batch, oversample_foreground_percent=fraction)
        expected = [loading.nnUNetDataLoader._oversample_last_XX_percent(theirs, position) for position in range(batch)]
        assert [is_on_foreground(7 * batch + position, batch, fraction, None) for position in range(batch)] == expected


def test_a_sample_is_a_function_of_its_number(tmp_path):
    for number in range(2):
        store_case(tmp_path, f"case{number}", seed=number)
    plan = tiny_plan(training={"sampling": "roulette", "roulette_threshold": 0.05})
    make = lambda: PatchDataset(plan, tmp_path, ("case0", "case1"), fold=0, stream=TRAINING, count=8)  # noqa: E731
    forwards, backwards = make(), make()
    first = [forwards[number] for number in range(8)]
    for number in reversed(range(8)):
        for ours, expected in zip(backwards[number], first[number], strict=True):
            assert ours.equal(expected)
