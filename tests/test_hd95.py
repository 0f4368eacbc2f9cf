"""HD95 against MONAI and values counted by hand, and in everything that is shown of a study that asks for it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_hausdorff_distance

from fake_study import FakeStudy, make_study, report_study
from megavoxel.cli import main
from megavoxel.config.study_file import parse_study
from megavoxel.evaluation.compared import compared_labels
from megavoxel.evaluation.metrics import METRICS, Metric
from megavoxel.evaluation.tidy import read_scores
from megavoxel.reporting.examples import choose_examples
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.viewer import case_data, ranked_cases

SHAPE = (12, 14, 16)


def values(prediction: np.ndarray, reference: np.ndarray, spacing=(1.0, 1.0, 1.0), labels=(1,)) -> list[float]:
    tolerances = [0.0] * len(labels)
    found = compared_labels(prediction, reference, list(labels), tolerances=tolerances, spacing=spacing)
    return [METRICS["hd95"].of(label) for label in found]


def by_monai(prediction: np.ndarray, reference: np.ndarray, spacing) -> float:
    masks = [torch.from_numpy(np.ascontiguousarray(mask == 1))[None, None] for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(spacing))
    return float(value)


def box(start: tuple[int, ...], stop: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(map(slice, start, stop))] = 1
    return labels


def test_two_plates_are_as_far_apart_as_their_layers():
    # Single layers, 3 voxels of 2 mm apart: each border voxel has its nearest one right above.
    assert values(box((2, 0, 0), (3, 14, 16)), box((5, 0, 0), (6, 14, 16)), (2.0, 1.0, 1.0)) == [6.0]


def test_single_voxels_and_identical_masks():
    one, other = box((1, 1, 1), (2, 2, 2)), box((4, 5, 1), (5, 6, 2))
    assert values(one, other) == [5.0]
    assert values(one, other, (2.0, 0.5, 9.0)) == [pytest.approx(math.hypot(6.0, 2.0), abs=1e-6)]
    assert values(one, one) == [0.0]


def test_five_percent_of_the_farthest_voxels_do_not_count():
    line, longer = (box((0, 0, 0), (1, 1, stop), (1, 1, 200)) for stop in (100, 110))
    # Of 110 voxels 10 stand out, by 1 to 10 mm; the 95th percentile lies at position 103.55 of 0 to 109.
    assert values(longer, line) == [pytest.approx(4.55, abs=1e-6)]
    assert values(line, longer) == [pytest.approx(4.55, abs=1e-6)]


def test_a_label_in_no_map_has_no_value_and_one_in_a_single_map_has_the_diagonal():
    full, empty = box((0, 0, 0), (2, 2, 2)), np.zeros(SHAPE, np.uint8)
    diagonal = math.hypot(12 * 2.0, 14, 16)
    assert values(full, empty, (2.0, 1.0, 1.0)) == [pytest.approx(diagonal, abs=1e-6)]
    assert values(empty, full, (2.0, 1.0, 1.0)) == [pytest.approx(diagonal, abs=1e-6)]
    first, second = values(empty, full, labels=(1, 2))
    assert first > 0
    assert math.isnan(second)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.7)])
def test_random_masks_have_the_value_of_monai(seed, spacing):
    generator = np.random.default_rng(seed)
    maps = []
    for _ in range(2):
        start = generator.integers(0, 6, 3)
        labels = box(tuple(start), tuple(start + generator.integers(2, 8, 3)))
        labels[generator.random(SHAPE) < 0.01] = 1
        maps.append(labels)
    assert values(*maps, spacing) == [pytest.approx(by_monai(*maps, spacing), abs=1e-6, rel=1e-6)]


def test_the_record_says_what_a_reader_has_to_know():
    metric = METRICS["hd95"]
    assert (metric.head, metric.sign, metric.low, metric.high) == ("HD95 (mm)", -1, 0.0, math.inf)
    assert [type(metric) for metric in METRICS.values()] == [Metric] * len(METRICS)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    """Scored by all three metrics, and reported."""
    fake = make_study(tmp_path_factory.mktemp("study"), score=False)
    parts = []
    for name in ("small", "large", "both"):
        for split, fold in (("validation", "0"), ("validation", "1"), ("test", "all")):
            parts.append(fake.root / f"{name}-{split}-{fold}.csv")
            folder = fake.model(name) / ("test" if split == "test" else f"fold-{fold}/validation")
            words = ["--cases", str(fake.cases), "--splits", str(fake.splits), "--split", split, "--fold", fold]
            words += ["--setting", name, "--output", str(parts[-1]), "--metrics", "dsc", "nsd", "hd95"]
            assert main(["evaluate", str(folder), *words]) == 0
    assert main(["evaluate", "--collect", *map(str, parts), "--output", str(fake.results / "scores.csv")]) == 0
    published = fake.root / "published.csv"
    lines = ["1,large,HD95,3.5,A", "1,large,HD95 liver,1.5,A", "Table 1: patch size,(8 8 8),DSC,0.5,A"]
    published.write_text("\n".join(["table,row,metric,value,source", *lines]) + "\n")
    assert report_study(fake, "--published", str(published)) == 0
    return fake


def table(study: FakeStudy, name: str) -> pd.DataFrame:
    return pd.read_csv(study.results / f"report/tables/{name}.csv")


def test_scores_of_a_study_have_lines_of_it(study):
    scores = read_scores(study.results / "scores.csv").set_index(["setting", "case", "label", "metric"])["value"]
    # The liver is shifted by 2 and 1 voxels of 1 mm; the spleen is right, missed in case_1, in no map of case_3.
    assert [scores[name, "case_0", "liver", "HD95"] for name in ("small", "large", "both")] == [2.0, 1.0, 0.0]
    assert scores["both", "case_1", "spleen", "HD95"] == pytest.approx(math.hypot(12 * 3.0, 16 * 1.5, 16 * 1.0))
    assert math.isnan(scores["both", "case_3", "spleen", "HD95"])


def test_tables_have_its_columns_and_know_that_lower_is_better(study):
    summary = table(study, "summary").set_index(["model", "split"])
    assert summary.loc[("large", "test"), "hd95_mean"] == 0.5
    assert {f"hd95_{kind}" for kind in ("sd", "low", "high", "difference", "p", "p_holm")} <= set(summary)
    comparison = table(study, "comparison").set_index(["model", "split", "metric"])
    row = comparison.loc[("large", "validation", "HD95")]
    assert row["difference"] < 0
    assert (row["better"], row["equal"], row["worse"]) == (4, 0, 0)
    labels = table(study, "labels").set_index(["split", "label", "model"])
    assert labels.loc[("validation", "liver", "small"), "hd95_mean"] == 2.0
    assert set(table(study, "sweeps")["metric"]) == {"DSC", "NSD", "HD95"}
    text = (study.results / "report/tables/summary.md").read_text()
    assert "HD95 (mm)" in text
    assert "HD95 − baseline" in text


def test_published_values_stand_beside_it(study):
    found = table(study, "published").set_index("metric")
    assert found.loc["HD95", "measured"] == 0.5
    assert found.loc["HD95", "difference"] == -3.0
    assert found.loc["HD95 liver", "measured"] == 1.0


def test_figures_and_page_show_it(study):
    assert (study.results / "report/figures/hd95_by_label.png").is_file()
    page = (study.results / "report/index.html").read_text()
    assert "HD95: 95th percentile of the Hausdorff distance" in page
    assert "<figcaption>HD95 (mm) per label</figcaption>" in page
    assert "A lower value is better." in page
    data = json.loads(page.split('id="case-data">')[1].split("</script>")[0])
    assert data["metrics"] == ["DSC", "NSD", "HD95 (mm)"]
    assert data["signs"] == [1, 1, -1]


@pytest.mark.slow
def test_cases_are_ranked_by_the_first_metric_in_its_direction(study, tmp_path):
    definition = json.loads(study.definition.read_text()) | {"metrics": ["hd95", "dsc"]}
    stored = load_stored(study.results, json.dumps(definition), need_cases=True)
    ranked = ranked_cases(stored)
    assert ranked["HD95"].is_monotonic_decreasing
    assert case_data(stored)["signs"] == [-1, 1]
    means = case_means(stored.scores)
    examples = choose_examples(stored, means[means["setting"] == "both"], "both")
    assert [(example.rank, example.case) for example in examples][-1] == ("worst", "case_1")
    shutil.copytree(study.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    words = ["--results", str(tmp_path / "results"), "--definition", json.dumps(definition), "--tables-only"]
    assert main(["report", *words]) == 0
    assert (tmp_path / "results/report/figures/hd95_against_memory.png").is_file()
    cost = pd.read_csv(tmp_path / "results/report/tables/cost.csv").set_index("setting")
    assert cost.loc["large", "hd95"] == 0.5


def test_a_metric_that_is_unknown_or_not_scored_is_named(study, capsys):
    for metrics, message in ((["hd96"], "there is no metric 'hd96'; allowed: dsc, nsd, hd95"),):
        definition = json.loads(study.definition.read_text()) | {"metrics": metrics}
        words = ["--results", str(study.results), "--definition", json.dumps(definition), "--tables-only"]
        assert main(["report", *words]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_names_its_metrics(repository, tmp_path):
    values = {"study": "s", "dataset": "phantom", "settings": {"a": {}}}
    assert parse_study(values, source="s.yaml").metrics == ("dsc", "nsd")
    assert parse_study(values | {"metrics": ["hd95"]}, source="s.yaml").metrics == ("hd95",)
    (tmp_path / "s.yaml").write_text(json.dumps(values | {"metrics": ["dsc", "hd96"]}))
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "--snakefile", str(repository / "Snakefile")]
    done = subprocess.run(
        [*command, "--configfile", "s.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Error: s.yaml: metrics: there is no metric 'hd96'; allowed: dsc, nsd, hd95" in done.stdout + done.stderr
    (tmp_path / "s.yaml").write_text(json.dumps(values | {"metrics": ["hd95", "dsc"]}))
    done = subprocess.run(
        [*command, "-p", "--configfile", "s.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--metrics hd95 dsc" in done.stdout
    assert "hd95_against_memory.png" in done.stdout


def test_the_terminal_says_what_it_is(study, capsys):
    folders = [str(study.results / "small/fold-0/validation"), str(study.root / "data/labels")]
    assert main(["evaluate", *folders, "--metrics", "hd95", "--allow-extra"]) == 1
    words = ["--cases", str(study.cases), "--splits", str(study.splits), "--split", "validation", "--fold", "0"]
    words += ["--setting", "small", "--output", str(study.root / "again.csv"), "--metrics", "hd95"]
    assert main(["evaluate", folders[0], *words]) == 0
    printed = capsys.readouterr().out
    assert "HD95 (mm)" in printed
    assert "95th percentile of the Hausdorff distance" in printed
    assert "DSC" not in printed
