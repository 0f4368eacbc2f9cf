"""The draft of a paper's methods says what plans and scores say, and cites what the study has used and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from fake_study import FakeStudy, make_study, report_study
from megavoxel.config.setting import Parallel
from megavoxel.reporting import references
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.methods import Methods
from megavoxel.reporting.references import USED, author_and_year, used_references


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    fake = make_study(tmp_path_factory.mktemp("study"))
    assert report_study(fake, "--tables-only") == 0
    return fake


def test_every_entry_has_a_rule_and_the_fields_that_bibtex_needs():
    entries = references._entries()
    assert list(entries) == list(USED)
    for key, entry in entries.items():
        assert re.fullmatch(r"@(article|inproceedings|misc)\{[a-z0-9]+,\n(  [a-z]+ = \{.*\},\n)+\}", entry), key
        fields = dict(re.findall(r"^  ([a-z]+) = \{(.*)\},$", entry, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), key
        assert fields["year"] in key
        assert {"article": "journal", "inproceedings": "booktitle"}.get(entry[1:].partition("{")[0], "title") in fields
        assert entry.count("{") == entry.count("}")


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("isensee2021nnunet", "Isensee et al. 2021"), ("kingma2015adam", "Kingma and Ba 2015"),
        ("dice1945", "Dice 1945"), ("moelder2021snakemake", "Mölder et al. 2021"),
    ],
)  # fmt: skip
def test_an_entry_is_named_by_authors_and_year(key, named):
    assert author_and_year(references._entries()[key]) == named


def test_the_files_cite_each_other_and_state_the_plans(study):
    text = (study.results / "report/methods.md").read_text()
    entries = (study.results / "report/references.bib").read_text()
    keys = set(re.findall(r"^@\w+\{(\w+),", entries, re.MULTILINE))
    assert set(re.findall(r"@(\w+)", text)) == keys
    assert {"isensee2021nnunet", "dice1945", "nikolov2021", "wilcoxon1945", "holm1979"} <= keys
    assert not keys & {"wang2022meunet", "zhu2020lamp", "guo2017calibration", "he2016resnet", "shit2021cldice"}
    plan = json.loads((study.results / "small/plan.json").read_text())
    assert f"batches of {plan['batch']}" in text
    assert f"a learning rate of {plan['training']['learning_rate']:g}" in text
    assert "To be added by the authors" in text


def test_what_a_setting_has_beside_a_plain_network_is_told_and_cited(study):
    stored = load_stored(study.results, str(study.definition), need_cases=True)
    changed = stored.plans["small"]
    expanded = tuple(size + 8 for size in changed.patch)
    plans = stored.plans | {
        "small": replace(changed, expanded_patch=expanded, parallel=Parallel(checkpointing="blocks"), stage1=("large",))
    }
    stored = replace(stored, plans=plans)
    assert {"wang2022meunet", "chen2016sublinear"} <= set(used_references(stored))
    told = Methods(stored=stored, markdown=False).paragraphs()
    assert "given the label maps of large" in told["Networks"]
    assert "(Wang et al. 2022)" in told["Networks"]
    assert "(Chen et al. 2016)" in told["Training"]
    assert "large:" in told["Networks"], "settings that differ are told apart"


def test_the_checklist_has_every_item_and_leaves_to_authors_what_no_file_knows(study):
    lines = (study.results / "report/claim.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\|\s*\d+", line)]
    items = {int(number): (topic, told) for number, topic, told in rows}
    assert list(items) == list(range(1, 43))
    assert items[1] == ("", "to be filled in by the authors")
    topic, told = items[28]
    assert topic == "Metrics"
    assert told.startswith("DSC")
