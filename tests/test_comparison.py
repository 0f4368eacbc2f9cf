"""Intervals, the paired test and Holm's correction, against SciPy, NumPy and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megavoxel.reporting.statistics import holm, mean_interval, paired_p

SCORES = np.random.default_rng(3).beta(8, 2, 40)


def test_holm_against_a_case_worked_out_by_hand():
    # Sorted: 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert len(holm([])) == 0


def test_tests_that_were_not_made_do_not_count_in_holms_family():
    corrected = holm([np.nan, 0.01, np.nan, 0.04])
    assert corrected[[1, 3]] == pytest.approx([0.02, 0.04])
    assert np.isnan(corrected[[0, 2]]).all()
    assert np.isnan(holm([np.nan, np.nan])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(p_values):
    corrected, plain = holm(p_values), np.array(p_values)
    assert (corrected >= plain).all()
    assert (corrected <= np.minimum(plain * len(plain), 1) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(plain)]) >= 0).all()


def test_p_of_six_gains_is_two_of_the_64_ways_to_sign_them():
    assert paired_p([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == pytest.approx(2 / 64)
    # One loss of the smallest rank: two signings of 64 lie as far out, on either side.
    assert paired_p([-0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == pytest.approx(4 / 64)


def test_p_is_that_of_scipy_on_both_columns():
    other = np.random.default_rng(4).beta(8, 2, 40)
    assert paired_p(SCORES - other) == pytest.approx(stats.wilcoxon(SCORES, other).pvalue)
    assert paired_p([*(SCORES - other), np.nan]) == paired_p(SCORES - other)


@pytest.mark.parametrize("differences", [[], [0.0] * 20, [0.1] * 5, [0.1] * 5 + [0.0] * 9, [0.1] * 5 + [np.nan] * 9])
def test_fewer_than_six_differences_have_no_p(differences):
    assert np.isnan(paired_p(differences))


def test_differences_that_only_rounding_makes_are_none():
    values = np.linspace(0.1, 0.9, 12)
    noise = (values + 0.3) - 0.3 - values
    assert np.count_nonzero(noise) >= 6
    assert np.isnan(paired_p(noise))


def test_the_interval_is_that_of_resampled_means():
    low, high = mean_interval(SCORES)
    drawn = SCORES[np.random.default_rng(0).integers(0, 40, (100_000, 40))].mean(axis=1)
    expected = np.percentile(drawn, [2.5, 97.5])
    # 9999 resamples leave an end uncertain by some 0.03 of the mean's own standard error.
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * drawn.std())
    assert low < SCORES.mean() < high


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    samples = np.random.default_rng(1).normal(0.8, 0.1, (60, 40))
    covered = sum(low <= 0.8 <= high for low, high in map(mean_interval, samples))
    # 57 of 60 are expected; binomial chance below 51 is under 1 %.
    assert covered >= 51


def test_the_interval_is_the_same_each_time_and_whatever_the_global_state():
    first = mean_interval(SCORES)
    np.random.random(5)
    assert mean_interval(SCORES) == first
    assert mean_interval([*SCORES, np.nan]) == first


def test_intervals_of_hardly_any_cases():
    assert np.isnan(mean_interval([0.5])).all()
    assert np.isnan(mean_interval([])).all()
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_an_interval_of_groups_draws_all_values_of_a_group_together():
    values = np.random.default_rng(0).normal(size=30)
    twice, groups = np.repeat(values, 2), np.repeat(np.arange(30), 2)
    assert mean_interval(twice, groups) == pytest.approx(mean_interval(values))
    alone = mean_interval(twice)
    assert alone[1] - alone[0] < 0.9 * (mean_interval(twice, groups)[1] - mean_interval(twice, groups)[0])
    assert np.isnan(mean_interval(values, np.zeros(30))).all()
