"""How far a stage is: lines with the time left in a log, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest

from megavoxel import progress as module
from megavoxel.progress import BYTES, duration, progress, time_left

BAR = "from megavoxel.parallel import map_cases; map_cases(abs, range(30), title='checking')"


@pytest.fixture
def clock(monkeypatch):
    """A clock that each look puts forward by half a minute."""
    ticks = iter(range(0, 10**6, 30))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(ticks))


def test_a_log_says_how_long_the_rest_takes(clock, capsys):
    with progress("checking", 4) as shown:
        for _ in range(4):
            shown.advance()
    # The n-th look at the clock is n half minutes after the first: n cases in that time, and 4 - n are left.
    assert capsys.readouterr().out.splitlines() == [
        "checking: 1 of 4, about 90 s left",
        "checking: 2 of 4, about 60 s left",
        "checking: 3 of 4, about 30 s left",
        "checking: 4 of 4",
    ]


def test_a_line_of_an_item_carries_the_count_and_the_time_left(clock, capsys):
    with progress("predict", 2) as shown:
        shown.advance(line="case a")
        shown.advance(line="case b")
    assert capsys.readouterr().out.splitlines() == ["case a; 1 of 2, about 30 s left", "case b; 2 of 2"]


def test_what_was_there_before_says_nothing_of_the_speed(clock, capsys):
    with progress("download", 100_000_000, unit=BYTES, done=80_000_000) as shown:
        shown.advance(10_000_000)
    assert capsys.readouterr().out == "download: 90.0 of 100.0 MB, about 30 s left\n"


def test_many_items_make_ten_lines_and_an_unknown_total_none(capsys):
    with progress("scoring", 1000) as shown:
        for _ in range(1000):
            shown.advance()
    assert len(capsys.readouterr().out.splitlines()) == 10
    with progress("download", None, unit=BYTES) as shown:
        shown.advance(5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5, "5 s"), (119, "119 s"), (150, "2 min"), (3599, "60 min"), (5400, "1.5 h"), (200_000, "2.3 days")],
)
def test_times_are_told_in_a_unit_that_fits(seconds, said):
    assert duration(seconds) == said


def test_a_short_rest_and_an_unknown_speed_are_left_unsaid():
    assert time_left(10, 1, 20) == ""
    assert time_left(0, 10, 20) == ""


def test_a_terminal_gets_a_bar_and_no_lines(tmp_path):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    done = subprocess.run([sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=slave, check=True, timeout=60)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    assert "checking: 100%" in shown
    assert "30/30" in shown
    assert done.stdout == b""


def test_a_log_has_its_lines_while_the_work_goes_on(tmp_path):
    """The process is killed after its first line, which must be in the file by then."""
    code = "import os; from megavoxel.progress import progress\nwith progress('x', 10) as p: p.advance(); os._exit(1)"
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, stderr=log, check=False, timeout=60)
    assert (tmp_path / "log").read_text() == "x: 1 of 10\n"
