"""CSV and TSV files: no text becomes a formula in a spreadsheet, and each comes back as it was."""

from __future__ import annotations

import csv

import matplotlib as mpl
import pandas as pd
import pytest

from megavoxel.csv_files import as_written, write_csv
from megavoxel.datasets.folder import read_checksums, write_checksums
from megavoxel.evaluation.tidy import read_scores, write_scores
from megavoxel.forecast.table import save_table
from megavoxel.reporting.run_files import read_forecast
from megavoxel.reporting.style import empty_figure, figure_style, save_figure

TEXTS = [
    "=cmd|' /C calc'!A0", "+1", "-2", "@SUM(A1)", "\ttab", "'=quoted", "''-twice", "'plain", "liver", "",
    "a=b", "名", "1e3", "NA",
]  # fmt: skip


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_texts_come_back_and_none_begins_like_a_formula(tmp_path, name, separator):
    table = pd.DataFrame({"=head": TEXTS, "value": [-0.5 * number for number in range(len(TEXTS))]})
    write_csv(tmp_path / name, table)
    with (tmp_path / name).open(newline="") as file:
        rows = list(csv.reader(file, delimiter=separator))
    assert rows[0] == ["'=head", "value"]
    assert not [row[0] for row in rows if row[0][:1] in tuple("=+-@\t\r")]
    assert [row[1] for row in rows[1:]] == [str(value) for value in table["value"]]
    read = as_written(pd.read_csv(tmp_path / name, sep=separator, keep_default_na=False))
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_what_needs_no_apostrophe_is_written_as_it_is(tmp_path):
    table = pd.DataFrame({"case": ["a", "b"], "value": [-1.5, None]})
    write_csv(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_text() == "case,value\na,-1.5\nb,\n"


def test_a_forecast_has_its_numbers_as_they_are_and_its_names_as_texts(tmp_path):
    rows = pd.DataFrame({"setting": ["-big", "=a"], "peak_gib": [1.5, None], "change": [-2, -0.5]})
    save_table(tmp_path / "plan.tsv", rows)
    assert (tmp_path / "plan.tsv").read_text() == "setting\tpeak_gib\tchange\n'-big\t1.5\t-2.0\n'=a\t\t-0.5\n"
    assert list(read_forecast(tmp_path / "plan.tsv").index) == ["-big", "=a"]


def test_checksums_of_files_with_odd_names_come_back(tmp_path):
    for name in ("=1+1", "-x", "'=y", "plain"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    lines = (tmp_path / "checksums.tsv").read_text().splitlines()
    assert not [line for line in lines if line[:1] in tuple("=+-@")]
    assert set(read_checksums(tmp_path / "checksums.tsv")) == {"=1+1", "-x", "'=y", "plain"}


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
