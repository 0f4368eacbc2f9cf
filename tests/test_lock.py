"""The lock of a run's states: one holder at a time, waited for while it lives, passed over when it is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megavoxel.errors import UserError
from megavoxel.training.states import lock
from megavoxel.training.states.lock import Holder, held, wait_for_others


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Signs of life several times a second."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lock, "LOOK", 0.02)


def write_lock(folder: Path, *, age: float = 0, **holder: object) -> Path:
    path = folder / "lock.json"
    path.write_text(json.dumps({"host": "elsewhere", "process": 1, "job": "77", "token": "t"} | holder))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_lock_says_who_holds_it_and_goes_with_its_holder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    with held(tmp_path / "states"):
        found = json.loads((tmp_path / "states/lock.json").read_text())
        assert (found["job"], found["process"]) == ("5", os.getpid())
    assert list((tmp_path / "states").iterdir()) == []


def test_a_live_holder_is_refused_after_patience_with_its_job(tmp_path, capsys):
    message = r"process \d+ on .* trains here already; cancel it"
    with held(tmp_path), pytest.raises(UserError, match=message), held(tmp_path, patience=0.5):
        pytest.fail("two at a time")
    assert capsys.readouterr().out.count("waiting for") == 1


def test_who_waits_is_next(tmp_path):
    order = []

    def second() -> None:
        with held(tmp_path):
            order.append("second")

    with held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.0)  # ten signs of life, more than the four that a dead holder misses
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_a_holder_of_this_host_that_has_ended_is_passed_over_at_once(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_lock(tmp_path, host=Holder().host, process=ended.pid)
    with held(tmp_path, patience=0):
        pass


def test_a_holder_elsewhere_is_dead_when_its_signs_of_life_stay_out(tmp_path):
    write_lock(tmp_path)
    begin = time.monotonic()
    with held(tmp_path, patience=5):
        assert 0.3 < time.monotonic() - begin < 5


def test_a_lock_cut_in_half_counts_as_one_until_it_is_old(tmp_path):
    (tmp_path / "lock.json").write_text('{"host": "els')
    with pytest.raises(UserError, match="another process trains here already"), held(tmp_path, patience=0.1):
        pytest.fail("taken")
    write_lock(tmp_path, age=10).write_text('{"host": "els')
    os.utime(tmp_path / "lock.json", (time.time() - 10,) * 2)
    with held(tmp_path, patience=5):
        pass


@pytest.mark.parametrize("jump", [-86400, 86400], ids=["back", "on"])
def test_a_clock_that_jumps_by_a_day_takes_the_lock_from_nobody_and_keeps_it_for_nobody(tmp_path, monkeypatch, jump):
    now = lock._now
    monkeypatch.setattr(lock, "_now", lambda folder: now(folder) + jump)
    with held(tmp_path), pytest.raises(UserError, match="trains here already"), held(tmp_path, patience=1):
        pytest.fail("two at a time")
    write_lock(tmp_path)
    with held(tmp_path, patience=5):
        pass


def test_who_was_taken_for_dead_writes_nothing_more(tmp_path):
    with held(tmp_path) as late:
        write_lock(tmp_path, token="another")
        with pytest.raises(UserError, match="taken over by Slurm job 77, process 1 on elsewhere"):
            late.check()
    assert (tmp_path / "lock.json").exists(), "the lock of the other one stays"


def test_of_many_that_find_a_dead_holder_one_at_a_time_goes_on(tmp_path):
    write_lock(tmp_path, age=100)
    inside, most = [], []

    def work() -> None:
        with held(tmp_path) as own:
            inside.append(own)
            most.append(len(inside))
            time.sleep(0.02)
            own.check()
            inside.remove(own)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(most) == 8
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_nodes_of_one_job_do_not_wait_for_their_own_leader(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write_lock(tmp_path)
    begin = time.monotonic()
    wait_for_others(tmp_path)
    assert time.monotonic() - begin < 0.2
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    wait_for_others(tmp_path)
    assert time.monotonic() - begin > 0.3
