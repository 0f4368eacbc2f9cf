"""A cluster that keeps accounts: its controller may be away for a while, and there is a report of what jobs used."""

from __future__ import annotations

import csv
import os
import signal
import time

import pytest
from site_of_user import take_site
from slurm_cluster import ACCOUNT
from training_job import Job

SITE = {
    "all": {"slurm_account": ACCOUNT},
    "options": {"slurm-init-seconds-before-status-checks": 5, "slurm-efficiency-report": True},
}


@pytest.fixture(scope="module")
def restarted(accounting_cluster, prepared) -> Job:
    """A job whose controller was away for longer than the pause between two looks at it."""
    take_site(prepared, SITE)
    job = Job(accounting_cluster, prepared, "restarted")
    running = job.start()
    process = job.pause()
    accounting_cluster.stop_controller()
    os.kill(process, signal.SIGCONT)
    time.sleep(20)
    accounting_cluster.start_controller()
    job.finish(running)
    return job


def test_a_controller_that_was_away_costs_no_work(restarted):
    assert restarted.is_undisturbed()
    assert "going on" not in restarted.words()


def test_the_report_says_what_the_job_asked_for_and_used(restarted):
    (report,) = restarted.folder.glob("efficiency_report_*")
    with report.open() as file:
        rows = list(csv.DictReader(file))
    (job,) = [row for row in rows if "train" in row["RuleName"]]
    assert float(job["RequestedMem_MB"]) == 5369
    assert 0 < float(job["MaxRSS_MB"]) < 5369
