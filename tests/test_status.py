"""`megavoxel status`: what each run is doing, by the files that it leaves."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from helpers import tiny_plan
from megavoxel.cli import main
from megavoxel.reporting.runs import Folders, look_at
from megavoxel.stages import status
from megavoxel.training.states.lock import Holder, living
from training_jobs import training_command

EPOCHS = """\
epoch 1/10  loss 0.9000  validation loss 0.8000  pseudo-Dice 0.1000  60.0 s, 9.0 min left
epoch 2/10  loss 0.5000  validation loss 0.6000  pseudo-Dice 0.4321  60.0 s, 8.0 min left
"""
STUDY = {"study": "s", "dataset": "phantom", "folds": 2, "settings": {"a": {}, "b-1": {"folds": [1]}}}


def write(path: Path, text: str, *, seconds_ago: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def one(root: Path) -> object:
    (run,) = look_at(Folders(study="s", root=root), [("a", 0)])
    return run


def test_a_run_that_left_nothing_waits(tmp_path):
    assert one(tmp_path).state == "waiting"


def test_a_run_that_holds_its_states_is_running_with_the_time_left_since_its_last_line(tmp_path):
    write(tmp_path / "logs/s/train/a-0.log", EPOCHS, seconds_ago=120)
    with living(tmp_path / "state/s/a/fold-0"):
        run = one(tmp_path)
    assert (run.state, run.epoch, run.watched) == ("running", "2/10", 0.4321)
    assert run.seconds_left == pytest.approx(8 * 60 - 120, abs=5)


def test_the_phase_of_a_curriculum_is_said(tmp_path):
    write(tmp_path / "logs/s/train/a-0.log", f"phase 1 of 3\n{EPOCHS}phase 2 of 3\n{EPOCHS}")
    with living(tmp_path / "state/s/a/fold-0"):
        assert one(tmp_path).epoch == "phase 2/3, 2/10"


def test_a_run_without_an_epoch_is_starting_however_old_its_log_is(tmp_path):
    log = write(tmp_path / "logs/s/train/a-0.log", "")
    assert one(tmp_path).state == "starting"
    with living(tmp_path / "state/s/a/fold-0"):
        write(log, "", seconds_ago=1000)
        assert one(tmp_path).state == "starting"
    assert one(tmp_path).state == "interrupted"


def test_a_run_lives_while_its_process_does_however_late_its_signs_are(tmp_path):
    write(tmp_path / "logs/s/train/a-0.log", EPOCHS, seconds_ago=1000)
    with living(tmp_path / "state/s/a/fold-0"):
        os.utime(tmp_path / "state/s/a/fold-0/alive.json", (0, 0))
        assert one(tmp_path).state == "running"


def test_a_killed_run_is_interrupted_at_once_also_if_another_process_has_its_number(tmp_path):
    write(tmp_path / "logs/s/train/a-0.log", "")
    ended = subprocess.Popen(["true"])
    ended.wait()
    for holder in (Holder(process=ended.pid), Holder(began=1)):
        write(tmp_path / "state/s/a/fold-0/alive.json", json.dumps(asdict(holder)))
        run = one(tmp_path)
        assert run.state == "interrupted"
        assert "killed before it said anything" in run.lines[0]


@pytest.mark.parametrize(
    "line",
    [
        "megavoxel train: interrupted after epoch 2; the state is saved: run the stage again to go on\n",
        "megavoxel train: error: ended by SIGTERM after epoch 2; the state is saved: run the stage again to go on\n",
    ],
)
def test_a_run_that_was_told_to_end_is_interrupted_and_says_what_to_do(tmp_path, monkeypatch, capsys, line):
    write(tmp_path / "logs/s/train/a-0.log", EPOCHS + line)
    assert (one(tmp_path).state, one(tmp_path).epoch) == ("interrupted", "2/10")
    (tmp_path / "results/s").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("study s: 1 runs: 1 interrupted\n")
    assert "interrupted: start Snakemake again, and training goes on" in shown
    assert "ends with" not in shown


def test_watching_shows_it_again_until_it_is_interrupted(tmp_path, monkeypatch, capsys):
    finish(tmp_path, scored=False)
    monkeypatch.chdir(tmp_path)
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "sleep", nap)
    assert main(["status", "--watch", "3"]) == 0
    assert naps == [3, 3]
    assert capsys.readouterr().out.count("study s: 1 runs: 1 trained") == 2
    assert main(["status", "--watch", "0"]) == 1


def test_a_run_with_an_error_failed_and_its_last_lines_begin_with_it(tmp_path):
    fault = "megavoxel train: error: setting a: the loss is nan\nfrom here on\n"
    write(tmp_path / "logs/s/train/a-0.log", f"{EPOCHS}\n{fault}")
    run = one(tmp_path)
    assert (run.state, run.epoch, run.seconds_left) == ("failed", "2/10", None)
    assert run.lines == tuple(fault.splitlines())


def test_a_run_of_another_host_is_interrupted_when_its_signs_of_life_end(tmp_path):
    """Only their age tells."""
    log = write(tmp_path / "logs/s/train/a-0.log", EPOCHS, seconds_ago=1000)
    holder = json.dumps(asdict(Holder(host="elsewhere")))
    sign = write(tmp_path / "state/s/a/fold-0/alive.json", holder, seconds_ago=100)
    assert one(tmp_path).state == "running"
    write(sign, holder, seconds_ago=200)
    run = one(tmp_path)
    assert run.state == "interrupted"
    assert run.lines == tuple(EPOCHS.splitlines())
    write(log, "", seconds_ago=1000)
    assert "killed before it said anything" in one(tmp_path).lines[0]


def finish(root: Path, *, scored: bool) -> None:
    outputs = root / "results/s/a/fold-0"
    write(outputs / "model.pt", "weights")
    write(outputs / "history.csv", "epoch,pseudo_dice\n1,0.3\n2,0.75\n")
    if scored:
        rows = ["a,validation,0,x,liver,DSC,1.0", "a,validation,0,y,liver,DSC,0.5", "a,validation,0,x,spleen,DSC,0.25"]
        rows += ["a,validation,0,y,spleen,DSC,", "a,validation,0,x,liver,NSD,0"]
        write(outputs / "scores.csv", "\n".join(["setting,split,fold,case,label,metric,value", *rows]) + "\n")


def test_a_finished_run_has_the_mean_of_its_cases(tmp_path):
    finish(tmp_path, scored=False)
    run = one(tmp_path)
    assert (run.state, run.epoch, run.watched, run.score) == ("trained", "2", 0.75, None)
    finish(tmp_path, scored=True)
    run = one(tmp_path)
    assert run.state == "done"
    assert run.metric == "DSC"
    assert run.score == pytest.approx((0.625 + 0.5) / 2)


def test_runs_of_a_classifier_show_its_accuracy(tmp_path):
    line = "epoch 1/2  loss 1.1435  accuracy 0.500  validation 0.750  0.1 s, 1.0 min left\n"
    write(tmp_path / "logs/s/train/a-0.log", line)
    run = one(tmp_path)
    assert (run.state, run.epoch, run.watched, run.watched_as) == ("interrupted", "1/2", 0.75, "validation accuracy")
    outputs = tmp_path / "results/s/a/fold-0"
    write(outputs / "model.pt", "weights")
    write(outputs / "history.csv", "epoch,training_loss,training_accuracy\n1,0.3,0.5\n2,0.2,0.625\n")
    rows = ["a,validation,0,x.png,dark,probability,0.3", "a,validation,0,x.png,dark,truth,1"]
    rows += ["a,validation,0,all,all,accuracy,0.875", "a,validation,0,all,all,ece,0.1"]
    write(outputs / "scores.csv", "\n".join(["setting,split,fold,case,label,metric,value", *rows]) + "\n")
    run = one(tmp_path)
    assert (run.state, run.watched, run.watched_as, run.metric) == ("done", 0.625, "training accuracy", "Accuracy")
    assert run.score == 0.875


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A `squeue` that lists what a file says."""
    script = write(tmp_path / "bin/squeue", f"#!/bin/sh\ncat {tmp_path}/queue\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "queue"


def test_jobs_in_the_queue_are_told_by_rule_wildcards_and_folder(queue, tmp_path):
    runs, folders = [("a", 0), ("a", 1), ("b", 0)], Folders(study="s", root=tmp_path)
    write(
        queue,
        f"{tmp_path}|rule_train_wildcards_a_1\n/elsewhere|rule_train_wildcards_b_0\n{tmp_path}|rule_predict_test\n",
    )
    write(tmp_path / "logs/s/train/a-1.log", f"{EPOCHS}megavoxel train: error: ended by SIGTERM after epoch 2\n")
    assert [run.state for run in look_at(folders, runs)] == ["waiting", "queued", "waiting"]
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\nexit 1\n")
    assert [run.state for run in look_at(folders, runs)] == ["waiting", "interrupted", "waiting"]


def test_a_study_is_shown_whole_and_a_folder_by_what_has_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path, scored=True)
    write(tmp_path / "study.yaml", yaml.safe_dump(STUDY))
    write(tmp_path / "logs/s/train/b-1-1.log", "megavoxel train: error: no memory\n")
    write(tmp_path / "logs/s/check.log", "megavoxel check: error: dataset x: 1 faults\n  case_1: broken\n")
    write(tmp_path / "logs/s/fetch.log", "data/x: links to /y\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["status", "--study", "study.yaml"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("study s: 3 runs: 1 failed, 1 waiting, 1 done\n")
    rows = [line.split() for line in shown.splitlines()[3:6]]
    assert rows == [["a", "0", "done", "2", "0.7500", "0.5625"], ["a", "1", "waiting"], ["b-1", "1", "failed"]]
    assert "logs/s/train/b-1-1.log ends with:\n  megavoxel train: error: no memory\n" in shown
    assert "logs/s/check.log ends with:\n  megavoxel check: error: dataset x: 1 faults\n    case_1: broken\n" in shown
    assert "fetch.log" not in shown
    for arguments in ([], ["results/s"], [str(tmp_path / "results/s")]):
        assert main(["status", *arguments]) == 0
        assert capsys.readouterr().out.startswith("study s: 2 runs: 1 failed, 1 done\n")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 1
    assert main(["status", "results/x"]) == 1
    assert "results/x: no such folder; run this where results/ lies" in capsys.readouterr().err
    assert main(["status", "results/x", "--study", "x.yaml"]) == 1


@pytest.mark.slow
def test_a_real_run_is_starting_running_and_interrupted(tmp_path):
    plan = tiny_plan(training={"epochs": 1000, "iterations_per_epoch": 1})
    command = [*training_command(tmp_path, plan), "--output", "results/s/a/fold-0"]
    command[command.index("state")] = "state/s/a/fold-0"
    log = write(tmp_path / "logs/s/train/a-0.log", "")
    with log.open("w") as target:
        job = subprocess.Popen(command, cwd=tmp_path, stdout=target, stderr=target)
    seen = [one(tmp_path).state]
    while seen[-1] == "starting" and job.poll() is None:
        time.sleep(0.1)
        seen.append(one(tmp_path).state)
    run = one(tmp_path)
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=60)
    assert (seen[0], run.state) == ("starting", "running")
    assert run.epoch.endswith("/1000")
    assert run.seconds_left is not None
    run = one(tmp_path)
    assert run.state == "interrupted"
    assert "ended by SIGTERM" in run.lines[0]
