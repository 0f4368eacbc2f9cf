"""Sweeps: their keys, their numbers against SciPy and values worked out by hand, their curves, and one slice of all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fake_study import FakeStudy, make_plan
from megavoxel.cli import main
from megavoxel.config.records import to_plain
from megavoxel.config.study import Sweep
from megavoxel.config.study_file import parse_study
from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.tidy import COLUMNS
from megavoxel.planning.plan import save_plan
from megavoxel.reporting.definition import Definition, load_definition
from megavoxel.reporting.examples import (
    comparison,
    median_case,
    shown_models,
    slice_with_most_labels,
    write_comparisons,
)
from megavoxel.reporting.figures import point_curves, sweep_figure
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.published import published_lines, read_published
from megavoxel.reporting.statistics import case_means, holm, mean_interval, sweep_table

CASES = [f"case_{number}" for number in range(8)]
SEEDS = {"p1-s1": 0.70, "p1-s2": 0.74, "p2-s1": 0.80, "p2-s2": 0.80, "p3-s1": 0.71}
"""Mean DSC over cases and labels that each setting is given."""
OFFSETS = {"p1-s1": 0.0, "p1-s2": 0.0, "p2-s1": 0.01, "p2-s2": 0.01, "p3-s1": -0.02}
POINTS = {"(8, 8, 8)": ["p1-s1", "p1-s2"], "(8, 16, 16)": ["p2-s1", "p2-s2"], "wide": ["p3-s1"]}
SWEEP = {"name": "patch", "title": "Table 1: patch size", "points": POINTS}


def dsc(setting: str, case: int, label: str) -> float:
    """Spread over cases and labels so that the setting's mean stays what `SEEDS` says."""
    spread = {"liver": 0.03, "spleen": -0.03}[label]
    return SEEDS[setting] + OFFSETS[setting] * (case - 3.5) + 0.005 * (2 * case - 7) / 7 + spread


def write_study(folder: Path, *, sweeps: list[dict], leave_out: tuple[str, str] | None = None) -> dict:
    """Scores, plans and histories of the settings of `SEEDS`; returns the definition."""
    rows = [
        (setting, "validation", "0", name, label, metric, dsc(setting, number, label) - (0.1 if metric == "NSD" else 0))
        for setting in SEEDS
        for number, name in enumerate(CASES)
        for label in ("liver", "spleen")
        for metric in ("DSC", "NSD")
        if (setting, name) != leave_out
    ]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "scores.csv", index=False)
    for number, setting in enumerate(SEEDS):
        (folder / setting / "fold-0").mkdir(parents=True)
        save_plan(folder / setting / "plan.json", make_plan(setting, patch=(8, 8, 8)))
        history = pd.DataFrame({"epoch": [1, 2, 3], "training_loss": [1.0, 0.5, 0.1 * number]})
        history = history.assign(validation_loss=1.0, pseudo_dice=[0.1, 0.4, 0.8], seconds=60.0, peak_memory_mib=512.0)
        history.to_csv(folder / setting / "fold-0/history.csv", index=False)
    return {
        "study": "fake",
        "dataset": "none",
        "settings": list(SEEDS),
        "ensembles": {},
        "folds": {setting: [0] for setting in SEEDS},
        "cases": "absent.json",
        "sweeps": sweeps,
    }


def report(folder: Path, definition: dict, *options: str) -> pd.DataFrame:
    """The table of sweeps after `megavoxel report --tables-only`."""
    words = ["--results", str(folder), "--definition", json.dumps(definition), "--tables-only", *options]
    assert main(["report", *words]) == 0
    return pd.read_csv(folder / "report/tables/sweeps.csv")


@pytest.fixture
def stored(tmp_path):
    definition = write_study(tmp_path, sweeps=[SWEEP])
    return load_stored(tmp_path, json.dumps(definition), need_cases=False)


STUDY = {
    "study": "s",
    "dataset": "d",
    "settings": {"a": None, "b": None},
    "ensembles": {"ab": {"members": ["a", "b"]}},
}


