"""`megavoxel crate`: the crate has what the study's files have, no image and no page, and other programs accept it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_study import FakeStudy, make_study, report_study
from megavoxel.cli import main

STUDY = """study: fake
dataset: {dataset}
folds: 2
settings: {{small: {{}}, large: {{}}}}
ensembles: {{both: {{members: [small, large]}}}}
"""
DATASET = "name: boxes\nsource: {phantom: {training_cases: 6, seed: 7}}\nreference: Author 2020\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    fake = make_study(tmp_path_factory.mktemp("study"))
    assert report_study(fake, "--tables-only") == 0
    (fake.root / "boxes.yaml").write_text(DATASET)
    (fake.root / "fake.yaml").write_text(STUDY.format(dataset=fake.root / "boxes.yaml"))
    return fake


def pack(study: FakeStudy, output: Path, *options: str) -> int:
    return main(
        ["crate", str(study.results), "--study", str(study.root / "fake.yaml"), "--output", str(output), *options]
    )


@pytest.fixture(scope="module")
def crate(study, tmp_path_factory) -> Path:
    pytest.importorskip("rocrate", reason="rocrate is not installed: pip install 'megavoxel[crate]'")
    output = tmp_path_factory.mktemp("crates") / "crate"
    person = ["--author", "Ada Example", "--orcid", "https://orcid.org/0000-0002-1825-0097"]
    assert pack(study, output, *person, "--licence", "https://creativecommons.org/licenses/by/4.0/") == 0
    return output


@pytest.fixture(scope="module")
def entities(crate) -> dict[str, dict]:
    graph = json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    return {entity["@id"]: entity for entity in graph}


def identifiers(value) -> set[str]:
    return {one["@id"] for one in (value if isinstance(value, list) else [value])}


def test_every_training_has_its_files_and_the_software_of_its_manifest(study, entities):
    actions = {own["name"]: own for own in entities.values() if own["@type"] == "CreateAction"}
    trainings = {f"Training of {setting}, fold {fold}" for setting in ("small", "large") for fold in (0, 1)}
    assert set(actions) == trainings | {"Study fake"}
    one = actions["Training of large, fold 1"]
    assert identifiers(one["result"]) == {f"results/large/fold-1/{name}" for name in ("history.csv", "manifest.json")}
    assert {"results/large/plan.json", "results/splits.json", "#dataset"} <= identifiers(one["object"])
    manifest = json.loads((study.results / "large/fold-1/manifest.json").read_text())
    needed = entities[one["instrument"]["@id"]]["softwareRequirements"]
    versions = {entities[own]["name"]: entities[own]["softwareVersion"] for own in identifiers(needed)}
    assert versions == manifest["versions"]
    assert all("url" in entities[own] for own in identifiers(needed))
    assert "parameters: 1234567" in one["description"]
    assert "endTime" not in one, "this manifest does not say when it was written"
    assert actions["Study fake"]["instrument"] == {"@id": "Snakefile"}
    assert {"results/scores.csv", "results/report/methods.md"} <= identifiers(actions["Study fake"]["result"])
    assert entities["#dataset"]["citation"] == "Author 2020"


def test_files_are_those_of_the_study_and_show_no_image(study, crate, entities):
    for path in crate.rglob("results/**/*"):
        if path.is_file():
            assert path.read_bytes() == (study.results / path.relative_to(crate / "results")).read_bytes()
    files = {str(path.relative_to(crate)) for path in crate.rglob("*") if path.is_file()}
    assert files - set(entities) == set()
    assert {Path(name).suffix for name in files} <= {".csv", ".json", ".md", ".bib", ".yaml", ".smk", ""}


def test_the_validator_of_the_profile_accepts_it(crate):
    program = shutil.which("rocrate-validator")
    if program is None:
        pytest.skip("rocrate-validator is not installed: pip install roc-validator, in an environment of its own")
    profile = ["--profile-identifier", "workflow-run-crate", "--requirement-severity", "REQUIRED"]
    done = subprocess.run(
        [program, "-y", "--disable-color", "validate", "--no-paging", *profile, str(crate)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "URLError" in done.stdout:
        pytest.skip("rocrate-validator fetches the context of RO-Crate, and there is no network")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_of_another_plan_is_refused(study, tmp_path, capsys):
    pytest.importorskip("rocrate")
    path = study.results / "small/fold-1/manifest.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"plan_hash": "other"}))
    try:
        assert pack(study, tmp_path / "crate") == 1
    finally:
        path.write_text(before)
    assert "small, fold 1: trained with plan other" in capsys.readouterr().err
    assert not (tmp_path / "crate").exists()


def test_without_the_package_it_is_said_what_to_install(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    assert pack(study, tmp_path / "crate") == 1
    assert "pip install 'megavoxel[crate]'" in capsys.readouterr().err
