"""Training jobs of a real Slurm that meet a fault, each of which ends with the weights of the one that met none.

They train at the same time, by a Snakemake each.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from training_job import EPOCHS, UNDISTURBED, Job, run_here, until

FAULTS = ("cancelled", "timed", "tight", "orphan", "requeued", "daemon")
SCORED = ("cancelled", "requeued")


@pytest.fixture(scope="module")
def jobs(cluster, prepared) -> dict[str, Job]:
    return {name: Job(cluster, prepared, name) for name in FAULTS}


@pytest.fixture(scope="module")
def said(jobs) -> dict[str, str]:
    """What each job's Snakemake printed, from its start through its fault to its success."""
    faults = {
        "cancelled": cancel,
        "timed": end_its_time,
        "tight": leave_alone,
        "orphan": kill_snakemake_and_start_again,
        "requeued": requeue,
        "daemon": kill_the_daemon_of_its_node,
    }
    with ThreadPoolExecutor() as pool:
        words = {name: pool.submit(fault, jobs[name], jobs[name].start()) for name, fault in faults.items()}
        return {name: found.result() for name, found in words.items()}


def cancel(job: Job, running: subprocess.Popen) -> str:
    job.pause()
    job.cluster.run("scancel", job.number())
    return job.finish(running)


def end_its_time(job: Job, running: subprocess.Popen) -> str:
    """Slurm looks for jobs whose time is over twice a minute, and wakes a paused process to tell it."""
    job.pause()
    job.cluster.run("scontrol", "update", f"jobid={job.number()}", "EndTime=now+1")
    return job.finish(running)


def leave_alone(job: Job, running: subprocess.Popen) -> str:
    """The job asks for too little memory, as its plan says, which is fault enough."""
    return job.finish(running)


def kill_snakemake_and_start_again(job: Job, running: subprocess.Popen) -> str:
    """The second Snakemake's job begins while the first one's is still there."""
    process = job.pause()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    job.finish(job.start("--unlock"))
    again = job.start()
    until(lambda: is_waited_for(job, process), "the second job does not wait")
    os.kill(process, signal.SIGCONT)
    return job.finish(again)


def requeue(job: Job, running: subprocess.Popen) -> str:
    """What preemption does where its mode is REQUEUE: Slurm ends the job, and begins it again two minutes later."""
    job.pause()
    job.cluster.run("scontrol", "requeue", job.number())
    return job.finish(running)


def kill_the_daemon_of_its_node(job: Job, running: subprocess.Popen) -> str:
    """The job goes on meanwhile, and the daemon finds it when it is started again."""
    process = job.pause()
    node = job.cluster.run("squeue", "--noheader", f"--jobs={job.number()}", "--format=%N").strip()
    job.cluster.kill_node(node)
    os.kill(process, signal.SIGCONT)
    time.sleep(5)
    job.cluster.start_node(node)
    return job.finish(running)


def is_waited_for(job: Job, process: int) -> bool:
    """Whether another job waits by now; the paused process is let go for a moment, so that it gives signs of life."""
    os.kill(process, signal.SIGCONT)
    time.sleep(0.2)
    os.kill(process, signal.SIGSTOP)
    time.sleep(3)
    return "waiting for Slurm job" in job.words()


@pytest.fixture(scope="module")
def scores(said, prepared) -> dict[str, list[dict[str, str]]]:
    """Scores of the validation cases by the networks of some of the jobs, and by that of the undisturbed one."""
    names = (UNDISTURBED, *SCORED)
    files = {name: f"results/faults/{name}/fold-0/scores.csv" for name in names}
    run_here(prepared, *files.values())
    return {name: list(csv.DictReader((prepared / file).open())) for name, file in files.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_are_those_of_a_job_that_met_no_fault(jobs, said, fault):
    assert jobs[fault].is_undisturbed()


@pytest.mark.parametrize("fault", SCORED)
def test_scores_are_those_of_a_job_that_met_no_fault(scores, fault):
    ours, theirs = ([{**row, "setting": ""} for row in scores[name]] for name in (fault, UNDISTURBED))
    assert len(theirs) == 2 * 4 * 2  # cases, labels and metrics
    assert ours == theirs


@pytest.mark.parametrize(("fault", "state"), [("cancelled", "CANCELLED"), ("timed", "TIMEOUT"), ("tight", "FAILED")])
def test_a_job_that_ended_too_early_is_tried_again(said, fault, state):
    assert f"SLURM status is: '{state}'" in said[fault]
    assert "Trying to restart job" in said[fault]


@pytest.mark.parametrize("fault", ["requeued", "daemon"])
def test_a_job_that_slurm_keeps_is_submitted_once(said, fault):
    assert said[fault].count("has been submitted") == 1
    assert "Trying to restart job" not in said[fault]


def test_a_job_does_not_notice_that_the_daemon_of_its_node_was_killed(jobs, said):
    assert "going on" not in jobs["daemon"].words()


@pytest.mark.parametrize("fault", ["cancelled", "timed", "requeued"])
def test_the_second_attempt_goes_on_in_the_middle_of_the_epoch(jobs, said, fault):
    assert re.search(r"going on after epoch \d and \d+ steps?", jobs[fault].words())


def test_the_next_attempt_has_more_memory(said):
    assert re.findall(r"rule train:.*?mem_mb=(\d+)", said["tight"], flags=re.DOTALL)[:2] == ["494", "988"]


def test_the_job_of_a_second_snakemake_trains_nothing_twice(jobs, said):
    words = jobs["orphan"].words()
    assert f"going on after epoch {EPOCHS} (of {EPOCHS} epochs)" in words