def test_a_point_is_a_name_or_a_list_of_repeats():
    values = {"patch": {"title": "Patch", "points": {"(1, 2)": ["a", "b"], "2": "ab"}}}
    study = parse_study({**STUDY, "sweeps": values}, source="my.yaml")
    assert study.sweeps == (Sweep(name="patch", title="Patch", points={"(1, 2)": ("a", "b"), "2": ("ab",)}),)
    assert list(study.sweeps[0].points) == ["(1, 2)", "2"]
    assert parse_study(STUDY, source="my.yaml").sweeps == ()


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (
            {"s": {"title": "t", "points": {"1": "a", "2": "c"}}},
            "sweeps.s.points.2: there is no setting 'c'; allowed: ",
        ),
        ({"s": {"title": "t", "points": {1: "a", 2: "b"}}}, "sweeps.s.points: the key 1 is no text; put it in quotes"),
        ({"s": {"title": "t", "points": {"1": "a"}}}, "sweeps.s.points: .*two points or more"),
        ({"s": {"title": "t", "points": {"1": "a", "2": []}}}, "sweeps.s.points.2: .*non-empty"),
        ({"s/t": {"title": "t", "points": {"1": "a", "2": "b"}}}, "'s/t' is not allowed; allowed: letters"),
        ({name: {"title": "t", "points": {"1": "a", "2": "b"}} for name in "st"}, "s.title: another sweep has this"),
    ],
)
def test_wrong_sweeps_are_refused_by_name(sweeps, message):
    with pytest.raises(UserError, match=message):
        parse_study({**STUDY, "sweeps": sweeps}, source="my.yaml")


def test_the_numbers_of_a_sweep(tmp_path):
    table = report(tmp_path, write_study(tmp_path, sweeps=[SWEEP])).set_index(["metric", "point"])
    assert list(table.loc["DSC"].index) == list(POINTS)
    first, second, third = (table.loc[("DSC", point)] for point in POINTS)
    assert first["mean"] == pytest.approx((0.70 + 0.74) / 2)
    assert second["mean"] == pytest.approx(0.80)
    assert table.loc[("NSD", "wide"), "mean"] == pytest.approx(0.71 - 0.1)
    assert (first["repeats"], first["cases"], third["repeats"], third["models"]) == (2, 8, 1, "p3-s1")
    # Two repeats with means 0.70 and 0.74, two with the same mean, one alone.
    assert first["repeat_sd"] == pytest.approx(0.04 / 2**0.5)
    assert second["repeat_sd"] == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(third["repeat_sd"])
    assert first[["difference", "difference_low", "p", "p_holm", "published"]].isna().all()
    # Differences by case: 0.08 + 0.01 (n - 3.5) and -0.01 - 0.02 (n - 3.5), n from 0 to 7.
    places = np.arange(8) - 3.5
    for point, changes in ((second, 0.08 + 0.01 * places), (third, -0.01 - 0.02 * places)):
        assert point["difference"] == pytest.approx(changes.mean())
        assert (point["difference_low"], point["difference_high"]) == pytest.approx(mean_interval(changes))
        assert point["p"] == pytest.approx(stats.wilcoxon(changes.round(12)).pvalue)
    # All eight cases gain: 2 of 256 signings.
    assert second["p"] == pytest.approx(2 / 256)


def test_holms_family_is_a_sweep_with_both_metrics(tmp_path):
    table = report(tmp_path, write_study(tmp_path, sweeps=[SWEEP, {**SWEEP, "name": "again", "title": "Again"}]))
    for _, part in table.groupby("sweep"):
        assert np.count_nonzero(part["p"].notna()) == 4
        np.testing.assert_allclose(part["p_holm"], holm(part["p"]))
    assert table["p_holm"].min() == pytest.approx(4 * 2 / 256)


def test_cases_that_a_repeat_lacks_are_left_out(stored):
    scores = stored.scores
    lacking = scores[~((scores["setting"] == "p1-s2") & (scores["case"] == "case_0"))]
    table = sweep_table(replace(stored, scores=lacking), read_published(None)).set_index(["metric", "point"])
    assert table.loc["DSC"]["cases"].tolist() == [7, 8, 8]
    # Without its lowest case the mean of the first point rises by a seventh of 0.005.
    assert table.loc[("DSC", "(8, 8, 8)"), "mean"] == pytest.approx(0.72 + 0.005 / 7)
    assert table.loc[("DSC", "wide"), "difference"] == pytest.approx(-0.01 - 0.02 * np.arange(1, 8).mean() + 0.07)


