"""Tolerances of NSD: those given in place of the ones in cases.json, and the file that says which were used."""

from __future__ import annotations

import json

import pandas
import pytest

from fake_study import evaluate_part
from megavoxel.cli import main
from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.evaluation.tolerances import scored_tolerances


def nsd(path) -> float:
    table = pandas.read_csv(path)
    return float(table[table["metric"] == "NSD"]["value"].mean())


def test_a_tolerance_that_is_given_takes_the_place_of_that_in_the_list_of_cases(scored, tmp_path):
    own, wide, same = (tmp_path / f"{name}.csv" for name in ("own", "wide", "same"))
    assert evaluate_part(scored, "small", "validation", "0", own) == 0
    assert evaluate_part(scored, "small", "validation", "0", wide, "--nsd-tolerance", "50") == 0
    same_words = ("--nsd-tolerance", "liver=1.5", "spleen=1.0", "kidney=3")
    assert evaluate_part(scored, "small", "validation", "0", same, *same_words) == 0
    assert nsd(wide) > nsd(own)
    assert same.read_text() == own.read_text()


def test_a_label_without_a_tolerance_is_named(scored, tmp_path, capsys):
    assert evaluate_part(scored, "small", "validation", "0", tmp_path / "a.csv", "--nsd-tolerance", "liver=2") == 1
    assert "no tolerance for spleen" in capsys.readouterr().err


def test_collected_scores_say_with_which_tolerances_they_were_made(scored, tmp_path):
    part, scores, tolerances = tmp_path / "a.csv", tmp_path / "scores.csv", tmp_path / "tolerances.json"
    assert evaluate_part(scored, "small", "validation", "0", part) == 0
    words = ["--nsd-tolerance", "2.5", "--tolerances", str(tolerances)]
    assert main(["evaluate", "--collect", str(part), *words, "--output", str(scores)]) == 0
    assert json.loads(tolerances.read_text()) == {"liver": 2.5, "spleen": 2.5}
    assert scored_tolerances(tmp_path, None) == {"liver": 2.5, "spleen": 2.5}


def test_without_that_file_the_list_of_cases_says_it(scored, tmp_path):
    assert scored_tolerances(tmp_path, load_cases(scored.cases)) == {"liver": 1.5, "spleen": 1.0}
    assert scored_tolerances(tmp_path, None) == {}


def test_a_damaged_file_of_tolerances_is_refused(tmp_path):
    (tmp_path / "tolerances.json").write_text('{"liver": "wide"}')
    with pytest.raises(UserError, match=r"tolerances\.json"):
        scored_tolerances(tmp_path, None)
