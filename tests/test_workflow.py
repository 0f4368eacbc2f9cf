"""The workflow itself: dry runs of every shipped study, a tiny study to its end, and what a user does next."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from workflow_runs import PHANTOM, snakemake

TINY = {
    "study": "tiny",
    "folds": 2,
    "baseline": "first",
    "timing": {"repeats": 2, "split": "validation"},
    "confidence": True,
    "defaults": {
        "patch": [8, 16, 16],
        "batch": 2,
        "network": {"base_features": 4, "levels": 3},
        "training": {
            "epochs": 2, "iterations_per_epoch": 4, "validation_iterations": 1, "workers": 0, "precision": "float32",
            "checkpoint_minutes": 0,
        },
    },
    "settings": {
        "first": {},
        "second": {"patch": [1, 16, 16], "preprocessing": {"dimensions": 2}},
        "alone": {"folds": [1], "postprocess": False, "start": "first", "inference": {"window": "whole"}},
        "context": {"expansion": {"factor": 1.5}, "training": {"patience": 2}, "inference": {"weights": "centre"}},
        "refined": {"stage1": ["first", "context"]},
    },
    "ensembles": {"both": {"members": ["first", "second"]}},
}  # fmt: skip

pytestmark = pytest.mark.slow


def shipped_studies() -> list[str]:
    root = Path(__file__).parents[1]
    return ["config/config.yaml", *(str(path.relative_to(root)) for path in sorted(root.glob("config/studies/*.yaml")))]


@pytest.mark.parametrize("study", shipped_studies())
def test_every_shipped_study_plans_without_data(repository, tmp_path, study):
    values = yaml.safe_load((repository / study).read_text())
    for keys in filter(None, values.get("settings", {}).values()):
        if isinstance(keys.get("start"), dict):
            (tmp_path / keys["start"]["file"]).parent.mkdir(parents=True)
            (tmp_path / keys["start"]["file"]).touch()
    done = snakemake(repository, tmp_path, "--configfile", str(repository / study), "-n")
    assert done.returncode == 0, done.stderr

    def written(setting: str, key: str, otherwise: object) -> object:
        keys = values["settings"][setting] or {}
        if key not in keys and "inherits" in keys:
            return written(keys["inherits"], key, otherwise)
        return keys.get(key, values.get("defaults", {}).get(key, otherwise))

    runs = sum(
        len(written(name, "folds", range(values["folds"]))) * len(written(name, "seeds", [1]))
        for name in values.get("settings", {})
    )
    for entry in values.get("grid", []):
        cells = math.prod(len(value) for key, value in entry.items() if isinstance(value, list))
        runs += cells * len(values["defaults"].get("seeds", [1]))
    counted = next(line.split()[1] for line in (done.stdout + done.stderr).splitlines() if line.startswith("train "))
    assert int(counted) == runs


def test_the_study_given_replaces_the_demo(repository, tmp_path):
    done = snakemake(repository, tmp_path, "--configfile", str(repository / "config/studies/hippocampus.yaml"), "-n")
    assert "large-patch" not in done.stdout + done.stderr


def test_the_forecast_is_printed_each_time_without_data(repository, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(PHANTOM))
    auto = {**TINY["settings"], "chosen": {"parallel": "auto"}}
    study = {**TINY, "dataset": "small.yaml", "settings": auto}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    for _ in range(2):
        done = snakemake(repository, tmp_path, "plan", "--configfile", "study.yaml")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^ *chosen .* yes$", done.stdout, re.MULTILINE), done.stdout
    with (tmp_path / "results/tiny/plan.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["setting"] for row in rows] == list(auto)
    assert rows[-1]["reason"] == "plain training fits"
    assert not (tmp_path / "data").exists()


def test_a_typo_ends_the_dry_run_with_one_line(repository, tmp_path):
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump({**TINY, "dataset": "phantom", "ensembels": {}}))
    done = snakemake(repository, tmp_path, "--configfile", "typo.yaml", "-n")
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "profile" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("Error: typo.yaml: ensembels: unknown key 'ensembels'; allowed: ")
    assert "did you mean 'ensembles'?" in lines[0]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (
            "study: a\nsettings:\n  b: [1, 2\n  c: 3\n",
            "--configfile study.yaml",
            "line 4, column 4: did not find",
        ),
        ("study: a\n\tsettings: {}\n", "--configfile=study.yaml", "line 2, column 1: found a tab"),
        ('{"study": "a",', "--configfiles study.yaml", "line 2, column 1: did not find expected node"),
        ("study: a\nstudy: b\n", "--configfile study.yaml", "line 2: the key 'study' is there twice"),
        ('{"a": {"b": 1,\n "b": 2}}', "--configfiles study.yaml", "line 2: the key 'b' is there twice"),
        ("study: a\nstudy: b\n", "--configfile study.yaml --workflow-profile none", "line 2: the key 'study' is there"),
        ("study: a\n", "--configfile missing.yaml", "missing.yaml: no such file"),
        ("- study\n", "--configfile study.yaml", "study.yaml: expected a mapping"),
    ],
)
def test_a_study_file_that_cannot_be_read_is_named_with_the_line(repository, tmp_path, text, words, message):
    (tmp_path / "study.yaml").write_text(text)
    done = snakemake(repository, tmp_path, *words.split(), "-n")
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "workflow specific profile" not in line]
    assert line.startswith("Error: ")
    assert ".yaml: " in line
    assert message in line


def test_a_study_file_in_json_with_tabs_is_taken(repository, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({**TINY, "dataset": "phantom"}, indent="\t"))
    done = snakemake(repository, tmp_path, "--configfile", "study.json", "-n")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory) -> Path:
    """A tiny phantom study, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "phantom.yaml").write_text(yaml.safe_dump(PHANTOM))
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "dataset": "phantom.yaml"}))
    done = snakemake(repository, folder, "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nboth     test " in done.stdout
    assert done.stdout.rstrip().endswith("report: results/tiny/report/index.html")
    return folder


def test_a_study_runs_from_nothing_to_its_report(finished):
    results = finished / "results/tiny"
    for name in (
        "checks.csv", "cases.json", "fingerprint.json", "splits.json", "scores.csv", "report/index.html",
        "report/tables/summary.csv", "report/tables/summary.md", "report/tables/summary.tex",
        "report/figures/dsc_by_label.svg", "report/figures/training_curves.png", "report/figures/overlays/both.png",
        "first/plan.json", "first/postprocessing.json", "first/fold-0/model.pt", "first/fold-0/history.csv",
        "first/fold-0/manifest.json", "ensembles/both/postprocessing.json",
    ):  # fmt: skip
        assert (results / name).stat().st_size > 0, name


def test_every_case_label_and_metric_is_scored_once(finished):
    with (finished / "results/tiny/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["setting", "split", "fold", "case", "label", "metric", "value"]
    keys = [(row["setting"], row["split"], row["case"], row["label"], row["metric"]) for row in rows]
    assert len(keys) == len(set(keys))
    # 4 labels and 2 metrics; first, second, context, refined, both: 4 validation cases and 1 test case; alone: 2 and 1
    assert len(rows) == 4 * 2 * (5 * 5 + 3)
    assert {row["fold"] for row in rows if row["split"] == "test"} == {"all"}
    assert all(row["value"] == "" or 0 <= float(row["value"]) <= 1 for row in rows)


def test_no_second_stage_was_given_labels_by_a_network_that_saw_the_case(finished):
    """For every fold of `refined`: which network labelled a case, and what it was trained on by its own manifest."""
    results = finished / "results" / "tiny"

    def seen(setting: str, fold: int) -> set[str]:
        return set(json.loads((results / setting / f"fold-{fold}" / "manifest.json").read_text())["data"]["training"])

    labelled_by = {
        path.name.removesuffix(".stage1.b2nd"): fold
        for fold in range(2)
        for path in (results / "refined" / "stage1" / f"fold-{fold}").iterdir()
    }
    for fold in range(2):
        cases = seen("refined", fold)
        assert cases
        assert cases <= set(labelled_by)
        for case in cases:
            for first in ("first", "context"):
                assert case not in seen(first, labelled_by[case])
                assert (results / first / f"fold-{labelled_by[case]}" / "validation" / f"{case}.nii.gz").is_file()


def test_a_setting_begins_with_the_weights_of_another_ones_same_fold(finished):
    results = finished / "results/tiny"
    start = json.loads((results / "alone/fold-1/manifest.json").read_text())["data"]["start"]
    weights = hashlib.sha256((results / "first/fold-1/model.pt").read_bytes()).hexdigest()
    assert start == {"setting": "first", "weights_sha256": weights}


def test_every_setting_is_timed_in_its_own_windows(finished):
    with (finished / "results/tiny/timings.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Twice each of 4 validation cases, of which fold 1, the only one of `alone`, has 2.
    counts = Counter((row["setting"], row["window"]) for row in rows)
    assert counts == {
        ("first", "8x16x16"): 8,
        ("second", "1x16x16"): 8,
        ("alone", "whole"): 4,
        ("context", "8x16x16"): 8,
        ("refined", "8x16x16"): 8,
    }
    with (finished / "results/tiny/report/tables/inference_time.csv").open() as file:
        cases = {row["setting"]: row["cases"] for row in csv.DictReader(file)}
    assert cases == {"first": "4", "second": "4", "alone": "2", "context": "4", "refined": "4"}
    assert (finished / "results/tiny/report/figures/dsc_against_seconds.png").is_file()


def test_every_setting_has_its_temperature_and_calibration_errors(finished):
    results = finished / "results/tiny"
    with (results / "report/tables/confidence.csv").open() as file:
        rows = {(row["setting"], row["split"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(setting, split) for setting in TINY["settings"] for split in ("validation", "test")}
    for setting in TINY["settings"]:
        found = json.loads((results / setting / "temperature.json").read_text())
        alone = setting == "alone"
        assert (found["cases"], len(found["of_other_folds"])) == ((2, 0) if alone else (4, 2))
        assert rows[setting, "test"]["disagreement"] == "" or not alone, "one network does not disagree"
        assert float(rows[setting, "test"]["temperature_low"]) == found["temperature"]
    with (results / "report/tables/reliability.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"liver", "stomach", "aorta", "gland"}
    assert 'id="confidence-heading"' in (results / "report/index.html").read_text()


def test_predictions_lie_on_the_grid_of_their_images(finished):
    import nibabel
    import numpy as np

    cases = json.loads((finished / "results/tiny/cases.json").read_text())["cases"]
    for case in cases:
        image = nibabel.load(finished / "data/small-phantom" / case["images"][0])
        folder = "test" if case["split"] == "test" else "fold-*/validation"
        maps = list((finished / "results/tiny/first").glob(f"{folder}/{case['id']}.nii.gz"))
        assert len(maps) == 1
        prediction = nibabel.load(maps[0])
        assert prediction.shape == image.shape
        np.testing.assert_allclose(prediction.affine, image.affine, atol=1e-5)


def test_nothing_is_left_of_logits_and_partial_files(finished):
    left = [path for path in (finished / "results").rglob("*") if "logits" in path.name or ".partial" in path.name]
    assert left == []


def test_a_finished_study_has_nothing_to_do(repository, finished):
    done = snakemake(repository, finished, "--configfile", "tiny.yaml", "-n")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_change_of_one_setting_runs_that_setting_only(repository, finished):
    changed = {**TINY, "dataset": "phantom.yaml", "settings": {**TINY["settings"], "alone": {"folds": [1], "batch": 1}}}
    (finished / "changed.yaml").write_text(yaml.safe_dump(changed))
    done = snakemake(repository, finished, "--configfile", "changed.yaml", "-n")
    output = done.stdout + done.stderr
    assert "results/tiny/alone/plan.json" in output
    assert "results/tiny/first/plan.json\n    log" not in output
    jobs = dict(line.split()[:2] for line in output.splitlines() if line.startswith(("train ", "plan_setting ")))
    assert jobs == {"train": "1", "plan_setting": "1"}


def test_tables_come_again_from_the_scores_alone(repository, finished, tmp_path):
    results = tmp_path / "results/tiny"
    kept = [*(finished / "results/tiny").rglob("*.csv"), *(finished / "results/tiny").rglob("*.json")]
    for path in kept:
        if "report" not in path.parts and "preprocessed" not in path.parts:
            target = results / path.relative_to(finished / "results/tiny")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(finished / "tiny.yaml", tmp_path)
    shutil.copy(finished / "phantom.yaml", tmp_path)
    done = snakemake(repository, tmp_path, "tables", "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("^best by cross-validation: (first|second|context|refined|both) ", done.stdout, re.MULTILINE)
    for table in ("summary.csv", "labels.tex", "cost.md", "best.csv"):
        expected = (finished / "results/tiny/report/tables" / table).read_bytes()
        assert (results / "report/tables" / table).read_bytes() == expected


def test_snakemake_makes_its_own_report_with_captions_and_categories(repository, finished, tmp_path):
    done = snakemake(repository, finished, "--configfile", "tiny.yaml", "--report", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "report.html").read_text()
    for word in (
        "index.html",
        "comparison.csv",
        "training_curves.png",
        "paired bootstrap interval",
        "Overlays",
        "Figures",
    ):
        assert word in text


def test_a_page_comes_of_what_there_is_of_a_study(repository, finished, tmp_path):
    shutil.copytree(finished / "results", tmp_path / "results", ignore=shutil.ignore_patterns("report", "preprocessed"))
    for name in ("tiny.yaml", "phantom.yaml"):
        shutil.copy(finished / name, tmp_path)
    shutil.copytree(finished / "data", tmp_path / "data", symlinks=True)
    (tmp_path / "results/tiny/context/fold-1/history.csv").unlink()
    done = snakemake(repository, tmp_path, "partial_report", "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "results/tiny/report/index.html").read_text()
    assert "context, fold 1: not trained to its end" in page


def test_a_damaged_image_ends_the_study_with_its_name(repository, finished, tmp_path):
    shutil.copytree(finished / "data/small-phantom", tmp_path / "source", symlinks=False)
    image = next((tmp_path / "source/imagesTr").glob("*.nii.gz"))
    image.write_bytes(image.read_bytes()[:2000])
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump({"name": "broken", "source": {"folder": "source"}}))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "dataset": "broken.yaml"}))
    done = snakemake(repository, tmp_path, "--configfile", "tiny.yaml")
    assert done.returncode != 0
    assert image.name in done.stdout + done.stderr
    assert not (tmp_path / "results/tiny/cases.json").exists()
    with (tmp_path / "results/tiny/checks.csv").open() as file:
        faults = [row for row in csv.DictReader(file) if row["severity"] == "error"]
    assert [row["case"] for row in faults] == [image.name.removesuffix(".nii.gz")]


def test_new_images_are_predicted_by_hand(finished, tmp_path):
    from megavoxel.cli import main

    results = finished / "results/tiny/first"
    image = next((finished / "data/small-phantom/imagesTs").glob("*.nii.gz"))
    weights = [str(path) for path in sorted(results.glob("fold-*/model.pt"))]
    arguments = ["--plan", str(results / "plan.json"), "--weights", *weights, "--device", "cpu", "--threads", "1"]
    assert main(["predict", *arguments, "--input", str(image), "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {image.name, "prediction.json"}


def test_every_rule_says_where_it_logs_what_it_needs_and_in_what_it_runs(repository):
    text = "\n".join(path.read_text() for path in sorted((repository / "workflow/rules").glob("*.smk")))
    rules = {block.split(":", 1)[0]: block for block in re.split(r"(?m)^rule (?=\w+:)", text)[1:]}
    assert {"fetch", "check", "preprocess", "train", "predict_validation", "report", "tables"} <= set(rules)
    for name, block in rules.items():
        for directive in ("log", "resources", "container", "conda", "shell"):
            assert f"    {directive}:\n" in block, f"{name} has no {directive}"
        # The file of a benchmark would count as made, and a target that is asked for by name would run once only.
        assert ("    benchmark:\n" in block) == (name not in ("plan", "tables", "partial_report")), name


def test_no_rule_computes(repository):
    for path in (repository / "workflow/rules").glob("*.smk"):
        assert not re.search(r"(?m)^    (run|script):", path.read_text()), path