def test_few_cases_and_equal_scores_have_no_p(reported):
    table = pd.read_csv(reported.results / "report/tables/sweeps.csv")
    assert set(table["split"]) == {"validation", "test"}
    assert table["cases"].max() == 4
    assert table["p"].isna().all()
    assert table["p_holm"].isna().all()
    text = (reported.results / "report/index.html").read_text()
    assert "No p is given where fewer than six cases differ" in text
    assert "Table 1: patch size" in text


@pytest.mark.slow
def test_sweeps_are_written_the_same_each_time(tmp_path):
    definition = write_study(tmp_path, sweeps=[SWEEP])
    written = []
    for _ in range(2):
        report(tmp_path, definition)
        written.append({path: path.read_bytes() for path in (tmp_path / "report").rglob("*") if path.is_file()})
        np.random.random(3)
    assert written[0] == written[1]
    assert tmp_path / "report/figures/sweep-patch.svg" in written[0]


def test_a_study_without_sweeps_says_so(tmp_path):
    definition = write_study(tmp_path, sweeps=[])
    del definition["sweeps"]
    assert report(tmp_path, definition).empty
    assert "This study has no sweeps." in (tmp_path / "report/tables/sweeps.md").read_text()
    assert not list((tmp_path / "report/figures").glob("sweep-*"))


def test_the_table_in_markdown_and_latex(tmp_path):
    report(tmp_path, write_study(tmp_path, sweeps=[SWEEP]))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "report/tables/sweeps.md").read_text().splitlines()
    ]
    assert rows[0] == [
        "Sweep", "Split", "Metric", "Point", "Repeats", "Cases", "Mean [95 %]", "SD of repeats", "− first [95 %]", "p",
        "p (Holm)",
    ]  # fmt: skip
    assert rows[2][6].startswith("0.720 [0.7")
    assert rows[2][8:] == ["–", "–", "–"]
    assert rows[3][8].startswith("+0.080 [+0.0")
    assert rows[3][9:] == ["0.008", "0.031"]
    assert "95 \\%" in (tmp_path / "report/tables/sweeps.tex").read_text()


def published_file(folder: Path, *lines: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join(["table,row,metric,value,source", *lines]) + "\n")
    return path


def test_published_numbers_stand_beside_the_points(tmp_path):
    path = published_file(
        tmp_path,
        'table 1: PATCH size,"(8, 16, 16)",DSC,0.9,A 2020',
        'Table 2: batch size,"(8, 16, 16)",DSC,0.1,A 2020',
        "Table 4: models,p1-s1,NSD,0.55,A 2020",
    )
    definition = write_study(tmp_path, sweeps=[SWEEP])
    table = report(tmp_path, definition, "--published", str(path)).set_index(["metric", "point"])
    assert table.loc[("DSC", "(8, 16, 16)"), "published"] == 0.9
    assert table.loc[("DSC", "(8, 16, 16)"), "published_difference"] == pytest.approx(0.8 - 0.9)
    assert table["published"].notna().sum() == 1
    # The table of published numbers knows the points as well, and models by their names.
    found = pd.read_csv(tmp_path / "report/tables/published.csv")["measured"]
    assert found[0] == pytest.approx(0.8)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("name", "title", "table"),
    [
        ("x", "Patch size", "Table 1: patch size"),
        ("patch", "Of patches", "Table 1: patch size"),
        ("atch", "Of patches", None),
        ("size", "Table 2", "Table 2: batch size"),
        ("size", "Sizes", "Table 1: patch size"),
    ],
)
def test_a_published_table_belongs_to_a_sweep_by_its_title_or_else_by_a_word(tmp_path, name, title, table):
    published = read_published(
        published_file(tmp_path, "Table 1: patch size,a,DSC,0.9,x", "Table 2: batch size,a,DSC,0.8,x")
    )
    found = published_lines(published, Sweep(name=name, title=title, points={}))["table"].unique().tolist()
    assert found == ([table] if table else [])


def test_a_number_that_is_published_twice_is_named(tmp_path):
    path = published_file(tmp_path, "1,a,DSC,0.9,x", "1,a,NSD,0.9,x", "1,a,DSC,0.8,x")
    with pytest.raises(UserError, match=r"line 4: there is a line for 1, a, DSC already"):
        read_published(path)


