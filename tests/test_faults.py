"""Training that is killed, told to end or started twice ends with the weights of an undisturbed run, bit for bit.

    python tests/test_faults.py 20        # kills at 20 random moments, one after the other

runs what these tests do a few times.
"""

from __future__ import annotations

import csv
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from helpers import tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.network.tensor_files import load_tensors
from megavoxel.planning.plan import Plan
from stage_server import run_group
from training_jobs import training_command

EPOCHS = 4
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def long_plan(**keys: object) -> Plan:
    """Some seconds of training, with a state after every epoch."""
    training = {"epochs": EPOCHS, "iterations_per_epoch": 40, "optimizer": "adamw", **keys}
    return tiny_plan(training=training)


def start(command: list[str], folder: Path, output: str) -> subprocess.Popen:
    """Training as a job of its own, with its words in a pipe."""
    return subprocess.Popen(
        [*command, "--output", output], cwd=folder, env=ENVIRONMENT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(folder: Path, plan: Plan, output: str = "out") -> str:
    """Training to its end; what it said."""
    job = start(training_command(folder, plan, forked=True), folder, output)
    words = job.communicate(timeout=300)[0]
    assert job.returncode == 0, words
    return words


def finish_group(folder: Path, plan: Plan) -> None:
    """Training of a group of processes to its end, each with the one of two threads that `megavoxel train` gives it."""
    processes = plan.parallel.data * plan.parallel.pipeline
    words = [*training_command(folder, plan, forked=True)[1:], "--threads", "1", "--output", "out"]
    run_group(*words, processes=processes, program="megavoxel", folder=folder)


def end_by(
    number: int, command: list[str], folder: Path, *, after: str, delay: float = 0.0, status: int | None = None
) -> str:
    """Sends a signal to all processes of a job, as Slurm does, some time after a line; what it said.

    The job has to fail, with `status` if that is given.
    """
    job = start(command, folder, "out")
    said = ""
    for line in job.stdout:
        said += line
        if after in line:
            break
    time.sleep(delay)
    os.killpg(job.pid, number)
    said += job.communicate(timeout=120)[0]
    assert job.returncode != 0 if status is None else job.returncode == status, said
    return said


def result(folder: Path, output: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights and losses of a finished run."""
    with (folder / output / "history.csv").open() as file:
        losses = [row["training_loss"] for row in csv.DictReader(file)]
    return load_tensors(folder / output / "model.pt")["weights"], losses


def check_equal(folder: Path, expected: Path) -> None:
    """The run of `folder` is that of `expected`, bit for bit."""
    (ours, losses), (theirs, expected_losses) = result(folder, "out"), result(expected, "out")
    assert losses == expected_losses
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, long_plan())
    return folder


def kill_at_random(folder: Path, expected: Path, *, times: int, seed: int) -> int:
    """Kills a run up to `times` times, or until it is done; returns the number of kills."""
    draw, killed = random.Random(seed), 0
    command = training_command(folder, long_plan())
    while killed < times:
        try:
            end_by(signal.SIGKILL, command, folder, after="", delay=draw.uniform(0, 1.5))
        except AssertionError:
            if not (folder / "out/model.pt").exists():
                raise
            shutil.rmtree(folder / "out")
            shutil.rmtree(folder / "state")
            continue
        killed += 1
    finish(folder, long_plan())
    check_equal(folder, expected)
    return killed


def test_killed_at_random_moments(tmp_path, undisturbed):
    assert kill_at_random(tmp_path, undisturbed, times=2, seed=1) == 2


@pytest.mark.parametrize(
    ("number", "workers", "words", "status"),
    [
        (signal.SIGTERM, 2, "error: ended by SIGTERM", 1),
        (signal.SIGUSR1, 0, "error: ended by SIGUSR1", 1),
        (signal.SIGINT, 2, "megavoxel train: interrupted", 130),
    ],
)
def test_told_to_end_in_the_middle_of_an_epoch_goes_on_from_that_step(
    tmp_path, undisturbed, number, workers, words, status
):
    plan = long_plan(workers=workers)
    command = training_command(tmp_path, plan)
    said = end_by(number, command, tmp_path, after=f"epoch 2/{EPOCHS}", delay=0.1, status=status)
    assert f"{words} after epoch 2 and " in said
    assert "Traceback" not in said
    assert "going on after epoch 2 and " in finish(tmp_path, plan)
    check_equal(tmp_path, undisturbed)


@pytest.mark.parametrize("keys", [{"data": 2}, {"pipeline": 2}], ids=["two by data", "a pipeline of two"])
def test_a_group_that_is_told_to_end_goes_on_as_the_same_group_undisturbed(tmp_path, keys):
    plan = replace(long_plan(), parallel=Parallel(**keys))
    if plan.parallel.pipeline > 1:
        plan = replace(plan, stages=(0, 3))
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        folder.mkdir()
    finish_group(undisturbed, plan)
    command = training_command(disturbed, plan)
    said = end_by(signal.SIGTERM, command, disturbed, after=f"epoch 2/{EPOCHS}", delay=0.1)
    assert "ended by SIGTERM after epoch" in said
    finish_group(disturbed, plan)
    check_equal(disturbed, undisturbed)


def test_a_second_interrupt_ends_training_at_once(tmp_path):
    job = start(training_command(tmp_path, long_plan(epochs=1000)), tmp_path, "out")
    assert any("epoch 1/" in line for line in job.stdout)
    while job.poll() is None:
        job.send_signal(signal.SIGINT)
        time.sleep(0.001)
    assert "Traceback" not in job.communicate(timeout=60)[0]
    assert job.returncode in (-signal.SIGINT, 130)


def test_an_interrupted_group_says_one_line_and_ends_all_its_processes(tmp_path):
    plan = replace(long_plan(epochs=1000), parallel=Parallel(data=2))
    job = start(training_command(tmp_path, plan), tmp_path, "out")
    assert any("epoch 1/" in line for line in job.stdout)
    workers = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGINT)
    words = job.communicate(timeout=60)[0]
    assert job.returncode == 130, words
    assert [line for line in words.splitlines() if "epoch" not in line or "interrupted" in line] == [
        words.splitlines()[-1]
    ]
    assert words.splitlines()[-1].startswith("megavoxel train: interrupted after epoch ")
    assert not any(worker.is_running() for worker in workers)


def test_a_second_job_waits_for_the_first_and_takes_its_result(tmp_path, undisturbed):
    command = training_command(tmp_path, long_plan())
    first = start(command, tmp_path, "out")
    assert any("epoch 1/" in line for line in first.stdout)
    second = start(command, tmp_path, "again")
    assert first.wait(timeout=120) == 0
    words = second.communicate(timeout=120)[0]
    assert second.returncode == 0, words
    assert f"waiting for process {first.pid} on " in words
    assert f"going on after epoch {EPOCHS}" in words
    assert f"epoch {EPOCHS}/" not in words, "nothing is trained twice"
    check_equal(tmp_path, undisturbed)
    assert (tmp_path / "again/history.csv").read_text() == (tmp_path / "out/history.csv").read_text()


def test_a_state_cut_in_half_costs_the_work_since_the_one_before(tmp_path, undisturbed):
    command = training_command(tmp_path, long_plan())
    # Told to end, so that it does not end between two renames, where there is a state before and no newest one.
    end_by(signal.SIGTERM, command, tmp_path, after=f"epoch 3/{EPOCHS}")
    (newest,) = tmp_path.glob("state/*/checkpoint.pt")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    words = finish(tmp_path, long_plan())
    assert "checkpoint.pt: damaged" in words
    assert "going on after epoch 2 " in words or "going on after epoch 3 " in words
    check_equal(tmp_path, undisturbed)


def test_a_disk_that_fills_up_ends_training_in_a_line_and_the_next_start_goes_on(tmp_path, undisturbed):
    command = training_command(tmp_path, long_plan())
    job = start(command, tmp_path, "out")
    assert any(f"epoch 2/{EPOCHS}" in line for line in job.stdout)
    # No file of the job can grow beyond 4 KiB any more, which a state does: as on a full disk, see test_full_disk.py.
    most = resource.prlimit(job.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (4096, most))
    words = job.communicate(timeout=120)[0]
    assert job.returncode == 1, words
    assert "checkpoint.pt: could not be written" in words.splitlines()[-1]
    assert "Traceback" not in words
    assert not (tmp_path / "out/model.pt").exists()
    assert not list(tmp_path.rglob(".partial*"))
    words = finish(tmp_path, long_plan())
    assert "going on after epoch 1 " in words or "going on after epoch 2 " in words
    check_equal(tmp_path, undisturbed)


def test_another_plan_takes_up_no_state_of_this_one_and_refuses_it_in_its_place(tmp_path):
    finish(tmp_path, long_plan(epochs=1))
    (state,) = tmp_path.glob("state/*/checkpoint.pt")
    other_plan = long_plan(epochs=1, learning_rate=0.5)
    assert "going on" not in finish(tmp_path, other_plan, "other")
    (other,) = (path for path in tmp_path.glob("state/*/checkpoint.pt") if path != state)
    shutil.copy(state, other)
    job = start(training_command(tmp_path, other_plan, forked=True), tmp_path, "other")
    words = job.communicate(timeout=120)[0]
    assert job.returncode == 1
    assert "belongs to another run" in words


def main() -> None:
    """The long variant of `test_killed_at_random_moments`."""
    times = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        expected, folder = Path(name, "undisturbed"), Path(name, "killed")
        expected.mkdir()
        folder.mkdir()
        finish(expected, long_plan())
        killed = kill_at_random(folder, expected, times=times, seed=int(time.time()))
        print(f"killed {killed} times; weights and losses are those of the undisturbed run")


if __name__ == "__main__":
    main()
