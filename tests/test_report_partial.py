"""Reports of studies that are not finished, and of runs and scores that do not belong together."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from fake_study import FakeStudy, evaluate_part, report_study
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.provenance import differing, provenance_table, without_manifest

pytestmark = pytest.mark.slow


@pytest.fixture
def fake(scored, tmp_path) -> FakeStudy:
    """A copy that a test may change, with the score files of its parts; its images are those of `scored`."""
    shutil.copytree(scored.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    copy = FakeStudy(
        root=tmp_path,
        results=tmp_path / "results",
        cases=scored.cases,
        splits=scored.splits,
        definition=scored.definition,
    )
    for (model, split, fold), part in pd.read_csv(scored.results / "scores.csv", dtype={"fold": str}).groupby(
        ["setting", "split", "fold"]
    ):
        name = "scores-test.csv" if split == "test" else f"fold-{fold}/scores.csv"
        part.to_csv(copy.model(model) / name, index=False)
    (copy.results / "scores.csv").unlink()
    return copy


def page(fake: FakeStudy) -> str:
    return (fake.results / "report/index.html").read_text()


def summary(fake: FakeStudy) -> pd.DataFrame:
    return pd.read_csv(fake.results / "report/tables/summary.csv").set_index(["model", "split"])


def change_manifest(fake: FakeStudy, run: str, **values) -> None:
    path = fake.results / run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_study_is_said_to_be_whole(reported):
    assert "Every setting, ensemble, fold and case that the study asks for was run and scored." in page(reported)


def test_a_fold_that_was_not_trained_is_named_and_the_others_reported(fake, capsys):
    (fake.results / "large/fold-1/history.csv").unlink()
    assert report_study(fake, "--partial") == 0
    assert "left out: large, fold 1: not trained to its end (no history.csv)" in capsys.readouterr().out
    assert "not of the whole study: 1 part is missing" in page(fake)
    assert "large, fold 1: not trained to its end" in page(fake)
    assert summary(fake)["cases"].xs("validation", level="split").to_dict() == {"small": 4, "large": 2, "both": 4}


def test_a_model_without_any_fold_takes_its_ensemble_and_its_points_along(fake):
    for fold in (0, 1):
        (fake.results / f"large/fold-{fold}/scores.csv").unlink()
    assert report_study(fake, "--partial") == 0
    assert set(summary(fake).index.get_level_values("model")) == {"small"}
    text = page(fake)
    for line in (
        "large, fold 0: not scored",
        "large, fold 1: not scored",
        "both: left out, for its member large is missing",
        "sweep patch: point (8, 16, 16) is left out",
        "sweep patch: point both is left out",
    ):
        assert line in text


def test_without_the_baseline_there_are_no_differences(fake):
    (fake.results / "small/plan.json").unlink()
    assert report_study(fake, "--partial") == 0
    assert "small, fold 0: not planned" in page(fake)
    assert "small: it is the baseline, so that there are no differences and no tests" in page(fake)
    assert summary(fake)["dsc_difference"].isna().all()


def test_a_case_that_one_model_lacks_is_left_out_for_all(fake):
    path = fake.results / "large/fold-0/scores.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if ",case_0," not in line) + "\n")
    assert report_study(fake, "--partial") == 0
    assert "case case_0 (validation, fold 0): not scored in full for large; left out for all models" in page(fake)
    assert set(summary(fake)["cases"].xs("validation", level="split")) == {3}


def test_missing_test_scores_leave_the_model_out(fake):
    (fake.model("both") / "scores-test.csv").unlink()
    assert report_study(fake, "--partial") == 0
    assert "both: its test cases were not scored" in page(fake)
    assert set(summary(fake).index.get_level_values("model")) == {"small", "large"}


def test_nothing_scored_is_an_error(fake, capsys):
    for path in fake.results.rglob("scores*.csv"):
        path.unlink()
    assert report_study(fake, "--partial") == 1
    assert "nothing of this study was scored yet" in capsys.readouterr().err


def test_without_the_option_a_missing_part_is_an_error(fake, capsys):
    assert report_study(fake) == 1
    assert "no such score file" in capsys.readouterr().err


def test_scores_of_cases_that_the_study_does_not_have_are_refused_or_left_out(scored, tmp_path, capsys):
    shutil.copytree(scored.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    path = tmp_path / "results/scores.csv"
    rows = [f"{model},validation,0,stranger,{label},{metric},0.5\n" for model in ("small", "large", "both")
            for label in ("liver", "spleen") for metric in ("DSC", "NSD")]  # fmt: skip
    path.write_text(path.read_text() + "".join(rows) + "old,validation,0,case_0,liver,DSC,0.1\n")
    words = {"root": tmp_path, "results": tmp_path / "results", "cases": scored.cases, "splits": scored.splits}
    fake = FakeStudy(**words, definition=scored.definition)
    assert report_study(fake, "--tables-only") == 1
    assert "scores of 1 cases that the study does not have: stranger (validation)" in capsys.readouterr().err
    assert report_study(fake, "--allow-extra") == 0
    assert "scores of cases that the study does not have: stranger (validation)" in page(fake)
    assert "scores of old: not in the study&#39;s definition" in page(fake)
    assert summary(fake)["cases"].max() == 4


def test_a_test_case_among_validation_scores_is_refused(fake, capsys):
    assert evaluate_part(fake, "small", "validation", "0", fake.results / "small/fold-0/scores.csv") == 0
    path = fake.results / "small/fold-0/scores.csv"
    path.write_text(path.read_text().replace("case_0", "case_4"))
    assert report_study(fake, "--partial") == 1
    assert "does not have: case_4 (validation)" in capsys.readouterr().err


def test_runs_made_with_other_software_or_data_are_named(fake, scored):
    shutil.copy(scored.results / "scores.csv", fake.results)
    change_manifest(fake, "large/fold-1", versions={"python": "3.11.4", "torch": "2.12.0"})
    change_manifest(fake, "small/fold-0", container={"path": "gpu.sif", "digest": "sha256:12ab"})
    change_manifest(fake, "large/fold-0", container=None)
    (fake.results / "small/fold-1/manifest.json").unlink()
    stored = load_stored(fake.results, str(fake.definition), need_cases=True)
    lines = differing(stored)
    assert "versions.torch: 2.13.0 (2 of 4: small fold 0, large fold 0); 2.12.0 (1 of 4: large fold 1)" in lines
    assert {line for line in lines if line.startswith("container")} == {
        "container: none (1 of 4: large fold 0); not recorded (1 of 4: large fold 1)",
        "container.path: gpu.sif (1 of 4: small fold 0); none (1 of 4: large fold 0); "
        "not recorded (1 of 4: large fold 1)",
        "container.digest: sha256:12ab (1 of 4: small fold 0); none (1 of 4: large fold 0); "
        "not recorded (1 of 4: large fold 1)",
    }
    assert not any(line.startswith("versions.python") for line in lines)
    assert without_manifest(stored) == ["small fold 1"]
    assert report_study(fake) == 0
    assert "The runs were not all made with the same." in page(fake)
    assert "nothing is known of: small fold 1" in page(fake)


def test_what_all_runs_share_stands_once(reported):
    stored = load_stored(reported.results, str(reported.definition), need_cases=True)
    table = provenance_table(stored).set_index("Entry")
    assert table.loc["versions.torch"].tolist() == ["2.13.0", "all"]
    assert table.loc["seed"].tolist() == ["7", "all"]
    # Four runs of 2400 seconds.
    assert table.loc["training hours, all runs", "Value"] == "2.67"
    assert differing(stored) == []
