"""Claims of papers: each compares two published rows and two settings that exist; what they measure, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from megavoxel.config.study_file import load_study
from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import COLUMNS as OF_SCORES
from megavoxel.reporting.claims import (
    ABSENT,
    COLUMNS,
    OPPOSITE,
    SAME,
    WITHIN,
    Measures,
    change_with_interval,
    measured_claims,
    read_claims,
    repeats_of,
    seconds_by_case,
    show_claims,
    steadiness_of,
    verdict_of,
)


@pytest.fixture(scope="module")
def claims(repository) -> pd.DataFrame:
    return read_claims(repository / "config/claims.csv", repository / "config/published")


def test_every_claim_has_two_published_rows_or_says_that_no_number_is_published(claims):
    assert list(claims.columns) == [*COLUMNS, "published_change"]
    assert not claims.duplicated().any()
    silent = claims.loc[claims["published_change"].isna(), "claim"].tolist()
    assert silent == ["a larger batch learns more steadily (figure 1)"]


def test_published_changes_looked_up_by_hand(claims):
    found = claims.set_index(["claim", "row", "metric"])["published_change"]
    assert found["the largest patch is worse", "(64, 384, 384)", "NSD"] == pytest.approx(0.7731 - 0.8255)
    assert found["a larger batch is better", "16", "DSC"] == pytest.approx(0.0114)
    assert found["squeeze-and-excitation is better", "se-unet-128-whole", "DSC"] == pytest.approx(0.7952 - 0.7815)
    quick = "a large input takes less time (U-Net of 128 filters)"
    assert found[quick, "unet-128-whole", "seconds"] == pytest.approx(0.90 / 2.53 - 1)
    # The paper prints labels alone: (0.948 + 0.768) / 2 after (0.947 + 0.756) / 2.
    post = "post-concatenation is better than pre-concatenation"
    assert found[post, "cascade-post", "DSC"] == pytest.approx(0.0065)
    half = "a meU-net needs half the memory of a U-Net on the same patch"
    assert found[half, "meunet-240", "peak_gib"] == pytest.approx(13 / 30 - 1)
    few = "workers with data of their own are better than serial training, with few images"
    assert found[few, "densenet169-448-200pc-2w", "accuracy"] == pytest.approx(0.6160 - 0.5967)


def test_every_claim_is_measured_by_settings_of_a_study_or_by_none(claims, repository):
    for study, own in claims.groupby("study"):
        named = {*own["setting"], *own["reference"]}
        if not study:
            assert named == {""}
            continue
        found = load_study(repository / f"config/studies/{study}.yaml")
        models = [*(setting.name for setting in found.settings), *(one.name for one in getattr(found, "ensembles", ()))]
        assert [name for name in named if not repeats_of(name, models)] == [], study


def test_a_claim_about_a_row_without_a_number_is_refused(repository, tmp_path):
    line = "P,c,wang-2022-meunet-microct,,unet-160,unet-999,DSC,s,a,b"
    (tmp_path / "claims.csv").write_text("\n".join([",".join(COLUMNS), line]) + "\n")
    with pytest.raises(UserError, match=r"c: wang-2022-meunet-microct\.csv has no DSC of the row 'unet-999'"):
        read_claims(tmp_path / "claims.csv", repository / "config/published")


def scores(values: dict[str, list[float]], metric: str = "DSC", label: str = "gut") -> pd.DataFrame:
    """Values of settings, case by case."""
    rows = [
        (setting, "validation", "0", f"case{case}", label, metric, value)
        for setting, own in values.items()
        for case, value in enumerate(own)
    ]
    return pd.DataFrame(rows, columns=OF_SCORES)


PEAKS = {"a-seed1": 2.0, "a-seed2": 4.0, "b": 1.0}


def claim(published_change: float, metric: str = "DSC") -> pd.DataFrame:
    text = dict.fromkeys(COLUMNS, "x") | {"metric": metric, "setting": "b", "reference": "a"}
    return pd.DataFrame([text]).assign(published_change=published_change)


def test_a_change_is_that_of_means_over_cases_and_repeats():
    values = {"a-seed1": [0.5, 0.6, 0.7], "a-seed2": [0.3, 0.4, 0.5], "b": [0.7, 0.8, 0.9], "ab": [0, 0, 0]}
    found = measured_claims(claim(0.1), Measures(scores=scores(values))).iloc[0]
    assert (found["measured"], found["seeds"], found["cases"]) == (pytest.approx(0.3), 1, 3)
    # All cases change alike, and the mean of the two repeats is 0.4, 0.5 or 0.6 as they are drawn.
    assert (found["low"], found["high"]) == (pytest.approx(0.2), pytest.approx(0.4))
    assert found["verdict"] == SAME


def test_an_interval_is_about_as_wide_as_that_of_theory():
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, (1, 400)), random.normal(1, 1, (1, 400))
    measured, low, high = change_with_interval(first, second)
    expected = 1.96 * (second - first).std(ddof=1) / math.sqrt(400)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.05)
    assert measured == pytest.approx(float((second - first).mean()))


@pytest.mark.parametrize(
    ("published", "low", "high", "verdict"),
    [
        (0.1, 0.01, 0.2, SAME), (-0.1, -0.2, -0.01, SAME), (0.1, -0.2, -0.01, OPPOSITE), (0.1, -0.01, 0.2, WITHIN),
        (0.0, 0.1, 0.2, WITHIN), (math.nan, 0.1, 0.2, ABSENT), (0.1, math.nan, math.nan, ABSENT),
    ],
)  # fmt: skip
def test_verdicts(published, low, high, verdict):
    assert verdict_of(published, low, high) == verdict


def test_a_label_that_a_study_does_not_have_is_the_mean_over_its_labels():
    ends = {"gut": 0.5, "eye": 0.7}
    labels = [scores({"a": [0.2, 0.4], "b": [value, value]}, label=name) for name, value in ends.items()]
    found = [
        measured_claims(claim(0.1, f"DSC {name}"), Measures(scores=pd.concat(labels))).iloc[0]
        for name in ("eye", "hind_gut")
    ]
    assert [row["measured"] for row in found] == [pytest.approx(0.4), pytest.approx(0.3)]


def test_accuracy_counts_the_most_probable_class():
    rows = []
    for setting, right in (("a", [1, 0, 0, 1]), ("b", [1, 1, 1, 1])):
        for case, is_right in enumerate(right):
            for label, value in (("ill", 0.9 if is_right else 0.1), ("well", 0.1 if is_right else 0.9)):
                rows.append((setting, "test", "0", f"case{case}", label, "probability", value))
            rows.append((setting, "test", "0", f"case{case}", "ill", "truth", 1.0))
    found = measured_claims(claim(0.1, "accuracy"), Measures(scores=pd.DataFrame(rows, columns=OF_SCORES))).iloc[0]
    assert (found["measured"], found["cases"]) == (pytest.approx(0.5), 4)


def test_memory_is_a_share_and_what_is_absent_is_not_measured():
    none = scores({"a": [0.1, 0.2]})
    memory = measured_claims(claim(-0.5, "peak_gib"), Measures(scores=none, peaks=PEAKS)).iloc[0]
    assert (memory["measured"], memory["verdict"]) == (-0.75, SAME)
    absent = measured_claims(claim(0.1), Measures(scores=none))
    assert absent["verdict"].tolist() == [ABSENT]
    assert show_claims(absent)[["Published", "Compared", "Verdict"]].values.tolist() == [["+0.100", "b − a", ABSENT]]


def test_time_is_a_share_of_the_reference_case_by_case():
    timings = pd.DataFrame(
        [(name, "test", "0", case, "1", str(repeat), seconds * factor) for name, factor in (("a", 1.0), ("b", 0.5))
         for case, seconds in (("x", 2.0), ("y", 4.0)) for repeat in (1, 2)],
        columns=["setting", "split", "fold", "case", "window", "repeat", "seconds"],
    )  # fmt: skip
    measures = Measures(scores=scores({}), seconds=seconds_by_case(timings))
    found = measured_claims(claim(-0.8, "seconds"), measures).iloc[0]
    assert (found["measured"], found["low"], found["high"], found["cases"]) == (-0.5, -0.5, -0.5, 2)
    assert found["verdict"] == SAME


def test_steadiness_is_the_deviation_of_the_last_quarter_of_epochs():
    history = pd.DataFrame({"pseudo_dice": [0.0, 0.9, 0.1, 0.5, 0.7, 0.2, 0.4, 0.6]})
    assert steadiness_of(history) == pytest.approx(0.2 / math.sqrt(2))


def test_how_steady_runs_are_is_compared_over_repeats_and_folds_with_the_direction_of_a_figure():
    line = claim(math.nan, "SD of pseudo-Dice over the last epochs").assign(published="lower")
    steadiness = {"a": [0.3, 0.3], "b-seed1": [0.1, math.nan], "b-seed2": [0.2]}
    found = measured_claims(line, Measures(scores=scores({}), steadiness=steadiness)).iloc[0]
    assert (found["measured"], found["seeds"], found["cases"]) == (pytest.approx(-0.15), 2, 0)
    assert found["verdict"] == SAME
    alone = measured_claims(line, Measures(scores=scores({}), steadiness={"a": [0.3], "b": [0.1]})).iloc[0]
    assert alone["verdict"] == ABSENT
