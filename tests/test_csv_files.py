"""CSV files: no text becomes a formula in a spreadsheet, and each comes back as it was."""

from __future__ import annotations

import csv

import matplotlib as mpl
import pandas as pd
import pytest

from megavoxel.csv_files import as_written, write_csv
from megavoxel.evaluation.tidy import read_scores, write_scores
from megavoxel.reporting.style import empty_figure, figure_style, save_figure

TEXTS = [
    "=cmd|' /C calc'!A0", "+1", "-2", "@SUM(A1)", "\ttab", "'=quoted", "''-twice", "'plain", "liver", "",
    "a=b", "名", "1e3", "NA",
]  # fmt: skip


def test_texts_come_back_and_none_begins_like_a_formula(tmp_path):
    table = pd.DataFrame({"=head": TEXTS, "value": [-0.5 * number for number in range(len(TEXTS))]})
    write_csv(tmp_path / "a.csv", table)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["'=head", "value"]
    assert not [row[0] for row in rows if row[0][:1] in tuple("=+-@\t\r")]
    assert [row[1] for row in rows[1:]] == [str(value) for value in table["value"]]
    read = as_written(pd.read_csv(tmp_path / "a.csv", keep_default_na=False))
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_what_needs_no_apostrophe_is_written_as_it_is(tmp_path):
    table = pd.DataFrame({"case": ["a", "b"], "value": [-1.5, None]})
    write_csv(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_text() == "case,value\na,-1.5\nb,\n"


def test_scores_of_odd_labels_and_cases_come_back(tmp_path):
    rows = [(case, label, "DSC", -0.25) for case in TEXTS[:4] for label in TEXTS[:8]]
    write_scores(tmp_path / "scores.csv", rows, setting="s", split="test", fold="all")
    read = read_scores(tmp_path / "scores.csv")
    assert set(zip(read["case"], read["label"], read["metric"], read["value"], strict=True)) == set(rows)


@pytest.mark.parametrize("text", [r"$\frac{x$", "$a$", "c$_{_$^$x", r"\$", "a_b^c", "100 %"])
def test_dollars_are_dollars_in_figures(tmp_path, text):
    with figure_style():
        figure = empty_figure(text)
        ax = figure.subplots()
        ax.plot([0, 1e7], [0, 1e-7], label=f"x{text}")
        ax.set_title(text)
        ax.set_xticks([0], [text])
        ax.legend()
        save_figure(figure, tmp_path / "a.svg", tmp_path / "a.png")
    assert "mathdefault" not in (tmp_path / "a.svg").read_text()
    assert mpl.rcParams["text.parse_math"]
