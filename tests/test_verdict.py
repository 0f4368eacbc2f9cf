"""The first paragraph of the page, odd runs and CLAIM: what is said of numbers that were worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fake_study import make_plan
from megavoxel.reporting.cells import evenly
from megavoxel.reporting.claim import claim_table, items_left
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.odd import odd_runs
from megavoxel.reporting.provenance import results_date, results_versions
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.verdict import deciding_split, segmentation_verdict
from megavoxel.reporting.words import duration, gibibytes, joined, numeric, some

SCORES = {
    "best": [0.90, 0.80, 0.85, 0.95, 0.70, 0.75],
    # Worse by 0.1 in every case: any resample of the differences has the mean 0.1.
    "worse": [0.80, 0.70, 0.75, 0.85, 0.60, 0.65],
    # Better and worse by turns.
    "alike": [0.95, 0.74, 0.90, 0.89, 0.75, 0.69],
    # Differs in three cases only.
    "hardly": [0.90, 0.80, 0.85, 0.90, 0.65, 0.70],
    "same": [0.90, 0.80, 0.85, 0.95, 0.70, 0.75],
}
HISTORY = pd.DataFrame({"seconds": [1800.0, 1800.0]})


def stored_of(
    scores: dict[str, list[float]], *, metric: str = "DSC", splits: tuple[str, ...] = ("validation",), **changes
) -> Stored:
    """A study with a setting per list of scores, one per case; of two folds, by turns."""
    rows = [
        (name, split, str(number % 2) if split == "validation" else "all", f"{split}_{number}", "gut", metric, value)
        for split in splits
        for name, values in scores.items()
        for number, value in enumerate(values)
    ]
    settings = tuple(scores)
    values = {
        "results": Path("results"),
        "definition": Definition(
            study="s", dataset="d", settings=settings, folds=dict.fromkeys(settings, (0, 1)), baseline=None
        ),
        "cases": None,
        "scores": pd.DataFrame(rows, columns=["setting", "split", "fold", "case", "label", "metric", "value"]),
        "plans": {name: make_plan(name, patch=(8, 8, 8)) for name in settings},
        "histories": {name: {0: HISTORY, 1: HISTORY} for name in settings},
        "manifests": {name: {} for name in settings},
        "forecast": pd.DataFrame(),
    }
    return Stored(**(values | changes))


def test_models_are_told_apart_where_the_interval_excludes_zero_and_six_cases_differ():
    verdict = segmentation_verdict(stored_of(SCORES))
    assert (verdict.best, verdict.split, verdict.cases) == ("best", "validation", 6)
    assert verdict.value == pytest.approx(4.95 / 6)
    assert [gap.name for gap in verdict.apart] == ["worse"]
    (worse,) = verdict.apart
    assert (worse.difference, worse.low, worse.high) == pytest.approx((0.1, 0.1, 0.1))
    assert {gap.name for gap in verdict.together} == {"alike", "same"}
    assert [(gap.name, gap.changed) for gap in verdict.undecided] == [("hardly", 3)]
    assert verdict.equals == ["same"]
    # Without a baseline, the second best is what the difference is told to.
    assert verdict.against.name == "same"


def test_the_difference_is_told_to_the_baseline_unless_that_is_best():
    for baseline, against in (("worse", "worse"), ("best", "same")):
        stored = stored_of(SCORES)
        definition = Definition(**{**vars(stored.definition), "baseline": baseline})
        assert segmentation_verdict(stored_of(SCORES, definition=definition)).against.name == against


def test_of_a_distance_the_lowest_is_best():
    verdict = segmentation_verdict(stored_of({"near": [1.0, 2.0], "far": [3.0, 4.0]}, metric="HD95"))
    assert (verdict.best, verdict.value) == ("near", 1.5)
    assert verdict.gaps[0].difference == pytest.approx(-2.0)
    assert [worst.name for worst in verdict.worst] == ["validation_1", "validation_0"]


def test_a_test_split_that_is_too_small_does_not_decide():
    assert deciding_split(("validation", "test"), {"validation": 12, "test": 4}) == "validation"
    assert deciding_split(("validation", "test"), {"validation": 12, "test": 6}) == "test"
    assert deciding_split(("validation", "test"), {"validation": 4, "test": 1}) == "validation"
    assert deciding_split(("validation", "test"), {"validation": 1, "test": 1}) == "test"
    verdict = segmentation_verdict(stored_of(SCORES, splits=("validation", "test")))
    assert verdict.split == "test"
    assert [(other.split, other.best) for other in verdict.elsewhere] == [("validation", "best")]


def test_cost_counts_all_members_and_the_cheapest_of_those_that_are_alike_is_named():
    stored = stored_of({"large": [0.9] * 6, "small": [0.9] * 6})
    stored.histories["small"] = {0: HISTORY}
    verdict = segmentation_verdict(stored)
    assert (verdict.costs["large"].hours, verdict.costs["large"].runs) == (2.0, 2)
    assert verdict.cheapest == "small"
    assert verdict.costs["small"].gib != verdict.costs["small"].gib  # not recorded


def test_one_model_and_no_value_are_no_comparison():
    verdict = segmentation_verdict(stored_of({"only": [0.5, 0.7]}))
    assert (verdict.best, verdict.against, verdict.gaps, verdict.cheapest) == ("only", None, (), None)
    assert segmentation_verdict(stored_of({"only": [float("nan")]})) is None


def test_runs_that_contradict_their_plan_forecast_or_folds_are_odd():
    stored = stored_of({"a": [0.9, 0.3, 0.9, 0.3], "b": [0.9, 0.8, 0.9, 0.8]})
    plan = stored.plans["a"].hash
    stored.manifests["a"] = {
        # Four times the forecast, but by what convolutions and libraries take.
        0: {"plan_hash": plan, "peak_memory": {"gib": 0.6, "forecast_gib": 0.15}},
        1: {"plan_hash": "other", "peak_memory": {"gib": 0.6, "forecast_gib": 135.0}},
    }
    lines = odd_runs(stored)
    assert [line.partition(":")[0] for line in lines] == ["a, fold 1", "a, fold 1", "a, fold 1"]
    assert f"trained with plan other, but plan.json is {plan}" in lines[0]
    assert "was 0.60 GiB, and its forecast 135.00 GiB" in lines[1]
    assert "mean DSC 0.300 of its validation cases, where the other folds of the setting have 0.900" in lines[2]


def test_date_and_version_are_those_of_the_runs():
    stored = stored_of({"a": [0.9]})
    stored.manifests["a"] = {
        0: {"written": "2026-03-01", "code": {"version": "0.1.0"}},
        1: {"written": "2026-03-02", "code": {"version": "0.1.0"}},
    }
    assert results_date(stored) == "2026-03-02"
    assert results_versions(stored) == ["0.1.0"]
    assert results_date(stored_of({"a": [0.9]})) == ""


def test_claim_says_what_the_files_say_and_which_items_are_left():
    stored = stored_of({"a": [0.9, 0.8], "b": [0.9, 0.7]})
    stored.manifests["a"] = {0: {"seed": 7, "code": {"version": "0.1.0"}, "versions": {"torch": "2.13.0"}}}
    finding = {"severity": "excluded", "case": "c9", "message": "left out"}
    table = claim_table(stored, [finding]).set_index("Item")["This study"]
    assert table[8] == "left out by the data check or the dataset file: 1 (c9)"
    assert table[23] == "megavoxel 0.1.0, torch 2.13.0"
    assert table[25] == "dice_ce, sgd, learning rate 0.01, batch 2, 3 epochs of 250 steps, schedule poly"
    assert table[33] == "2 scored in validation"
    left = items_left(table.reset_index())
    assert left[0] == "1–6"
    assert "42" in left[-1]


def test_numbers_of_a_column_have_one_number_of_decimals():
    def written(values):
        return [*map(evenly(values), values)]

    assert written([0.0368, 0.5, float("nan"), 0.0]) == ["0.037", "0.500", "–", "0.000"]
    assert written([1.5, 4.25]) == ["1.50", "4.25"]
    assert written([135.2, 12.0]) == ["135", "12"]
    assert written([float("nan")]) == ["–"]


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.0001, "0.4 s"),
        (0.01, "36 s"),
        (0.99999, "1 h 00 min"),
        (0.2, "12 min"),
        (3.0833, "3 h 05 min"),
        (1.9999, "2 h 00 min"),
        (240, "240 h"),
    ],
)
def test_hours_are_said_as_people_say_them(hours, words):
    assert duration(hours) == words


def test_words_of_sentences():
    assert (gibibytes(0.0368), gibibytes(11.04)) == ("38 MiB", "11 GiB")
    assert some(["a", "b", "c", "d"]) == "a, b, c and d"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 others"
    assert joined(["a"]) == "a"
    assert joined(["a", "b", "c"]) == "a, b and c"
    frame = pd.DataFrame({"Model": ["1"], "DSC": ["0.9 ± 0.1"], "Patch": ["8 × 8"], "p": ["< 0.001"], "none": ["–"]})
    assert numeric(frame) == [False, True, False, True, True]