def test_the_published_tables_of_sato_and_kido(repository):
    folder = repository / "config/published"
    first, second = (read_published(folder / f"sato-kido-2022-task{task}.csv") for task in (1, 2))
    assert (len(first), len(second)) == (6, 30)
    best = second[second["metric"] == "DSC"].set_index(["table", "row"])["value"].groupby("table").idxmax()
    # What the paper's text says: 16 the best batch, 354 the best patch, focal the best loss in DSC, the ensemble ahead.
    assert [row for _, row in best] == ["(64, 354, 354)", "16", "Dice + focal", "a-plus-b"]
    in_text = {"Task 1": (first, 0.9139, 0.8459), "Task 2": (second, 0.9089, 0.8453)}
    for table, *scores in in_text.values():
        assert table[table["row"] == "a-plus-b"].set_index("metric")["value"].tolist() == scores


def test_a_curve_is_the_mean_over_repeats_in_a_band_of_their_range(stored):
    curves = point_curves(stored, stored.definition.sweeps[0])
    assert list(curves) == list(POINTS)
    # Last losses: 0.0 and 0.1, then 0.2 and 0.3, then 0.4.
    last = {point: curve["training_loss"].iloc[-1].tolist() for point, curve in curves.items()}
    assert last == {
        "(8, 8, 8)": pytest.approx([0.05, 0.0, 0.1]),
        "(8, 16, 16)": pytest.approx([0.25, 0.2, 0.3]),
        "wide": pytest.approx([0.4, 0.4, 0.4]),
    }
    assert curves["wide"].index.tolist() == [1, 2, 3]
    assert {ax.get_xlabel() for ax in sweep_figure(stored, stored.definition.sweeps[0]).axes} == {
        "epoch (250 steps each)"
    }


def test_runs_of_different_length_are_drawn_by_samples_seen(stored):
    plan = stored.plans["p3-s1"]
    longer = replace(plan, batch=16, training=replace(plan.training, iterations_per_epoch=500))
    changed = replace(stored, plans=stored.plans | {"p3-s1": longer})
    curves = point_curves(changed, changed.definition.sweeps[0])
    assert curves["(8, 8, 8)"].index.tolist() == [500, 1000, 1500]
    assert curves["wide"].index.tolist() == [8000, 16000, 24000]
    axes = sweep_figure(changed, changed.definition.sweeps[0]).axes
    assert {ax.get_xlabel() for ax in axes} == {"training samples seen"}
    # Sixteen times as many samples: side by side on a log axis only.
    assert {ax.get_xscale() for ax in axes} == {"log"}


def test_ensembles_have_no_curve(reported):
    study = load_stored(reported.results, str(reported.definition), need_cases=False)
    sweep = study.definition.sweeps[0]
    assert list(point_curves(study, sweep)) == ["(8, 8, 8)", "(8, 16, 16)"]
    alone = replace(sweep, points={"both": ("both",), "again": ("both",)})
    assert not sweep_figure(study, alone).axes


def definition_of(settings: int, ensembles: dict[str, tuple[str, ...]]) -> Definition:
    names = tuple(f"s{number}" for number in range(settings))
    return Definition(study="s", dataset="d", settings=names, ensembles=ensembles, folds={}, cases="cases.json")


def test_of_many_models_ensembles_and_their_members_are_shown():
    assert shown_models(definition_of(7, {"e": ("s0", "s6")})) == (*(f"s{number}" for number in range(7)), "e")
    assert shown_models(definition_of(8, {"e": ("s1", "s6")})) == ("s1", "s6", "e")
    assert shown_models(definition_of(12, {})) == tuple(f"s{number}" for number in range(8))


def test_the_median_case_is_one_that_all_models_have():
    rows = [("a", f"c{number}", number / 10) for number in range(5)] + [("b", f"c{number}", 0.5) for number in range(4)]
    means = pd.DataFrame(rows, columns=["setting", "case", "DSC"])
    assert median_case(means, {"a"}, "a", METRICS["dsc"]) == "c2"
    # Of 0.3, 0.2, 0.1 and 0.0 the lower one in the middle.
    assert median_case(means, {"a", "b"}, "a", METRICS["dsc"]) == "c1"
    assert median_case(means, {"a", "absent"}, "a", METRICS["dsc"]) is None
    assert median_case(means.assign(DSC=np.nan), {"a"}, "a", METRICS["dsc"]) is None
    # Without the value that b has for c1, 0.3, 0.2 and 0.0 are left.
    hollow = means.assign(DSC=means["DSC"].mask((means["setting"] == "b") & (means["case"] == "c1")))
    assert median_case(hollow, {"a", "b"}, "a", METRICS["dsc"]) == "c2"


