"""Tables between stages that were cut, at a line or anywhere else: one line says so, and no report is shorter."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from fake_study import FakeStudy
from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import read_scores
from megavoxel.files import table_text
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.notices import read_findings
from megavoxel.reporting.published import read_published
from megavoxel.tasks.classification.scores import read_probabilities, write_probabilities

LARGE = {"settings": ["large"], "ensembles": {}, "baseline": "large", "folds": {"large": [0, 1]}, "sweeps": []}
"""Keys of a definition with one model."""


@pytest.fixture
def study(scored, tmp_path) -> FakeStudy:
    """A copy that may be spoilt."""
    shutil.copytree(scored.root, tmp_path / "study")
    root = tmp_path / "study"
    results = root / "results"
    return FakeStudy(
        root=root, results=results, cases=results / "cases.json", splits=results / "splits.json",
        definition=root / "definition.json",
    )  # fmt: skip


def load(study: FakeStudy, **changes: object) -> object:
    definition = json.loads(study.definition.read_text()) | {"cases": str(study.cases)} | changes
    return load_stored(study.results, json.dumps(definition), need_cases=True)


def refusal(study: FakeStudy, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        load(study, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scores_cut_at_any_line_are_refused(study):
    path = study.results / "scores.csv"
    lines = path.read_text().splitlines(keepends=True)
    assert len(load(study).scores) == len(lines) - 1
    for count in range(1, len(lines)):
        path.write_text("".join(lines[:count]))
        assert str(path) in refusal(study), lines[count]


def test_scores_of_a_single_model_cut_at_any_line_are_refused(study):
    path = study.results / "scores.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    only = table[table["setting"] == "large"]
    only.to_csv(path, index=False)
    assert len(load(study, **LARGE).scores) == len(only)
    for count in range(len(only)):
        only.head(count).to_csv(path, index=False)
        assert str(path) in refusal(study, **LARGE)


def test_a_table_that_ends_within_a_line_is_refused_where_the_rest_of_the_line_would_do(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("setting,split,fold,case,label,metric,value\na,test,all,c,liver,DSC,0.987654\n")
    assert read_scores(path)["value"].item() == 0.987654
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UserError, match="it ends within a line, so it was cut"):
        read_scores(path)


def test_a_history_with_fewer_epochs_than_its_manifest_is_refused(study):
    path = study.results / "small/fold-0/history.csv"
    load(study)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert f"{path}: it has 2 epochs, and the manifest.json beside it says 3" in refusal(study)


def test_checks_without_a_line_of_a_case_are_refused(tmp_path):
    path = tmp_path / "checks.csv"
    path.write_text("case,check,severity,message\na,all,ok,sound\nb,finite,warning,odd\n")
    assert read_findings(path, ["a", "b"]) == [{"severity": "warning", "case": "b", "message": "odd"}]
    path.write_text("case,check,severity,message\na,all,ok,sound\n")
    with pytest.raises(UserError, match="there is no line of case b"):
        read_findings(path, ["a", "b"])


def test_probabilities_that_end_within_a_line_are_refused(tmp_path):
    path = tmp_path / "p.csv"
    write_probabilities(path, ["a"], ["x", "y"], [[0.25, 0.75]])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="it ends within a line"):
        read_probabilities(path)


def test_a_table_that_a_user_wrote_may_lack_the_end_of_its_last_line(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text("table,row,metric,value,source\nTable 1,large,seconds,2,x")
    assert len(read_published(path)) == 1


def test_an_empty_file_is_no_cut_line(tmp_path):
    (tmp_path / "empty.csv").touch()
    assert table_text(tmp_path / "empty.csv").read() == ""


def test_a_deleted_plan_is_named_by_the_report(study):
    (study.results / "small/plan.json").unlink()
    assert str(study.results / "small/plan.json") in refusal(study)
