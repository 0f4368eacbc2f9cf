"""The ranking under bootstrap and scores of subgroups: shares that are known, and what is said of few cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fake_study import make_study, report_study
from megavoxel.config.dataset import Dataset, SubgroupTable
from megavoxel.config.source import Source
from megavoxel.datasets.cases import Case, load_cases, save_cases
from megavoxel.datasets.groups import with_subgroups
from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS
from megavoxel.reporting.ranking import few_cases, ranking_table
from megavoxel.reporting.subgroups import subgroup_table
from megavoxel.reporting.tables import show_ranking, show_subgroups

CLOSE = 0.02
"""More than four standard errors of a share of 9999 samples."""


def stored(models: dict[str, list[float]], metric: str = "dsc", groups: dict | None = None, subgroups=None):
    """A study with a metric of one label of each validation case, a number per case by model."""
    rows = [
        (model, "validation", "0", f"case_{number}", "liver", METRICS[metric].name, value)
        for model, values in models.items()
        for number, value in enumerate(values)
    ]
    return SimpleNamespace(
        scores=pd.DataFrame(rows, columns=["setting", "split", "fold", "case", "label", "metric", "value"]),
        metrics=(METRICS[metric],),
        labels=("liver",),
        splits=("validation",),
        groups=groups or {},
        subgroups=subgroups or {},
        definition=SimpleNamespace(models=tuple(models), ensembles={}),
    )


def test_shares_of_ranks_and_tau_are_those_of_the_samples_that_are_possible():
    # Of the samples of two cases, (0, 0) and twice (0, 1) have "up" first, (1, 1) has "down" first: 3 of 4.
    table = ranking_table(stored({"down": [0.5, 0.6], "up": [0.7, 0.5]})).set_index("model")
    assert list(table.index) == ["up", "down"]
    assert table.loc["up", "rank_1"] == pytest.approx(0.75, abs=CLOSE)
    assert table.loc["down", "rank_1"] == pytest.approx(0.25, abs=CLOSE)
    assert table.loc["up", "mean_rank"] == pytest.approx(1.25, abs=CLOSE)
    assert table.loc["up", ["rank_low", "rank_high", "tau_low", "tau_high"]].tolist() == [1, 2, -1, 1]
    assert table["tau"].tolist() == [pytest.approx(0.5, abs=2 * CLOSE)] * 2


def test_a_model_that_is_better_in_every_case_is_first_in_every_sample():
    worse = np.linspace(0.3, 0.6, 8)
    table = ranking_table(stored({"worse": list(worse), "better": list(worse + 0.1)})).set_index("model")
    kinds = ["rank", "rank_1", "rank_2", "verdict"]
    assert table.loc["better", kinds].tolist() == [1, 1.0, 0.0, "best"]
    assert table.loc["worse", kinds].tolist() == [2, 0.0, 1.0, "behind"]
    assert table["tau"].tolist() == [pytest.approx(1.0)] * 2
    lower = ranking_table(stored({"better": list(worse), "worse": list(worse + 0.1)}, "hd95")).set_index("model")
    assert lower["rank"].to_dict() == {"better": 1, "worse": 2}


def test_equal_models_share_the_better_rank():
    values = [0.5, 0.6, 0.7]
    table = ranking_table(stored({"one": values, "other": values, "third": [0.1, 0.1, 0.1]})).set_index("model")
    assert table["rank_1"].to_dict() == {"one": 1.0, "other": 1.0, "third": 0.0}
    assert table.loc["third", "rank_3"] == 1.0
    assert table.loc["other", "verdict"] == "cannot be told apart"


def test_groups_are_drawn_whole():
    groups = {"case_0": "p", "case_1": "p", "case_2": "q", "case_3": "q"}
    models = {"down": [0.5, 0.5, 0.6, 0.6], "up": [0.7, 0.7, 0.5, 0.5]}
    table = ranking_table(stored(models, groups=groups)).set_index("model")
    assert table.loc["up", "rank_1"] == pytest.approx(0.75, abs=CLOSE)
    assert few_cases(stored(models, groups=groups)) == {"validation": 2}


def test_one_model_or_a_metric_without_direction_has_no_ranking():
    assert ranking_table(stored({"one": [0.5, 0.6], "other": [0.5, 0.7]}, "volume")).empty
    single = ranking_table(stored({"one": [0.5, 0.6]}))
    assert single.empty
    assert "Fewer than two models" in show_ranking(single).iloc[0, 0]


def test_below_fifty_cases_there_are_few():
    assert few_cases(stored({"one": [0.5] * 49})) == {"validation": 49}
    assert few_cases(stored({"one": [0.5] * 50})) == {}


def test_the_shown_ranking_has_percentages():
    shown = show_ranking(ranking_table(stored({"one": [0.5, 0.6, 0.7], "other": [0.4, 0.5, 0.6]})))
    assert shown["Shares of ranks (%)"].tolist() == ["1: 100", "2: 100"]
    assert shown["Rank 95 %"].tolist() == ["1", "2"]
    assert shown["Tau [95 %]"].tolist() == ["1.000 [1.000, 1.000]"] * 2


def test_scores_of_subgroups_are_means_over_their_cases():
    sites = {"case_0": "Aachen", "case_1": "Aachen", "case_3": "Bonn"}
    study = stored({"one": [0.5, 0.7, 0.1, 0.9]}, subgroups={"site": sites})
    table = subgroup_table(study).set_index(["column", "value"])
    assert table.loc[("site", "Aachen"), ["cases", "dsc_mean"]].tolist() == [2, pytest.approx(0.6)]
    assert table.loc[("site", "Bonn"), ["cases", "dsc_mean"]].tolist() == [1, 0.9]
    assert np.isnan(table.loc[("site", "Bonn"), "dsc_low"])
    assert show_subgroups(subgroup_table(study))["Value"].tolist() == ["Aachen", "Bonn"]
    assert "no table of subgroups" in show_subgroups(subgroup_table(stored({"one": [0.5]}))).iloc[0, 0]


def cases_of(table: str, columns: tuple[str, ...]) -> list[Case]:
    dataset = Dataset(name="x", source=Source(folder="."), subgroups=SubgroupTable(table=table, columns=columns))
    return with_subgroups([Case(id=name, images=(f"{name}.nii.gz",)) for name in ("a", "b", "c")], dataset)


def test_values_come_from_the_columns_of_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("case,site,sex\na,Aachen,F\nb,,M\nz,Bonn,M\n")
    assert [case.subgroups for case in cases_of("t.csv", ("site", "sex"))] == [
        {"site": "Aachen", "sex": "F"},
        {"sex": "M"},
        {},
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("case,site\na,1\na,2\n", "t.csv has the case 'a' in '1' and in '2'"),
        ("case,place\na,1\n", "t.csv has no column 'site'; it has: case, place"),
        ("case,site\nz,1\n", "t.csv has no value of 'site' for any case"),
    ],
)
def test_tables_that_say_nothing_of_the_cases_are_refused(tmp_path, monkeypatch, table, message):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(table)
    with pytest.raises(UserError, match=f"dataset x: subgroups.table: {message}"):
        cases_of("t.csv", ("site",))


@pytest.mark.slow
def test_the_page_has_the_ranking_the_subgroups_and_the_warning(tmp_path, capsys):
    fake = make_study(tmp_path)
    cases, sites = load_cases(fake.cases), {"case_0": "Aachen", "case_1": "Aachen", "case_2": "Bonn", "case_4": "Bonn"}
    own = [replace(case, subgroups={"site": sites[case.id]} if case.id in sites else {}) for case in cases.cases]
    save_cases(fake.cases, replace(cases, cases=tuple(own)))
    assert "subgroups" not in json.loads(fake.cases.read_text())["cases"][3]
    assert report_study(fake) == 0
    assert "few cases: 4 cases in validation; below 50" in capsys.readouterr().out
    page = (fake.results / "report/index.html").read_text()
    assert '<h2 id="ranking-heading">Ranking</h2>' in page
    assert "<strong>Few cases:</strong> 4 cases in validation" in page
    assert '<h2 id="subgroups-heading">Subgroups</h2>' in page
    table = pd.read_csv(fake.results / "report/tables/subgroups.csv").set_index(["value", "split", "model"])
    assert table.loc[("Aachen", "validation", "small"), "cases"] == 2
    assert table.loc[("Bonn", "test", "small"), "cases"] == 1