def test_the_slice_with_the_most_labels_wins_over_the_one_with_the_most_voxels():
    labels = np.zeros((5, 4, 4), np.uint8)
    labels[1] = 1
    labels[2, 0, :2] = (1, 2)
    labels[3, 0, :3] = (1, 2, 2)
    labels[4, 0, :3] = (1, 2, 2)
    assert slice_with_most_labels(labels, [1, 2]) == 3
    assert slice_with_most_labels(labels, [1]) == 1


def test_the_comparison_says_which_case_slice_and_dsc(reported):
    study = load_stored(reported.results, str(reported.definition), need_cases=True)
    shown, figure = comparison(study, study.cases, "all", [case.id for case in study.cases.cases])
    # case_4 is the only labelled test case. Both organs lie in slices 4 to 6 of 0 to 11, the first of them is shown.
    assert shown.place == "case_4 (test), axial slice 5 of 12"
    assert shown.caption == (
        "case_4 (test), axial slice 5 of 12, counted from the feet: the slice with the most labels in the reference. "
        "The case is the median of small by mean DSC over labels. DSC of the whole case: small 0.833, large 0.917, "
        "both 1.000."
    )
    assert [ax.get_title() for ax in figure.axes] == [
        "Image", "Reference", "small\nDSC 0.833", "large\nDSC 0.917", "both\nDSC 1.000",
    ]  # fmt: skip
    assert shown.caption in (reported.results / "report/index.html").read_text()
    # The liver of 48 voxels lies two voxels further along x in the prediction of `small`.
    reference, small = (np.ma.getmaskarray(figure.axes[place].images[1].get_array()) for place in (1, 2))
    assert np.argwhere(~reference)[:, 1].max() - np.argwhere(~small)[:, 1].max() == 2


def test_each_modality_has_a_picture_and_old_ones_go(reported, tmp_path):
    study = load_stored(reported.results, str(reported.definition), need_cases=True)
    cases = load_cases(reported.cases)
    kinds = {"case_0": "CT", "case_4": "MR"}
    mixed = replace(cases, cases=tuple(replace(case, modality=kinds.get(case.id, "CT")) for case in cases.cases))
    (tmp_path / "comparison-old.png").write_bytes(b"")
    shown = write_comparisons(study, mixed, tmp_path)
    names = ["comparison-CT.png", "comparison-MR.png", "solid-MR.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # No CT is scored in the test split: the picture says so.
    assert [picture.caption.split(":")[0] for picture in shown] == ["CT", "MR"]
    assert "there is no case with a DSC" in shown[0].caption


def test_models_that_are_not_shown_are_named(reported):
    study = load_stored(reported.results, str(reported.definition), need_cases=True)
    names = [f"copy-{number}" for number in range(9)]
    copies = [study.scores[study.scores["setting"] == "small"].assign(setting=name) for name in names]
    definition = replace(study.definition, settings=(*study.definition.settings, *names))
    crowded = replace(study, definition=definition, scores=pd.concat([study.scores, *copies]))
    assert len(case_means(crowded.scores)["setting"].unique()) == 12
    shown, figure = comparison(crowded, study.cases, "all", [case.id for case in study.cases.cases])
    assert list(shown.lines.index) == ["small", "large", "both"]
    assert shown.caption.endswith(f"Not shown: {', '.join(names)}.")
    assert len(figure.axes) == 5


def test_the_definition_carries_sweeps_as_the_study_has_them(reported: FakeStudy):
    study = parse_study({**STUDY, "sweeps": {"p": {"title": "t", "points": {"1": "a", "2": ["b"]}}}}, source="x")
    written = json.loads(reported.definition.read_text()) | {"settings": ["a", "b"], "ensembles": {}, "baseline": None}
    written |= {"folds": {"a": [0], "b": [0]}, "sweeps": json.loads(json.dumps(to_plain(study.sweeps)))}
    assert load_definition(json.dumps(written)).sweeps == study.sweeps


@pytest.mark.parametrize("points", [{}, {"1": []}], ids=["no point", "a point without models"])
def test_a_definition_with_an_empty_sweep_is_refused(reported: FakeStudy, points):
    sweep = {"name": "patch", "title": "Table 1", "points": points}
    written = json.loads(reported.definition.read_text()) | {"sweeps": [sweep]}
    with pytest.raises(UserError, match="sweeps: patch: expected points with models"):
        load_definition(json.dumps(written))
