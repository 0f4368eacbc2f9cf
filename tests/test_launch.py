"""Where the processes of a training job start, and where they meet."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from megavoxel.config.hardware import Device
from megavoxel.distributed.failures import GRACE_SECONDS, LOOK_SECONDS
from megavoxel.distributed.launch import meeting_point, nodes_of_step, start_group
from megavoxel.errors import UserError

STEP = {
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


@pytest.mark.parametrize(
    ("per_node", "devices", "nodes"),
    [(None, 8, 1), (4, 1, 1), (4, 4, 1), (4, 5, 5), (4, 6, 2), (4, 8, 2), (1, 3, 3)],
)
def test_a_job_takes_the_fewest_nodes_with_equal_shares(per_node, devices, nodes):
    assert Device(name="any", kind="gpu", devices_per_node=per_node).nodes(devices) == nodes


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_ID": "5"}, STEP | {"SLURM_STEP_NUM_NODES": "1"}])
def test_on_one_node_processes_meet_among_themselves(environment):
    assert meeting_point(environment) == ["--standalone"]


def test_on_several_nodes_they_meet_where_srun_runs_and_the_first_node_is_the_host():
    assert meeting_point(STEP) == [
        *("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "1234567.3"),
        *("--rdzv-endpoint", "10.0.0.7:24567", "--rdzv-conf", "is_host=false"),
    ]
    assert meeting_point(STEP | {"SLURM_NODEID": "0"})[-1] == "is_host=true"


def test_the_number_of_nodes_is_that_of_the_step_and_not_of_the_job():
    assert nodes_of_step({"SLURM_NNODES": "4"}) == 1


def test_devices_that_nodes_cannot_share_are_refused(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"setting big: parallel asks for 3 devices, which 2 nodes cannot share"):
        start_group("train", argparse.Namespace(device="cpu", threads=1), processes=3, setting="big")


def test_options_without_a_value_are_handed_on_where_they_were_given(monkeypatch):
    started = []
    monkeypatch.setattr("os.execve", lambda *given: started.extend(given[1]))
    options = argparse.Namespace(device="cpu", threads=1, probabilities=True, any_modality=False, series=[])
    start_group("predict", options, processes=2, setting="big")
    assert started[started.index("predict") + 1 :] == ["--device", "cpu", "--threads", "1", "--probabilities"]


@pytest.mark.parametrize("stage", ["train", "predict", "time"])
def test_torchrun_takes_no_option_of_a_stage_for_its_own(stage):
    """It would for any that one of its own options begins with, such as --start of --start-method."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"megavoxel.stages.{stage}").add_arguments(parser)
    words = [word for action in parser._actions for word in (action.option_strings[-1], "x") if word != "--help"]
    parsed = get_args_parser().parse_args(["--standalone", "-m", "megavoxel", stage, *words])
    assert parsed.training_script == "megavoxel"
    assert parsed.training_script_args == [stage, *words]


@pytest.mark.slow
def test_a_process_that_waits_for_a_lost_one_without_end_is_ended_and_the_first_error_is_the_last_line():
    worker = Path(__file__).with_name("stuck_worker.py")
    launcher = [sys.executable, "-m", "megavoxel.distributed.launch", "--standalone", "--max-restarts", "0"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(worker), "train"],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert "process 0 ends because another one did; its error is the last line" in lines
    assert lines[-1] == "megavoxel train: error: process 1: case 7 is damaged"
    assert GRACE_SECONDS + LOOK_SECONDS < 30
