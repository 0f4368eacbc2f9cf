"""`megavoxel train` on made cases, as jobs of one or several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas
import psutil
import pytest
import torch

from helpers import store_case
from megavoxel.files import write_json
from megavoxel.network.tensor_files import load_tensors
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


def run_until(command: list[str], folder: Path, line: str) -> str:
    """Runs a command until it prints a line that begins so, then kills it with all its processes."""
    job = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)
    printed = ""
    for text in job.stdout:
        printed += text
        if text.startswith(line):
            os.killpg(job.pid, signal.SIGKILL)
    job.wait(timeout=60)
    return printed


def check_that_it_goes_on(folder: Path, plan: Plan, plans: Sequence[Plan]) -> None:
    """Some epochs of `plan` in each of three ways of running it, beside a run of one process: as good as equal."""
    keys = {"epochs": 6, "iterations_per_epoch": 2, "validation_iterations": 2, "checkpoint_minutes": 0}
    plan, *plans = (replace(one, training=replace(one.training, **keys)) for one in (plan, *plans))
    command = training_command(folder, plan, forked=True)
    run_until([*command, "--output", "single", "--state", "single-state"], folder, "never")
    printed = ""
    for one, line in zip(plans, ("epoch 3/", "epoch 5/", "never"), strict=True):
        command = training_command(folder, one, forked=one.parallel.devices == 1)
        printed += run_until([*command, "--output", "out"], folder, line)
    assert printed.count("going on after epoch") >= 2
    single, whole = (load_tensors(folder / name / "model.pt")["weights"] for name in ("single", "out"))
    assert whole.keys() == single.keys()
    for name, ours in whole.items():
        torch.testing.assert_close(ours, single[name], atol=1e-4, rtol=1e-3, msg=lambda text, at=name: f"{at}: {text}")
    histories = [pandas.read_csv(folder / name / "history.csv") for name in ("single", "out")]
    for column in ("training_loss", "validation_loss", "pseudo_dice"):
        assert list(histories[1][column]) == pytest.approx(list(histories[0][column]), abs=2e-3), column


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
