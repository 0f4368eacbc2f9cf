"""A results folder that turns read-only while a stage runs: one line names the path, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fake_study import evaluate_part, make_study, report_study
from megavoxel import files
from megavoxel.cli import main
from megavoxel.training.states.checkpoint import load_state, save_state


def visible(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder by their place."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def read_only_after(monkeypatch):
    """Makes the rename of the file with that number, and of all later ones, fail as on a read-only file system."""

    def limit(count: int) -> None:
        real, left = os.replace, iter(range(count))

        def refuse(source: object, target: object) -> None:
            if next(left, None) is None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(source), None, str(target))
            real(source, target)

        monkeypatch.setattr(files.os, "replace", refuse)

    return limit


def test_scores_are_absent_and_the_line_names_them(tmp_path, read_only_after, capsys):
    fake = make_study(tmp_path, score=False)
    before = visible(tmp_path)
    read_only_after(0)
    assert evaluate_part(fake, "small", "validation", "0", tmp_path / "scores.csv") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Read-only file system" in said
    assert "scores.csv" in said
    assert visible(tmp_path) == before


def test_a_report_that_breaks_off_leaves_whole_files_only(tmp_path, read_only_after, capsys):
    fake = make_study(tmp_path)
    read_only_after(3)
    assert report_study(fake, "--tables-only") == 1
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    written = [name for name in visible(fake.results) if "report/" in name]
    assert len(written) == 3
    assert not any(Path(name).name.startswith(".") for name in written)


def test_the_state_before_stays_in_its_place(tmp_path, read_only_after):
    save_state(tmp_path, {"key": "k", "epoch": 1})
    read_only_after(0)
    with pytest.raises(OSError, match="Read-only file system"):
        save_state(tmp_path, {"key": "k", "epoch": 2})
    assert load_state(tmp_path, key="k")["epoch"] == 1


MOUNTING = """
import os, subprocess, sys
from megavoxel import files
from megavoxel.cli import main

folder, real, left = sys.argv[1], os.replace, iter(range(int(sys.argv[2])))
subprocess.run(["mount", "--bind", folder, folder], check=True)

def replace(source, target):
    if next(left, None) is None:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    real(source, target)

files.os.replace = replace
sys.exit(main(sys.argv[3:]))
"""
"""A stage under whose results the file system turns read-only before the file with that number gets its name."""


@pytest.mark.slow
def test_on_a_file_system_that_turns_read_only_one_line_names_the_file_and_a_later_run_is_whole(tmp_path):
    private = ["unshare", "--mount"]
    if subprocess.run([*private, "sh", "-c", f"mount --bind {tmp_path} {tmp_path}"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    fake = make_study(tmp_path, score=False)
    output = tmp_path / "new" / "scores.csv"
    output.parent.mkdir()
    words = ["evaluate", str(fake.model("small") / "fold-0/validation"), "--cases", str(fake.cases), "--splits"]
    words += [str(fake.splits), "--split", "validation", "--fold", "0", "--setting", "small", "--output", str(output)]
    command = [*private, sys.executable, "-c", MOUNTING, str(output.parent), "0", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1
    assert "Read-only file system" in done.stderr
    assert "scores.csv" in done.stderr
    assert not output.exists()
    assert main(words) == 0
    assert [path.name for path in output.parent.iterdir()] == ["scores.csv"]
