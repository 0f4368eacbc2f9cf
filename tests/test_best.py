"""The best setting or ensemble by cross-validation: numbers by hand, and what is said of each model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from megavoxel.csv_files import write_csv
from megavoxel.evaluation.metrics import METRICS
from megavoxel.reporting.best import best_table
from megavoxel.reporting.closing import best_words
from megavoxel.reporting.statistics import mean_interval
from megavoxel.reporting.tables import show_best

CASES = tuple("abcdefgh")
RANDOM = np.random.default_rng(3).uniform(0.5, 0.9, size=(8, 2)).round(3)


def stored(models: dict[str, np.ndarray], ensembles: dict | None = None, groups: dict | None = None, cases=CASES):
    """A study with DSC of two labels of each validation case, (cases, 2) by model."""
    rows = [
        (model, "validation", case, label, "DSC", value)
        for model, values in models.items()
        for case, own in zip(cases, values, strict=True)
        for label, value in zip(("liver", "spleen"), own, strict=True)
        if own[0] >= 0  # a case with a negative number was not validated
    ]
    return SimpleNamespace(
        scores=pd.DataFrame(rows, columns=["setting", "split", "case", "label", "metric", "value"]),
        metrics=(METRICS["nsd"], METRICS["dsc"]),
        labels=("liver", "spleen"),
        groups=groups or {},
        definition=SimpleNamespace(models=tuple(models), ensembles=ensembles or {}),
    )


def test_the_measure_is_the_mean_over_labels_of_the_means_over_cases():
    values = np.array([[0.9, 0.5], [0.7, np.nan], [0.8, np.nan], [0.6, 0.1]])
    (row,) = best_table(stored({"only": values}, cases="abcd")).to_dict("records")
    assert row["mean"] == pytest.approx(((0.9 + 0.7 + 0.8 + 0.6) / 4 + (0.5 + 0.1) / 2) / 2)
    assert (row["rank"], row["cases"], row["metric"], row["verdict"]) == (1, 4, "DSC", "best")


def test_each_model_is_told_from_the_best_one_or_is_not():
    shifted, swapped, touched, partly = RANDOM - 0.1, RANDOM.copy(), RANDOM.copy(), RANDOM.copy()
    swapped[::2] += 0.04
    swapped[1::2] -= 0.05
    touched[:2] -= 0.2
    partly[3] = -1
    models = {
        "behind": shifted,
        "chance": swapped,
        "two-cases": touched,
        "first": RANDOM,
        "fewer": partly,
        "same": RANDOM,
    }
    table = best_table(stored(models, ensembles={"same": ("first", "behind")}))
    assert dict(zip(table["model"], table["verdict"], strict=True)) == {
        "first": "best", "same": "cannot be told apart", "chance": "cannot be told apart",
        "two-cases": "too few cases differ", "behind": "behind", "fewer": "not compared: other cases",
    }  # fmt: skip
    assert list(table["model"]) == ["first", "same", "chance", "two-cases", "behind", "fewer"]
    rows = table.set_index("model")
    assert rows.loc["behind", ["difference", "difference_low", "difference_high"]].tolist() == pytest.approx([-0.1] * 3)
    assert rows.loc["chance", "difference"] == pytest.approx(-0.005)
    assert rows.loc["chance", "difference_low"] < 0 < rows.loc["chance", "difference_high"]
    assert rows.loc["same", "members"] == "first behind"
    assert list(table["rank"].dropna()) == [1, 2, 3, 4, 5]
    assert rows.loc["fewer", "cases"] == 7
    shown = show_best(table).set_index("Model")
    assert shown.loc["behind", "− best [95 %]"] == "−0.100 [−0.100, −0.100]"
    assert shown.loc["fewer"].tolist() == ["–", "–", "7", "–", "–", "not compared: other cases"]


def test_intervals_are_those_of_the_mean_where_all_labels_are_there():
    (row,) = best_table(stored({"only": RANDOM})).to_dict("records")
    # Both draw 9999 resamples, but other ones.
    assert (row["low"], row["high"]) == pytest.approx(mean_interval(RANDOM.mean(axis=1)), abs=0.003)


def test_scans_of_a_patient_are_drawn_together():
    single = best_table(stored({"only": RANDOM}))
    twice = [f"{case}{scan}" for case in CASES for scan in (1, 2)]
    grouped = stored({"only": RANDOM.repeat(2, axis=0)}, groups={case: case[0] for case in twice}, cases=twice)
    found = best_table(grouped)
    assert found.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx(
        single.loc[0, ["mean", "low", "high"]].tolist()
    )


def test_one_case_has_no_interval():
    table = best_table(stored({"a": RANDOM[:1], "b": RANDOM[:1] - 0.1}, cases="a"))
    assert table[["low", "high"]].isna().all(axis=None)
    assert list(table["verdict"]) == ["best", "too few cases differ"]


def test_a_run_ends_with_the_best_model_in_one_line(tmp_path):
    shifted, partly = RANDOM - 0.1, RANDOM.copy()
    partly[3] = -1
    table = best_table(stored({"a": RANDOM, "b": RANDOM, "c": shifted, "d": partly}))
    write_csv(tmp_path / "best.csv", table)
    mean = f"{RANDOM.mean():.3f}"
    assert best_words(tmp_path / "best.csv") == (
        f"best by cross-validation: a (DSC {mean} of 8 cases); cannot be told apart: b; behind: c; "
        "not compared: other cases: d"
    )
    write_csv(tmp_path / "best.csv", table[:1])
    assert best_words(tmp_path / "best.csv") == ""
