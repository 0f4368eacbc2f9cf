"""What a killed process left behind is removed by a later one; what a living one writes is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from helpers import tiny_plan
from megavoxel import files
from megavoxel.files import PARTIAL, atomic_directory, atomic_path, scratch_directory, write_text
from megavoxel.inference.finished import Finished

PROGRAM = """
import sys, time
from pathlib import Path
from megavoxel.files import atomic_directory, atomic_path, scratch_directory
folder = Path(sys.argv[1])
with atomic_path(folder / "a.txt") as one, atomic_directory(folder / "b") as two, scratch_directory(folder) as three:
    one.write_text("half")
    (two / "c.txt").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is writing to the folder."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    """Each folder is looked at once in a process."""
    monkeypatch.setattr(files, "_looked_at", set())


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(".partial*"))


@pytest.mark.parametrize("write", [lambda path: write_text(path / "x", ""), lambda path: make(path / "y")])
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path, writer, monkeypatch, write):
    assert len(partials(tmp_path)) == 3
    write(tmp_path)
    assert len(partials(tmp_path)) == 3, "its process lives"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    write(tmp_path)
    assert len(partials(tmp_path)) == 3, "looked at once"
    monkeypatch.setattr(files, "_looked_at", set())
    write(tmp_path)
    assert partials(tmp_path) == []


def make(folder: Path) -> None:
    with atomic_directory(folder, replace=True):
        pass


def test_a_new_process_with_the_number_of_an_ended_one_changes_nothing(tmp_path):
    number = os.getpid()
    left = tmp_path / f".partial-{files._host_code()}-{number}-1-a.txt"
    left.touch()
    with atomic_path(tmp_path / "b.txt") as partial:
        assert not left.exists()
        assert files.PARTIAL.match(partial.name)["process"] == str(number)
        partial.touch()


def test_what_another_host_writes_is_left_for_a_week(tmp_path, monkeypatch):
    other = tmp_path / ".partial-00000000-1-1-folder"
    other.mkdir()
    (other / "a.txt").touch()
    for entry in (other / "a.txt", other):
        os.utime(entry, (0, 0))
    (other / "b.txt").touch()
    os.utime(other, (0, 0))
    with scratch_directory(tmp_path):
        assert other.exists(), "somebody writes there"
    monkeypatch.setattr(files, "_looked_at", set())
    os.utime(other / "b.txt", (0, 0))
    with scratch_directory(tmp_path) as mine:
        assert partials(tmp_path) == [mine]


def test_files_of_other_names_are_nobodys_business(tmp_path):
    for name in (".partial-notes", "partial", ".partial-zzzzzzzz-1-1-a"):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.txt", "")
    assert len(list(tmp_path.iterdir())) == 4


def test_what_cannot_be_removed_keeps_nobody_from_writing(tmp_path, monkeypatch):
    left = tmp_path / f".partial-{files._host_code()}-{os.getpid()}-1-a.txt"
    left.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        files._remove_what_was_left(tmp_path)
    assert left.exists()


def test_cases_that_a_killed_prediction_finished_lie_under_a_name_by_which_they_are_removed(tmp_path):
    products = {"logits": None, "confidence": None}
    options = Namespace(output=tmp_path / "maps", weights=[], resume=None, preprocessed=tmp_path, stage1=[], **products)
    assert PARTIAL.match(Finished.of(tiny_plan(), options).folder.name)
