"""What a run says on the terminal: in a long epoch, of its jobs, and at its end."""

from __future__ import annotations

import os
import pty
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megavoxel.distributed.group import Group
from megavoxel.progress import also_on_terminal, say
from megavoxel.reporting.closing import WIDTH, closing_words
from megavoxel.training import pace
from megavoxel.training.pace import Pace

SUMMARY = """\
| Model       | Split      | DSC   | {wide} | NSD   |
|:------------|:-----------|:------|:---|:------|
| small-patch | validation | 0.859 | a  | 0.793 |
| both        | test       | 0.928 | b  | 0.972 |
"""


@pytest.fixture
def results(tmp_path) -> Path:
    (tmp_path / "report/tables").mkdir(parents=True)
    (tmp_path / "report/index.html").write_text("page")
    (tmp_path / "report/tables/summary.md").write_text(SUMMARY.format(wide="Wide"))
    return tmp_path


def test_a_run_ends_with_its_scores_and_the_place_of_its_report(results):
    assert closing_words(results, since=0.0).splitlines() == [
        "",
        "Model        Split       DSC    Wide  NSD",
        "small-patch  validation  0.859  a     0.793",
        "both         test        0.928  b     0.972",
        "",
        f"report: {results}/report/index.html",
    ]


def test_columns_that_do_not_fit_are_left_out_whole(results):
    (results / "report/tables/summary.md").write_text(SUMMARY.format(wide="W" * WIDTH))
    assert "small-patch  validation  0.859\n" in closing_words(results, since=0.0)


def test_a_run_that_wrote_no_report_shows_none(results, tmp_path):
    assert closing_words(results, since=time.time() + 10) == ""
    assert closing_words(tmp_path / "nothing", since=0.0) == ""


def test_a_long_epoch_says_its_speed_loss_and_time_left(monkeypatch, capsys):
    clock = iter([100.0, 110.0, 140.0, 140.0, 150.0])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(clock))
    training = SimpleNamespace(epochs=3)
    run = SimpleNamespace(
        group=Group(device="cpu"), losses=[0.0] * 10, epoch=1, plan=SimpleNamespace(training=training)
    )
    spoken = Pace(run, 130)  # ten steps were taken before an interruption
    assert not spoken.is_due()
    run.losses += [0.0] * 40
    assert spoken.is_due()
    spoken.say(0.5)
    assert capsys.readouterr().out == "epoch 2/3, step 50/130  loss 0.5000  1.00 steps/s, 80 s left of the epoch\n"
    assert not spoken.is_due()


def test_lines_of_a_job_reach_the_terminal_under_its_name(tmp_path):
    process, terminal = pty.fork()
    if process == 0:
        try:
            sys.stdout = (tmp_path / "log").open("w")
            with also_on_terminal("a, fold 0"):
                say("epoch 1/2")
            say("later")
            sys.stdout.close()
        finally:
            os._exit(0)
    shown = os.read(terminal, 1000).decode()
    assert os.waitpid(process, 0)[1] == 0
    assert shown.split("\r\n")[0] == "a, fold 0: epoch 1/2"
    assert "later" not in shown
    assert (tmp_path / "log").read_text() == "epoch 1/2\nlater\n"


def test_a_job_without_a_terminal_writes_its_log_only(tmp_path, capsys):
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setsid()  # leaves the terminal
            sys.stdout = (tmp_path / "log").open("w")
            with also_on_terminal("a"):
                say("epoch 1/2")
            sys.stdout.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(process, 0)[1] == 0
    assert (tmp_path / "log").read_text() == "epoch 1/2\n"
