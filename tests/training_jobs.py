"""`megavoxel train` on made cases, as jobs of one or several processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from helpers import store_case
from megavoxel.files import write_json
from megavoxel.planning.plan import Plan, save_plan
from stage_server import programs


def training_command(folder: Path, plan: Plan, *, forked: bool = False) -> list[str]:
    """The command that trains `plan` on three made cases; it runs in `folder`.

    With `forked` it is one of `stage_server`, which starts at once, but is no process of its own that could be killed.
    """
    for number in range(3):
        store_case(folder / "cases", f"case{number}", seed=number)
    save_plan(folder / "plan.json", plan)
    write_json(folder / "splits.json", {"folds": [{"training": ["case0", "case1"], "validation": ["case2"]}]})
    words = ["train", "--plan", "plan.json", "--preprocessed", "cases", "--splits", "splits.json", "--fold", "0"]
    megavoxel = [str(programs() / "megavoxel")] if forked else [sys.executable, "-m", "megavoxel"]
    return [*megavoxel, *words, "--device", "cpu", "--threads", "2", "--state", "state"]


def check_that_all_end_with_one(command: list[str], folder: Path, *, processes: int) -> None:
    """Kills one process of a job in its training; all others end within a minute, and no output appears in `out`."""
    job = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert any("epoch 2/" in line for line in job.stdout)
    workers = [child for child in psutil.Process(job.pid).children() if "megavoxel" in " ".join(child.cmdline())]
    assert len(workers) == processes
    begin = time.monotonic()
    workers[1].send_signal(signal.SIGKILL)
    job.stdout.read()
    assert job.wait(timeout=60) != 0
    assert time.monotonic() - begin < 60
    assert not any(worker.is_running() for worker in workers)
    assert not (folder / "out" / "model.pt").exists()
