"""`megavoxel report`: the numbers of the tables, the figures, and the page."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fake_study import ENSEMBLES, SETTINGS, TOLERANCES, FakeStudy, make_plan, report_study
from megavoxel.cli import main
from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import COLUMNS, read_scores
from megavoxel.planning.needs import JobNeeds, Needs
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.reporting.run_files import read_forecast

TABLES = (
    "summary",
    "comparison",
    "best",
    "ranking",
    "subgroups",
    "labels",
    "sweeps",
    "cost",
    "inference_time",
    "published",
)
FIGURES = ("dsc_by_label", "nsd_by_label", "training_curves", "dsc_against_memory", "sweep-patch")


@pytest.fixture
def fake(scored, tmp_path):
    """A copy that a test may change; its images are those of `scored`."""
    shutil.copytree(scored.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    return FakeStudy(
        root=tmp_path,
        results=tmp_path / "results",
        cases=scored.cases,
        splits=scored.splits,
        definition=scored.definition,
    )


def table(fake: FakeStudy, name: str) -> pd.DataFrame:
    return pd.read_csv(fake.results / f"report/tables/{name}.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_promised_file_is_there_and_nothing_else(reported):
    expected = {f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")}
    expected |= {f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    expected |= {f"figures/overlays/{name}.png" for name in (*SETTINGS, *ENSEMBLES)} | {"index.html"}
    expected |= {"methods.md", "references.bib", "claim.md"}
    expected |= {"figures/comparisons/comparison-all.png", "figures/comparisons/solid-all.png"}
    assert set(contents(reported.results / "report")) == expected


def test_summary_against_values_worked_out_by_hand(reported):
    summary = table(reported, "summary").set_index(["model", "split"])
    assert list(summary.index) == [
        (model, split) for split in ("validation", "test") for model in ("small", "large", "both")
    ]
    # Liver: shifted by 2 (small), 1 (large), 0 (both) of 6 voxels. Spleen: right in case_0 and case_2, missed in
    # case_1, in neither map of case_3. Means over labels within case_0 to case_3, then over the four.
    for model, liver in (("small", 4 / 6), ("large", 5 / 6), ("both", 1.0)):
        cases = [(liver + 1) / 2, (liver + 0) / 2, (liver + 1) / 2, liver]
        row = summary.loc[(model, "validation")]
        assert row["cases"] == 4
        assert row["both_empty"] == 1
        assert row["dsc_mean"] == pytest.approx(sum(cases) / 4)
        assert row["dsc_sd"] == pytest.approx((sum((case - sum(cases) / 4) ** 2 for case in cases) / 3) ** 0.5)
    # The liver counts half in three cases and fully in the fourth: 2.5 / 4 of its gain.
    assert summary.loc[("large", "validation"), "dsc_difference"] == pytest.approx(2.5 / 4 / 6)
    assert summary.loc[("both", "validation"), "dsc_difference"] == pytest.approx(2.5 / 4 / 3)
    assert summary.loc[("small", "validation"), "dsc_difference"] == 0.0
    # Four cases are too few for a test.
    assert summary["dsc_p"].isna().all()
    for (_, split), row in summary.iterrows():
        if split == "validation":
            assert row["dsc_low"] <= row["dsc_mean"] <= row["dsc_high"]
    assert np.isnan(summary.loc[("large", "test"), "dsc_low"])
    # A shift by 1 mm lies within the liver's tolerance of 1.5 mm.
    assert summary.loc[("large", "validation"), "nsd_mean"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    test = summary.loc[("large", "test")]
    assert (test["cases"], test["dsc_mean"]) == (1, pytest.approx((5 / 6 + 1) / 2))
    assert np.isnan(test["dsc_sd"])


def test_labels_against_values_worked_out_by_hand(reported):
    labels = table(reported, "labels").set_index(["split", "label", "model"])
    spleen = labels.loc[("validation", "spleen", "large")]
    assert (spleen["values"], spleen["both_empty"]) == (3, 1)
    assert spleen["dsc_mean"] == pytest.approx(2 / 3)
    assert spleen["dsc_sd"] == pytest.approx((((1 / 3) ** 2 * 2 + (2 / 3) ** 2) / 2) ** 0.5)
    assert labels.loc[("validation", "liver", "small"), "dsc_mean"] == pytest.approx(4 / 6)
    assert labels["tolerance_mm"].groupby("label").first().to_dict() == TOLERANCES
    assert len(labels) == 2 * 2 * 3


def test_cost_against_values_worked_out_by_hand(reported):
    cost = table(reported, "cost").set_index("setting")
    assert list(cost.index) == list(SETTINGS)
    assert cost.loc["large"].to_dict() == {
        "patch": "8x16x16",
        "batch": 2,
        "parameters": 1234567,
        "epochs": 3,
        "folds": 2,
        "devices": 5,
        "hours": pytest.approx(2 * 2400 / 3600),
        # Fold 0 used four devices, fold 1 five.
        "device_hours": pytest.approx((4 + 5) * 2400 / 3600),
        "peak_memory_mib": 300.0,
        "device_forecast_gib": pytest.approx(np.nan, nan_ok=True),
        "split": "test",
        "dsc": pytest.approx((5 / 6 + 1) / 2),
        "peak_gib": 1.625,
        "forecast_gib": 1.25,
    }
    assert cost.loc["small", "peak_memory_mib"] == 600.0
    # The manifests of the other setting do not state devices.
    assert cost.loc["small", "device_hours"] == cost.loc["small", "hours"]
    assert "Forecast of the job" not in (reported.results / "report/tables/cost.md").read_text()


@pytest.mark.slow
def test_the_forecast_beside_the_measured_memory_is_that_of_the_plan(fake):
    job = JobNeeds(minutes=1.0, memory_gib=2.0, cpus=None)
    path = fake.results / "small/plan.json"
    save_plan(path, replace(load_plan(path), needs=Needs(training=job, prediction=job, device_gib=0.75)))
    # What 'snakemake plan' wrote of another version of the study counts for nothing.
    (fake.results / "plan.tsv").write_text("setting\tpeak_gib\nsmall\t135\nlarge\t135\n")
    assert report_study(fake, "--tables-only") == 0
    cost = table(fake, "cost").set_index("setting")
    assert cost.loc["small", "device_forecast_gib"] == 0.75
    assert np.isnan(cost.loc["large", "device_forecast_gib"])
    # 600 MiB were measured.
    assert re.search(r"\| 0\.59 +\| 0\.75 +\| 0\.833", (fake.results / "report/tables/cost.md").read_text())


def test_a_damaged_forecast_is_named(tmp_path):
    (tmp_path / "plan.tsv").write_text("setting\tpatch\nsmall\t8x8x8\n")
    with pytest.raises(UserError, match=r"plan\.tsv: cannot be read as a forecast"):
        read_forecast(tmp_path / "plan.tsv")


def test_markdown_and_latex_show_the_same_rounded_numbers(reported):
    folder = reported.results / "report/tables"
    text = (folder / "summary.md").read_text()
    assert re.search(
        r"\| large +\| validation +\| 4 +\| 0\.771 ± 0\.239 \| 0\.\d{3} to 0\.\d{3} \| 0\.875 ± 0\.250", text
    )
    latex = (folder / "summary.tex").read_text()
    assert "large & validation & 4 & 0.771 $\\pm$ 0.239 & " in latex
    assert all(rule in latex for rule in ("\\toprule", "\\midrule", "\\bottomrule"))
    assert "There are no published numbers" in (folder / "published.md").read_text()


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(reported):
    before = contents(reported.results / "report")
    np.random.random(7)
    assert report_study(reported, dpi=150) == 0
    assert contents(reported.results / "report") == before


def test_tables_only_needs_no_images_and_gives_the_same_files(reported, fake):
    for folder in fake.results.rglob("validation"):
        shutil.rmtree(folder)
    data = load_cases(fake.cases)
    (fake.root / "cases.json").write_text(fake.cases.read_text().replace(data.root, "nowhere"))
    definition = json.loads(fake.definition.read_text()) | {"cases": str(fake.root / "cases.json")}
    words = ["--results", str(fake.results), "--definition", json.dumps(definition), "--tables-only"]
    assert main(["report", *words]) == 0
    found, whole = contents(fake.results / "report"), contents(reported.results / "report")
    assert found == {name: whole[name] for name in found}
    pictures = {name for name in whole if any(kind in name for kind in ("overlays", "comparisons", "training_curves"))}
    assert set(whole) - set(found) == {"index.html", *pictures}


def test_tables_only_does_without_the_list_of_cases(fake):
    definition = json.loads(fake.definition.read_text()) | {"cases": "absent.json"}
    words = ["--results", str(fake.results), "--definition", json.dumps(definition)]
    assert main(["report", *words, "--tables-only"]) == 0
    assert table(fake, "labels")["tolerance_mm"].isna().all()
    assert main(["report", *words]) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("small,validation,1,",), "no validation scores of small, fold 1"),
        (("both,test,all,",), "no test scores of both, fold all"),
        (("large,validation,0,case_1,",), "large, validation, fold 0: case case_1 has no DSC of liver"),
        (("large,validation,0,case_0,spleen,NSD",), "large, validation, fold 0: case case_0 has no NSD of spleen"),
        (("small,test,", "large,test,", "both,test,"), "no test scores of both, fold all (and 2 more)"),
    ],
)
def test_missing_scores_are_named(fake, capsys, lines, message):
    path = fake.results / "scores.csv"
    kept = [line for line in path.read_text().splitlines() if not line.startswith(lines)]
    path.write_text("\n".join(kept) + "\n")
    assert report_study(fake, "--tables-only") == 1
    assert message in capsys.readouterr().err


def test_a_case_that_two_folds_score_is_named(fake, capsys):
    path = fake.results / "scores.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *(line.replace(",0,", ",1,") for line in lines if ",0,case_0," in line)]) + "\n")
    assert report_study(fake, "--tables-only") == 1
    assert "case case_0 is scored more than once" in capsys.readouterr().err


@pytest.mark.slow
def test_models_outside_of_the_definition_are_left_out(fake):
    path = fake.results / "scores.csv"
    path.write_text(path.read_text() + "old,validation,0,case_0,liver,DSC,0.1\n")
    assert report_study(fake, "--tables-only") == 0
    assert set(table(fake, "summary")["model"]) == {"small", "large", "both"}


@pytest.mark.slow
def test_models_on_fewer_folds_are_compared_on_the_cases_that_they_share(fake):
    definition = json.loads(fake.definition.read_text())
    definition["folds"] |= {"large": [0], "both": [0]}
    words = ["--results", str(fake.results), "--definition", json.dumps(definition), "--tables-only"]
    assert main(["report", *words]) == 0
    summary = table(fake, "summary").set_index(["model", "split"])
    # In both cases of fold 0 the liver gains one of six voxels along x, and counts half.
    assert summary.loc[("large", "validation"), "dsc_difference"] == pytest.approx(1 / 12)
    assert summary["cases"].xs("validation", level="split").to_dict() == {"small": 4, "large": 2, "both": 2}


@pytest.mark.parametrize(
    ("missing", "message"), [("small/plan.json", "plan"), ("large/fold-1/history.csv", "no such history")]
)
def test_a_missing_file_of_a_run_is_named(fake, capsys, missing, message):
    (fake.results / missing).unlink()
    assert report_study(fake, "--tables-only") == 1
    error = capsys.readouterr().err
    assert missing in error
    assert message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "tiny"}, "baseline: there is no 'tiny'"),
        ({"ensembles": {"both": ["small", "tiny"]}}, "ensembles: there is no 'tiny'"),
        ({"folds": {"small": [0, 1], "large": [0, 1]}}, "folds: 'both' has none"),
        (
            {"sweeps": [{"name": "s", "title": "t", "points": {"1": ["tiny"]}}]},
            "sweeps: there is no 'tiny'; allowed: small, large, both",
        ),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_a_wrong_definition_is_explained(fake, capsys, change, message):
    definition = json.loads(fake.definition.read_text()) | change
    assert main(["report", "--results", str(fake.results), "--definition", json.dumps(definition)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_baseline_there_are_no_differences(fake):
    definition = json.loads(fake.definition.read_text()) | {"baseline": None}
    words = ["--results", str(fake.results), "--definition", json.dumps(definition), "--tables-only"]
    assert main(["report", *words]) == 0
    assert table(fake, "summary")["dsc_difference"].isna().all()
    assert "baseline" not in (fake.results / "report/tables/summary.md").read_text()


@pytest.mark.slow
def test_published_numbers_stand_beside_the_measured(fake):
    published = fake.root / "published.csv"
    published.write_text(
        "table,row,metric,value,source\n"
        "1,large,DSC,0.9,A et al. 2020\n1,large,DSC spleen,0.5,A et al. 2020\n2,huge,NSD,0.7,B et al. 2021\n"
    )
    assert report_study(fake, "--tables-only", "--published", str(published)) == 0
    found = table(fake, "published")
    # The test split is scored, so that it is the one to compare with.
    assert set(found["split"]) == {"test"}
    assert found["measured"].tolist()[:2] == [pytest.approx((5 / 6 + 1) / 2), 1.0]
    assert found["difference"].tolist()[:2] == [pytest.approx((5 / 6 + 1) / 2 - 0.9), 0.5]
    assert np.isnan(found["measured"][2])
    assert "| B et al. 2021" in (fake.results / "report/tables/published.md").read_text()


@pytest.mark.parametrize("content", ["row,value\na,1\n", "table,row,metric,value,source\n1,large,DSC,high,x\n"])
def test_wrong_published_numbers_are_named(fake, capsys, content):
    published = fake.root / "published.csv"
    published.write_text(content)
    assert report_study(fake, "--tables-only", "--published", str(published)) == 1
    assert str(published) in capsys.readouterr().err


@pytest.mark.slow
def test_sixty_thousand_scores_become_tables(tmp_path):
    models, labels, folds = [f"setting-{number}" for number in range(10)], [f"organ {n}" for n in range(15)], range(5)
    keys = pd.MultiIndex.from_product([models, range(200), labels, ["DSC", "NSD"]])
    scores = keys.to_frame(index=False, name=["setting", "case", "label", "metric"])
    scores["value"] = np.random.default_rng(0).beta(20, 2, len(scores))
    scores = scores.assign(split="validation", fold=scores["case"] % 5)[COLUMNS]
    assert len(scores) == 60_000
    history = pd.DataFrame({"epoch": range(1, 1001), "training_loss": 0.5, "validation_loss": 0.6, "pseudo_dice": 0.7})
    for model in models:
        save_plan(tmp_path / model / "plan.json", make_plan(model, patch=(8, 8, 8)))
        for fold in folds:
            (tmp_path / model / f"fold-{fold}").mkdir()
            history.assign(seconds=9.0, peak_memory_mib=1.0).to_csv(tmp_path / model / f"fold-{fold}/history.csv")
            peak = {"gib": 1.0 + fold, "how": "tracked tensors of the first step", "forecast_gib": 5.0}
            (tmp_path / model / f"fold-{fold}/manifest.json").write_text(json.dumps({"peak_memory": peak}))
    scores.to_csv(tmp_path / "scores.csv", index=False)
    definition = {"study": "s", "dataset": "d", "settings": models, "ensembles": {}, "cases": "absent.json"}
    definition["folds"] = {model: list(folds) for model in models}
    words = ["--results", str(tmp_path), "--definition", json.dumps(definition), "--tables-only"]
    assert main(["report", *words]) == 0
    assert len(read_scores(tmp_path / "scores.csv")) == 60_000
