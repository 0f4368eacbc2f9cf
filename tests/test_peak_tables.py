"""Peak memory in the report: in every table, beside published memory, of cascades, and DSC against it in a figure."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from fake_study import make_plan
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import COLUMNS
from megavoxel.forecast.step import new_run
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.reporting.costs import cascade_peaks, how_measured, own_peaks, stages_of
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.published import read_published
from megavoxel.reporting.scatter import NO_PEAK, Point, memory_figure, memory_points, model_groups, scatter
from megavoxel.reporting.statistics import mean_interval
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import figure_style
from megavoxel.tasks.segmentation.forecast import forecast_gib
from megavoxel.training.annotation import target_dtype
from megavoxel.training.memory import tracked_step

TRACKED, ALLOCATED = "tracked tensors of the first step", "CUDA peak of PyTorch's allocator"
PEAKS = {"small": (1.0, 1.5), "large-s1": (4.0, 3.0), "large-s2": (3.0, 4.25), "second": (2.0, 2.0)}
"""Measured GiB of the two folds of each setting."""
ENSEMBLES = {"both": ["small", "large-s1"]}
SWEEPS = [{"name": "patch", "title": "Patch", "points": {"8": ["small"], "16": ["large-s1", "large-s2"]}}]
CASES = 6
LABELS = {"gut": 0.1, "brain": -0.1}
PUBLISHED = (
    "1: all,small,DSC,0.9,A",
    "1: all,small,peak_gib,6,A",
    "1: all,huge,DSC gut,0.8,A",
    "1: all,huge,DSC brain,0.6,A",
    "1: all,huge,peak_gib,30,A",
    "2: patch,16,DSC gut,0.7,A",
    "2: patch,16,peak_gib,13,A",
    "2: patch,32,peak_gib,14,A",
)
WITHOUT_PEAK = ("comparison", "best", "ranking", "subgroups")
"""Tables of differences, which have no peak."""


def dsc(number: int, case: int, label: str) -> float:
    return 0.5 + 0.05 * number + 0.01 * case + LABELS[label]


def write_study(folder: Path, peaks: dict[str, tuple[float, ...]], **changes: Any) -> dict[str, Any]:
    """Scores, plans, histories and manifests; the forecast is 1.25 times the measured peak. Returns the definition."""
    ensembles = changes.get("ensembles", {})
    rows = [
        (name, "validation", str(case % 2), f"case_{case}", label, metric, dsc(number, case, label))
        for number, name in enumerate([*peaks, *ensembles])
        for case, label, metric in itertools.product(range(CASES), LABELS, ("DSC", "NSD"))
    ]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "scores.csv", index=False)
    history = pd.DataFrame({"epoch": [1, 2], "training_loss": 1.0, "validation_loss": 1.0, "pseudo_dice": 0.5})
    for name, folds in peaks.items():
        save_plan(folder / name / "plan.json", make_plan(name, patch=(8, 8, 8)))
        for fold, gib in enumerate(folds):
            run = folder / name / f"fold-{fold}"
            run.mkdir()
            history.assign(seconds=60.0, peak_memory_mib=512.0).to_csv(run / "history.csv", index=False)
            record = {"gib": gib, "how": TRACKED, "forecast_gib": 1.25 * gib}
            (run / "manifest.json").write_text(json.dumps({"peak_memory": record}))
    folds = {name: [0, 1] for name in [*peaks, *ensembles]}
    definition = {"study": "s", "dataset": "d", "settings": list(peaks), "ensembles": {}, "folds": folds}
    return {**definition, "cases": "absent.json", **changes}


def report(folder: Path, definition: dict[str, Any], *options: str) -> dict[str, pd.DataFrame]:
    """All tables after `megavoxel report --tables-only`."""
    words = ["--results", str(folder), "--definition", json.dumps(definition), "--tables-only", *options]
    assert main(["report", *words]) == 0
    return {path.stem: pd.read_csv(path) for path in (folder / "report/tables").glob("*.csv")}


def load(folder: Path, definition: dict[str, Any]) -> Stored:
    return load_stored(folder, json.dumps(definition), need_cases=False)


def published_file(folder: Path, *lines: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join(["table,row,metric,value,source", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study and its definition; tests must not change it."""
    folder = tmp_path_factory.mktemp("study")
    return folder, write_study(folder, PEAKS, ensembles=ENSEMBLES, sweeps=SWEEPS)


