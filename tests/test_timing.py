"""Inference time in the report: files of timings, the table, published seconds, and DSC against seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fake_study import FakeStudy, make_plan, make_study, report_study
from megavoxel.errors import UserError
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.reporting.costs import COLUMNS, no_timings, read_timings, seconds_of_models, time_table
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.published import read_published
from megavoxel.reporting.scatter import MEAN, network_names, time_figure, time_points
from megavoxel.reporting.tables import NO_TIMINGS, show_time

HEAD = ",".join(COLUMNS)
LINES = (
    # Case a: 1 and 3, mean 2; case b: 4; case c: 9. The baseline has a: 1 and b: 2.
    "large,test,all,a,1,1.0,16x16x16",
    "large,test,all,a,2,3.0,16x16x16",
    "large,test,all,b,1,4.0,16x16x16",
    "large,test,all,c,1,9.0,16x16x16",
    "small,test,all,a,1,1.0,8x8x8",
    "small,test,all,b,1,2.0,8x8x8",
    "other,test,all,a,1,1.0,8x8x8",
    "small,validation,0,v,1,0.5,8x8x8",
)
PUBLISHED = (
    "Table 3,small,seconds,0.5,P",
    "Table 3,small,seconds_sd,0.1,P",
    "Table 3,large,seconds,2.0,P",
    "Table 5,large,seconds,99,P",
    "Table 1,large,DSC,0.75,P",
)
STUDY = Definition(
    study="s",
    dataset="d",
    baseline="small",
    settings=("small", "large", "slow"),
    ensembles={},
    folds={},
    cases="absent",
)


def timings_file(folder: Path, *lines: str, name: str = "timings.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return path


def published_file(folder: Path, *lines: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join(["table,row,metric,value,source", *lines]) + "\n")
    return path


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    timings = read_timings([timings_file(tmp_path, *LINES)])
    return time_table(timings, read_published(published_file(tmp_path, *PUBLISHED)), STUDY)


def test_repeats_are_averaged_within_a_case_first(table):
    assert list(zip(table["split"], table["setting"], strict=True)) == [
        ("validation", "small"),
        ("test", "small"),
        ("test", "large"),
    ]
    large = table.iloc[2]
    assert (large["window"], large["cases"], large["repeats"]) == ("16x16x16", 3, 1)
    assert large["mean"] == pytest.approx((2 + 4 + 9) / 3)
    assert large["sd"] == pytest.approx(np.std([2, 4, 9], ddof=1))
    assert np.isnan(table.iloc[0]["sd"])


def test_the_ratio_is_over_the_cases_that_the_baseline_has_too(table):
    assert table["ratio"].tolist() == [1.0, 1.0, pytest.approx((2 + 4) / (1 + 2))]


def test_published_seconds_stand_beside_with_the_ratio_of_their_own_table(table):
    small, large = table.iloc[1], table.iloc[2]
    assert (small["published"], small["published_sd"], small["published_ratio"]) == (0.5, 0.1, 1.0)
    assert (large["published"], large["published_ratio"]) == (2.0, 4.0)
    assert np.isnan(large["published_sd"])


def test_a_model_has_the_seconds_of_its_first_window_on_the_split_asked_for(tmp_path):
    lines = [*LINES, "small,test,all,a,1,7.0,whole", "small,test,all,b,1,9.0,whole", "slow,test,all,a,1,3.5,whole"]
    table = time_table(read_timings([timings_file(tmp_path, *lines)]), read_published(None), STUDY)
    assert table["window"].tolist() == ["8x8x8", "8x8x8", "whole", "16x16x16", "whole"]
    assert seconds_of_models(table, "test")["small", "seconds"] == 1.5
    assert seconds_of_models(table, "validation") == {
        ("small", "seconds"): 0.5,
        ("small", "seconds_sd"): pytest.approx(np.nan, nan_ok=True),
    }
    # Against the same window of the baseline where there is one (8 over 8, 3.5 over 7), else against its first.
    assert table["ratio"].tolist() == [1.0, 1.0, 1.0, pytest.approx(6 / 3), 0.5]


def test_without_a_baseline_or_published_numbers_their_columns_are_left_out(tmp_path):
    timings = read_timings([timings_file(tmp_path, *LINES)])
    shown = show_time(time_table(timings, read_published(None), replace(STUDY, baseline=None)))
    assert list(shown.columns) == ["Setting", "Split", "Window", "Cases", "Repeats", "Seconds per image"]
    assert shown["Seconds per image"].tolist() == ["0.500", "1.500 ± 0.707", "5.000 ± 3.606"]
    assert show_time(time_table(no_timings(), read_published(None), STUDY)).iloc[0, 0] == NO_TIMINGS


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,train,0,c,1,1.0,w"], r"timings\.csv: line 2: split 'train'; allowed: validation, test"),
        (["a,test,all,c,1,1.0,w", "a,test,all,d,1,soon,w"], r"line 3: 'soon' is no positive number of seconds"),
        (["a,test,all,c,1,0,w"], r"line 2: '0' is no positive number"),
        (["a,test,all,c,1,inf,w"], r"line 2: 'inf' is no positive number"),
        (["a,test,all,c,1,1.0,w", "a,test,all,c,1,2.0,w"], r"setting a, .* case c, repeat 1, window w is timed twice"),
    ],
)
def test_wrong_timings_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_timings([timings_file(tmp_path, *lines)])


def test_files_that_are_missing_or_of_other_columns_or_repeat_one_another_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.csv: no such file of timings"):
        read_timings([tmp_path / "absent.csv"])
    (tmp_path / "other.csv").write_text("setting,seconds\na,1\n")
    with pytest.raises(UserError, match=r"other\.csv: the columns are setting,seconds; expected setting,split,fold"):
        read_timings([tmp_path / "other.csv"])
    first, second = (timings_file(tmp_path, LINES[0], name=f"{name}.csv") for name in "ab")
    with pytest.raises(UserError, match=r"a\.csv and .*b\.csv: .* is timed twice"):
        read_timings([first, second])


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> FakeStudy:
    """A scored study; its only labelled test case is case_4."""
    return make_study(tmp_path_factory.mktemp("study"))


def timed(fake: FakeStudy, folder: Path) -> list[str]:
    lines = [line.replace(",a,", ",case_4,").replace(",b,", ",case_5,") for line in LINES if ",c," not in line]
    return [
        *("--timings", str(timings_file(folder, *lines))),
        *("--published", str(published_file(folder, *PUBLISHED))),
    ]


@pytest.mark.slow
def test_the_report_has_table_figure_and_published_seconds(fake, tmp_path):
    assert report_study(fake, *timed(fake, tmp_path)) == 0
    report = fake.results / "report"
    times = pd.read_csv(report / "tables/inference_time.csv").set_index(["split", "setting"])
    assert times.loc[("test", "large"), "mean"] == 3.0
    assert times.loc[("test", "large"), "peak_gib"] == 1.5 + 1 / 8
    published = pd.read_csv(report / "tables/published.csv").set_index(["table", "row", "metric"])
    assert published.loc[("Table 3", "large", "seconds"), "measured"] == 3.0
    assert published.loc[("Table 3", "small", "seconds"), "difference"] == pytest.approx(1.0)
    assert published.loc[("Table 3", "small", "seconds_sd"), "measured"] == pytest.approx(0.5**0.5)
    page = (report / "index.html").read_text()
    assert "<h3>Inference time</h3>" in page
    assert "3.000 ± 1.414" in page
    assert r"$\div$ baseline" in (report / "tables/inference_time.tex").read_text()
    with Image.open(report / "figures/dsc_against_seconds.png") as figure:
        assert len(np.unique(np.asarray(figure.convert("L")))) > 20


@pytest.mark.slow
def test_without_timings_the_page_has_no_such_section_and_no_older_figure_stays(fake):
    older = fake.results / "report/figures/dsc_against_seconds.png"
    older.parent.mkdir(parents=True, exist_ok=True)
    older.touch()
    assert report_study(fake) == 0
    assert not older.exists()
    assert "Inference time" not in (fake.results / "report/index.html").read_text()
    assert NO_TIMINGS in (fake.results / "report/tables/inference_time.md").read_text()


def test_the_figure_has_a_line_per_network_and_published_points_beside(fake, tmp_path):
    stored = load_stored(fake.results, str(fake.definition), need_cases=True)
    timings = read_timings([Path(timed(fake, tmp_path)[1])])
    published = read_published(tmp_path / "published.csv")
    points = time_points(stored, timings, published)
    liver = {"small": 4 / 6, "large": 5 / 6}
    assert [(point.number, point.name, point.kind, point.cost) for point in points] == [
        (1, "small, window 8x8x8", "setting", 1.5),
        (2, "large, window 16x16x16", "setting", 3.0),
        (2, "large, window 16x16x16", "published", 2.0),
    ]
    assert [point.scores[MEAN] for point in points] == [
        *(pytest.approx((liver[name] + 1) / 2) for name in ("small", "large")),
        0.75,
    ]
    (ax,) = time_figure(stored, timings, published).axes
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in lines] == [[1.5, 3.0]]  # the same network: one line
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in hollow] == [(2.0, 0.75)]
    assert ax.get_xscale() == "linear"


def test_networks_are_called_by_what_their_settings_share(fake, tmp_path):
    stored = load_stored(fake.results, str(fake.definition), need_cases=True)
    narrow = make_plan("any", patch=(8, 8, 8))
    wide = replace(narrow, network=replace(narrow.network, features=(8, 16)))
    excited = replace(narrow, network=replace(narrow.network, squeeze_excitation=2))
    plans = {"unet-32-small": narrow, "unet-32-whole": narrow, "unet-64-small": wide, "unet-64-whole": wide}
    plans |= {"se-unet-32-small": excited}
    assert network_names(replace(stored, plans=plans)) == {
        "unet-32-small": "unet-32",
        "unet-32-whole": "unet-32",
        "unet-64-small": "unet-64",
        "unet-64-whole": "unet-64",
        "se-unet-32-small": "se-unet-32-small",
    }
    apart = {"first": narrow, "second": narrow}
    assert network_names(replace(stored, plans=apart)) == {"first": "first", "second": "first"}
    save_plan(tmp_path / "plan.json", excited)
    assert hash(load_plan(tmp_path / "plan.json").network) == hash(excited.network)


def test_figure_1_of_the_paper_can_be_drawn_from_its_grid(fake, repository):
    """Eighteen settings: six networks, three windows, times over more than a decade."""
    published = read_published(repository / "config/published/zhu-2020-lamp-han.csv")
    settings = list(dict.fromkeys(published[published["metric"] == "seconds"]["row"]))
    assert len(settings) == 18
    stored = load_stored(fake.results, str(fake.definition), need_cases=True)
    plan = make_plan("any", patch=(8, 8, 8))
    networks = {name: name.rpartition("-")[0] for name in settings}
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(networks.values()), start=4)}
    plans = {
        name: replace(plan, network=replace(plan.network, features=(kinds[kind], 8))) for name, kind in networks.items()
    }
    rows = published.set_index(["row", "metric"])["value"]
    scores = [(n, "test", "all", "case_4", "liver", m, rows[n, "DSC"]) for n in settings for m in ("DSC", "NSD")]
    study = replace(
        stored,
        definition=replace(stored.definition, settings=tuple(settings), ensembles={}, baseline=settings[0]),
        scores=pd.DataFrame(scores, columns=stored.scores.columns),
        plans=plans,
    )
    lines = [(n, "test", "all", "case_4", "1", rows[n, "seconds"], n.rpartition("-")[2]) for n in settings]
    timings = pd.DataFrame(lines, columns=COLUMNS)
    points = time_points(study, timings, published)
    measured, said = (
        [(point.cost, point.scores[MEAN]) for point in points if (point.kind == "published") == kind]
        for kind in (False, True)
    )
    assert measured == said
    assert len(measured) == 18
    figure = time_figure(study, timings, published)
    solid = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in solid] == [3] * 6
    assert figure.axes[0].get_xscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    named = [f"{n}  {setting}, window {setting.rpartition('-')[2]}" for n, setting in enumerate(settings, 1)]
    assert labels[:18] == named
    assert labels[18:] == ["published, of the same number"]


@pytest.mark.parametrize(
    ("study", "dataset", "rows"),
    [("zhu-2020-lamp-han", "head-and-neck", 18 * 12 + 10), ("zhu-2020-lamp-liver", "task03-liver", 18 * 5)],
)
def test_the_published_tables_of_zhu_agree_with_themselves_and_with_the_labels(repository, study, dataset, rows):
    """The average that the paper prints is that of the labels which it prints."""
    from megavoxel.config.dataset import load_dataset

    published = read_published(repository / f"config/published/{study}.csv")
    assert len(published) == rows
    labels = load_dataset(repository / f"config/datasets/{dataset}.yaml").labels
    dsc = published[published["metric"].str.startswith("DSC")]
    for (table, row), own in dsc.groupby(["table", "row"]):
        values = own.set_index("metric")["value"]
        assert set(values.index) == {"DSC", *(f"DSC {label}" for label in labels)}, (table, row)
        assert values["DSC"] == pytest.approx(values.drop("DSC").mean(), abs=0.0000501), (table, row)


def test_published_numbers_of_zhu_that_were_looked_up_by_hand(repository):
    tables = pd.concat(
        [read_published(repository / f"config/published/zhu-2020-lamp-{name}.csv") for name in ("han", "liver")]
    ).set_index(["table", "row", "metric"])["value"]
    assert tables["Table 1: U-Net", "unet-128-whole", "DSC"] == 0.7815
    assert tables["Table 1: U-Net", "unet-32-medium", "DSC chiasm"] == 0.5330
    assert tables["Table 2: SE-U-Net", "anatomynet", "DSC submandibular_right"] == 0.8130
    assert tables["Table 2: SE-U-Net", "se-unet-128-whole", "DSC optic_nerve_left"] == 0.7370
    assert tables["Table 3: inference time", "unet-32-whole", "seconds"] == 0.61
    assert tables["Table 3: inference time", "se-unet-128-small", "seconds_sd"] == 0.69
    assert tables["Table 4: liver and tumour", "unet-64-large", "DSC tumour"] == 0.4529
    assert tables["Table 4: liver and tumour", "se-unet-32-large", "DSC liver"] == 0.8925
    assert tables["Table 5: inference time", "se-unet-128-small", "seconds"] == 57.99
    assert tables["Table 5: inference time", "unet-128-large", "seconds_sd"] == 0.25
