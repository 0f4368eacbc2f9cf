"""Many cases by several processes: the same results in the same order, and a killed process is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info

from megavoxel import parallel
from megavoxel.errors import UserError
from megavoxel.parallel import all_at_once, map_cases


def square_and_process(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise UserError(f"case {number}: broken")
    return number


def kill_at(bad: int, number: int) -> int:
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def eager(monkeypatch):
    """Other processes are started however little work there is."""
    monkeypatch.setattr(parallel, "START_SECONDS", 0.0)


def test_results_keep_their_order_over_processes(eager):
    results = map_cases(square_and_process, range(8), processes=2, title="squares")
    assert [square for square, _ in results] == [number * number for number in range(8)]
    others = {process for _, process in results[parallel.PROBES :]}
    assert os.getpid() not in others


def test_little_work_stays_in_this_process():
    results = map_cases(square_and_process, range(8), processes=2, title="squares")
    assert {process for _, process in results} == {os.getpid()}


def blas_threads(number: int) -> set[int]:
    assert np.eye(2)[number % 2] @ [1, 1] == 1
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_matrices_are_multiplied_by_one_thread_in_every_process(eager):
    before = blas_threads(0)
    assert map_cases(blas_threads, range(4), processes=2, title="threads") == [{1}] * 4
    assert blas_threads(0) == before


@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_of_one_case_is_the_error_of_all(eager, bad):
    with pytest.raises(UserError, match=f"case {bad}: broken"):
        map_cases(partial(fail_at, bad), range(8), processes=2, title="failing")


def test_a_killed_process_is_named_with_what_to_do(eager):
    with pytest.raises(UserError, match=r"a process was killed.*memory"):
        map_cases(partial(kill_at, 5), range(8), processes=2, title="dying")


def test_an_interrupt_that_all_processes_get_ends_them_without_a_word_of_theirs():
    script = """
import time
from megavoxel import parallel
parallel.START_SECONDS = 0.0
print("started", flush=True)
try:
    parallel.map_cases(time.sleep, [0.01, 0.01, *[50] * 8], processes=2, title="naps")
except KeyboardInterrupt:
    print("interrupted")
"""
    job = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert job.stdout.readline() == "started\n"
    while len(psutil.Process(job.pid).children(recursive=True)) < 4:  # resource tracker, fork server, two workers
        time.sleep(0.05)
    workers = psutil.Process(job.pid).children(recursive=True)
    os.killpg(job.pid, signal.SIGINT)
    said = job.communicate(timeout=40)[0]
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert not any(worker.is_running() for worker in psutil.wait_procs(workers, timeout=10)[1])


def test_thread_limits_of_workers_do_not_stay_behind(eager, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    map_cases(square_and_process, range(4), processes=2, title="squares")
    assert "OMP_NUM_THREADS" not in os.environ


def test_lines_say_how_far_it_is(capsys):
    map_cases(fail_at_never, range(20), title="scoring")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scoring: 2 of 20"
    assert lines[-1] == "scoring: 20 of 20"
    map_cases(fail_at_never, [7], title="scoring", describe=lambda item, result: f"{item} gave {result}")
    assert capsys.readouterr().out.splitlines() == ["7 gave 7; 1 of 1"]


def fail_at_never(number: int) -> int:
    return fail_at(-1, number)


def tell_and_add(number: int, tell: Callable[[str], None]) -> int:
    tell(f"begin {number}")
    if number == 7:
        raise UserError("case 7: broken")
    if number == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    tell(f"end {number}")
    return number + 1


def test_what_processes_tell_is_heard_and_their_results_come_in_order():
    heard = []
    assert all_at_once(tell_and_add, [3, 1], heard=heard.append, title="sums") == [4, 2]
    assert sorted(heard) == ["begin 1", "begin 3", "end 1", "end 3"]


@pytest.mark.parametrize(("bad", "said"), [(7, "case 7: broken"), (8, "sums: a process was killed")])
def test_an_error_of_one_process_is_raised_behind_what_was_told(bad, said):
    heard = []
    with pytest.raises(UserError, match=said):
        all_at_once(tell_and_add, [1, bad], heard=heard.append, title="sums")
    assert f"begin {bad}" in heard or bad == 8
    assert "end 1" in heard or bad == 8


def test_an_error_in_hearing_is_raised():
    with pytest.raises(ZeroDivisionError):
        all_at_once(tell_and_add, [1], heard=lambda _: 1 / 0, title="sums")
