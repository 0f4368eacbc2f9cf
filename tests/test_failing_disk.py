"""A disk that fails while files are read: one line names the file; reads that return less than asked for do no harm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNSEEN = ("checkpoint.pt", "sums.bin")
"""A state that ends early is passed over with a warning, and a checksum is that of what was read."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[str, str]]:
    """By kind of file and fault, what came of reading it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler, by which a failing disk is made")
    folder = tmp_path_factory.mktemp("disk")
    library = folder / "disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "failing_disk.c", "-ldl"], check=True)
    (folder / "files").mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "failing_disk_worker.py", folder / "files"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def test_reads_that_return_less_than_asked_for_give_the_whole_file(outcomes):
    assert {name: found["short"] for name, found in outcomes.items() if found["short"] != "same"} == {}


def test_a_disk_that_fails_is_told_in_a_line_that_names_the_file(outcomes):
    wrong = {
        (name, fault): told
        for name, found in outcomes.items()
        for fault, told in found.items()
        if fault.startswith("error") and not (told.startswith("refused: ") and f"/{name}" in told and "\n" not in told)
    }
    assert wrong == {}


def test_a_file_that_ends_early_is_refused(outcomes):
    wrong = {
        (name, fault): told
        for name, found in outcomes.items()
        for fault, told in found.items()
        if fault.startswith("end") and not told.startswith("refused: ") and name not in UNSEEN
    }
    assert wrong == {}


def test_a_state_on_a_disk_that_fails_is_not_taken_for_damaged(outcomes):
    told = [told for fault, told in outcomes["checkpoint.pt"].items() if fault.startswith("error")]
    assert len(told) == 2
    assert all("Input/output error" in line for line in told)