@pytest.fixture(scope="module")
def tables(written):
    folder, definition = written
    return report(folder, definition, "--published", str(published_file(folder, *PUBLISHED)))


@pytest.fixture
def study(written, tmp_path):
    """A copy that a test may change."""
    folder, definition = written
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("report"))
    return tmp_path / "copy", definition


def without_peak(folder: Path, *runs: str) -> None:
    """Makes the manifests those of an older version; all of them where no run is named."""
    for path in [folder / run / "manifest.json" for run in runs] or folder.glob("*/fold-*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["peak_memory"]
        path.write_text(json.dumps(manifest))


def test_every_table_has_measured_and_forecast_peaks(tables):
    # The larger of two folds; of the ensemble, the larger of its members.
    expected = {"small": 1.5, "large-s1": 4.0, "large-s2": 4.25, "second": 2.0, "both": 4.0}
    for name, column in (("summary", "model"), ("labels", "model"), ("cost", "setting")):
        found = tables[name].set_index(column)[["peak_gib", "forecast_gib"]]
        assert set(found.index) == set(expected) - ({"both"} if name == "cost" else set())
        for model, row in found.iterrows():
            assert row.tolist() == [expected[model], 1.25 * expected[model]]
    # A point with repeats has the largest of them.
    assert tables["sweeps"].set_index("point")["peak_gib"].to_dict() == {8: 1.5, 16: 4.25}
    published = tables["published"].groupby(["table", "row"], sort=False)["peak_gib"].first().to_dict()
    assert {key: value for key, value in published.items() if not np.isnan(value)} == {
        ("1: all", "small"): 1.5,
        ("2: patch", "16"): 4.25,
    }


def test_the_heads_say_what_is_measured_and_what_is_forecast(written, tables):
    for name in tables.keys() - {"inference_time", *WITHOUT_PEAK}:  # nothing was timed
        head, _, *rows = (written[0] / f"report/tables/{name}.md").read_text().splitlines()
        assert [cell.strip() for cell in head.strip("|").split("|")][-2:] == [
            "Peak, measured (GiB)",
            "Peak, forecast (GiB)",
        ]
        assert [cell.strip() for cell in rows[0].strip("|").split("|")][-2:] == ["1.50", "1.88"]
        assert "Peak, measured (GiB)" in (written[0] / f"report/tables/{name}.tex").read_text()


def test_runs_without_a_recorded_peak_leave_the_columns_empty(study):
    folder, definition = study
    without_peak(folder)
    tables = report(folder, definition)
    for name, table in tables.items():
        if name in WITHOUT_PEAK:
            continue
        assert table[["peak_gib", "forecast_gib"]].isna().all(axis=None), name
        assert "Peak," not in (folder / f"report/tables/{name}.md").read_text()
    assert (folder / "report/figures/dsc_against_memory.svg").is_file()


def test_a_run_without_a_forecast_still_has_its_peak(study):
    folder, definition = study
    for path in folder.glob("small/fold-*/manifest.json"):
        path.write_text(json.dumps({"peak_memory": {"gib": 3.0, "how": TRACKED}}))
    summary = report(folder, definition)["summary"].set_index("model")
    assert summary.loc["small", "peak_gib"] == 3.0
    assert np.isnan(summary.loc["small", "forecast_gib"])


def test_folds_without_a_peak_are_passed_over_and_members_are_not(study):
    folder, definition = study
    without_peak(folder, "small/fold-1", "large-s1/fold-0", "large-s1/fold-1")
    peaks = own_peaks(load(folder, definition))
    assert peaks["peak_gib"]["small"] == 1.0
    assert np.isnan(peaks["peak_gib"]["large-s1"])
    # What the unknown member takes may be more than the known one.
    assert np.isnan(peaks["peak_gib"]["both"])


def test_a_cascade_has_the_largest_of_its_stages_beside_published_numbers_and_its_own_elsewhere(study):
    folder, definition = study
    path = folder / "second/plan.json"
    save_plan(path, replace(load_plan(path), stage1=("small", "large-s1")))
    lines = ["3: cascades,second,peak_gib,15,A", "3: cascades,second,DSC gut,0.9,A"]
    tables = report(folder, definition, "--published", str(published_file(folder, *lines)))
    assert tables["summary"].set_index("model").loc["second", "peak_gib"] == 2.0
    assert tables["cost"].set_index("setting").loc["second", "peak_gib"] == 2.0
    memory, gut = tables["published"].to_dict("records")
    assert (memory["published"], memory["measured"]) == (15.0, 4.0)
    assert (gut["peak_gib"], gut["forecast_gib"]) == (4.0, 5.0)
    drawn = {point.name: point.cost for point in memory_points(load(folder, definition), read_published(None))}
    assert drawn == {"small": 1.5, "large-s1 + 1 repeat": 4.25, "second": 4.0, "both": 4.0}


def test_a_cascade_whose_first_stage_has_no_peak_has_none(study):
    folder, definition = study
    save_plan(folder / "second/plan.json", replace(load_plan(folder / "second/plan.json"), stage1=("small",)))
    without_peak(folder, "small/fold-0", "small/fold-1")
    assert np.isnan(cascade_peaks(load(folder, definition))["peak_gib"]["second"])


def test_published_gb_and_measured_gib_are_not_subtracted_from_one_another(written, tables):
    found = tables["published"].set_index(["row", "metric"])
    assert np.isnan(found.loc[("small", "peak_gib"), "difference"])
    assert found.loc[("small", "DSC"), "difference"] == pytest.approx(0.525 - 0.9)
    line = next(line for line in (written[0] / "report/tables/published.md").read_text().splitlines() if "GB" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:6] == ["peak_gib (published in GB, measured in GiB)", "6", "1.5", "–"]


def test_stages_of_stages_count():
    def plan(*stage1: str):
        return replace(make_plan("any", patch=(8, 8, 8)), stage1=stage1)

    plans = {"a": plan(), "b": plan("a"), "c": plan("b", "a")}
    assert {name: stages_of(name, plans) for name in plans} == {"a": ["a"], "b": ["b", "a"], "c": ["c", "b", "a"]}


def test_published_memory_and_labels_stand_beside_the_measured(tables):
    found = tables["published"].set_index(["table", "row", "metric"])["measured"].to_dict()
    # Cases 0 to 5 have 0.01 per case more; the three stages are 0.05 apart.
    assert found == {
        ("1: all", "small", "DSC"): pytest.approx(0.5 + 0.025),
        ("1: all", "small", "peak_gib"): 1.5,
        ("1: all", "huge", "DSC gut"): pytest.approx(np.nan, nan_ok=True),
        ("1: all", "huge", "DSC brain"): pytest.approx(np.nan, nan_ok=True),
        ("1: all", "huge", "peak_gib"): pytest.approx(np.nan, nan_ok=True),
        # Of two repeats, 0.05 and 0.1 above the first setting.
        ("2: patch", "16", "DSC gut"): pytest.approx(0.6 + 0.025 + 0.075),
        ("2: patch", "16", "peak_gib"): 4.25,
        ("2: patch", "32", "peak_gib"): pytest.approx(np.nan, nan_ok=True),
    }


@pytest.mark.parametrize("metric", ["Dice", "peak", "peak_gib gut", "GPU memory", "DSC ", "dsc", ""])
def test_an_unknown_metric_is_named_with_those_that_are_allowed(tmp_path, metric):
    path = published_file(tmp_path, "1,a,DSC gut,0.9,x", f"1,a,{metric},0.9,x")
    with pytest.raises(
        UserError, match=rf"published.csv: line 3: unknown metric '{metric}'; allowed: DSC, NSD, .*peak"
    ):
        read_published(path)


def test_all_published_numbers_of_the_repository_can_be_read(repository):
    seen = set()
    for path in sorted((repository / "config/published").glob("*.csv")):
        study = yaml.safe_load((repository / "config/studies" / f"{path.stem}.yaml").read_text())
        task = study.get("task", "segmentation")
        assert len(read_published(path, classifies=task == "classification")) > 0
        seen.add(task)
    assert seen == {"segmentation", "classification"}


def test_the_ways_of_measuring_are_named_with_their_settings_where_they_differ(study):
    folder, definition = study
    assert how_measured(load(folder, definition)) == TRACKED
    record = {"peak_memory": {"gib": 3.0, "how": ALLOCATED, "forecast_gib": 3.0}}
    (folder / "second/fold-0/manifest.json").write_text(json.dumps(record))
    assert how_measured(load(folder, definition)) == (
        f"{TRACKED} (small, large-s1, large-s2, second); {ALLOCATED} (second)"
    )


def test_repeats_are_one_point(written):
    folder, definition = written
    stored = load(folder, definition)
    assert model_groups(stored) == [("small",), ("large-s1", "large-s2"), ("second",), ("both",)]
    # A second sweep with other repeats of the same setting changes nothing.
    other = {"name": "other", "title": "Other", "points": {"1": ["large-s2", "second"], "2": ["small"]}}
    again = load(folder, definition | {"sweeps": [*SWEEPS, other]})
    assert model_groups(again) == model_groups(stored)


def points_of(figure: Figure, panel: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(memory, DSC) of a panel by the number beside a point and its marker."""
    (ax,) = [ax for ax in figure.axes if ax.get_title() == panel]
    marked = [line for line in ax.lines if line.get_marker() != "None"]
    return {
        (text.get_text(), line.get_marker()): (line.get_xdata()[0], line.get_ydata()[0])
        for text, line in zip(ax.texts, marked, strict=True)
    }


def test_the_figure_shows_dsc_against_memory_for_the_mean_and_each_label(written):
    folder, definition = written
    stored = load(folder, definition)
    figure = memory_figure(stored, read_published(published_file(folder, *PUBLISHED)))
    assert [ax.get_title() for ax in figure.axes] == ["Mean over labels", "brain", "gut"]
    mean, gut = points_of(figure, "Mean over labels"), points_of(figure, "gut")
    assert mean == {
        ("1", "o"): (1.5, pytest.approx(0.525)),
        # The two repeats, 0.05 and 0.1 above the first.
        ("2", "o"): (4.25, pytest.approx(0.6)),
        ("3", "o"): (2.0, pytest.approx(0.675)),
        ("4", "s"): (4.0, pytest.approx(0.725)),
        # Published: 1 and 2 are about points of the study; 5 is not, and its mean is that of two labels.
        ("1", "D"): (6.0, 0.9),
        ("5", "D"): (30.0, pytest.approx(0.7)),
        ("2", "D"): (13.0, 0.7),
    }
    assert gut["2", "o"] == (4.25, pytest.approx(0.7))
    assert gut["5", "D"] == (30.0, 0.8)
    assert ("1", "D") not in gut
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["1  small", "2  large-s1 + 1 repeat", "3  second", "4  both", "5  huge (1: all)",
                      "published, of the same number"]  # fmt: skip
    assert figure.axes[0].get_xscale() == "log"
    expected = f"peak memory of training in GiB: {TRACKED}; of published points GPU memory in GB"
    assert figure.get_supxlabel() == expected


def test_a_published_row_that_two_tables_repeat_is_drawn_once(written):
    folder, definition = written
    lines = [f"{table},{row},{metric}" for table, row, metric in itertools.product(
        ("1", "2"), ("huge", "small"), ("DSC,0.9,A", "peak_gib,30,A")
    )]  # fmt: skip
    lines += ["3,huge,DSC,0.9,A", "3,huge,peak_gib,31,A", "4,huge,DSC,0.9,A"]
    stored = load(folder, definition)
    points = memory_points(stored, read_published(published_file(folder, *lines)))
    assert [(point.number, point.name, point.cost) for point in points if point.kind == "published"] == [
        (5, "huge (1)", 30.0),
        (1, "small (1)", 30.0),
        (6, "huge (3)", 31.0),
    ]


def test_many_published_rows_with_long_names_leave_room_for_the_panels(written):
    folder, definition = written
    rows = [f"a setting of another study with a long name, number {n}" for n in range(40)]
    lines = [f'T,"{row}",{metric}' for row in rows for metric in ("DSC,0.9,A", "peak_gib,30,A")]
    figure = memory_figure(load(folder, definition), read_published(published_file(folder, *lines)))
    for ax in figure.axes:
        assert min(ax.get_window_extent().size) > 2.5 * figure.dpi


def test_bars_are_the_bootstrap_interval_over_cases(written):
    folder, definition = written
    figure = memory_figure(load(folder, definition), read_published(None))
    bars = [tuple(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert len(bars) == 4
    assert bars[0] == pytest.approx(mean_interval([0.5 + 0.01 * case for case in range(CASES)]))


def test_models_without_a_peak_are_named_below_the_figure(study):
    folder, definition = study
    without_peak(folder, "second/fold-0", "second/fold-1")
    figure = memory_figure(load(folder, definition), read_published(None))
    assert figure.get_supxlabel().endswith("no peak was recorded of second")
    assert {number for number, _ in points_of(figure, "gut")} == {"1", "2", "3"}


def test_where_no_run_has_a_peak_the_figure_says_so(study):
    folder, definition = study
    without_peak(folder)
    figure = memory_figure(load(folder, definition), read_published(published_file(folder, *PUBLISHED)))
    assert [text.get_text() for text in figure.texts] == [NO_PEAK]
    assert not figure.axes


@pytest.mark.parametrize("count", [4, 30])
def test_numbers_lie_on_no_other_number_and_on_no_point(tmp_path, count):
    # Five sizes of memory, and DSC that rises by 0.002: in 30 settings many points lie close together.
    definition = write_study(tmp_path, {f"setting-{n}": (2.0 + n % 5, 2.0) for n in range(count)})
    scores = pd.read_csv(tmp_path / "scores.csv")
    number = scores["setting"].str.removeprefix("setting-").astype(int)
    scores.assign(value=scores["value"] - 0.048 * number).to_csv(tmp_path / "scores.csv", index=False)
    figure = memory_figure(load(tmp_path, definition), read_published(None))
    figure.draw_without_rendering()
    for ax in figure.axes:
        texts = [text.get_window_extent() for text in ax.texts]
        assert len(texts) == count
        for one, other in itertools.combinations(texts, 2):
            assert not one.overlaps(other)
        places = [ax.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in ax.lines]
        assert not [box for box in texts for place in places if box.contains(*place)]


@pytest.mark.slow
def test_the_figure_is_written_the_same_each_time(study):
    folder, definition = study
    written = []
    for _ in range(2):
        report(folder, definition)
        written.append([path.read_bytes() for path in sorted((folder / "report/figures").glob("dsc_against_*"))])
        np.random.random(3)
    assert len(written[0]) == 2
    assert written[0] == written[1]


@pytest.mark.parametrize(("parts", "tolerance"), [(1, 0.02), (2, 0.05)])
def test_the_forecast_of_a_run_is_near_what_its_step_takes(parts, tolerance):
    plan = make_plan("any", patch=(8, 32, 32))
    run = new_run(replace(plan, parallel=replace(plan.parallel, accumulate=parts)), "float32")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(plan.batch, 1, *plan.patch, generator=generator)
    target = torch.randint(0, 3, (plan.batch, *plan.patch), generator=generator, dtype=target_dtype(plan))
    _, peak_bytes = tracked_step(run, image, target)
    # Of accumulated parts the forecast holds one: the other's image and target, 0.09 of 2.1 MiB, are left out.
    assert forecast_gib(run) == pytest.approx(peak_bytes / 2**30, rel=tolerance)


@pytest.mark.parametrize("costs", [(0.02103, 0.03539), (11.2, 14.9), (1503.0, 1511.0)])
def test_numbers_of_the_cost_axis_stand_apart(costs):
    shown = ["mean", *"abcd"]
    points = [
        Point(number=number, name=f"s{number}", kind="setting", cost=cost, scores=dict.fromkeys(shown, 0.9))
        for number, cost in enumerate(costs, start=1)
    ]
    with figure_style():
        figure = scatter(points, shown, "GiB", "DSC")
        figure.canvas.draw()
        labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
        boxes = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    assert len(boxes) > 2
    character = (boxes[-1][1] - boxes[-1][0]) / len(labels[-1].get_text())
    assert all(other[0] - one[1] > character for one, other in itertools.pairwise(boxes))
