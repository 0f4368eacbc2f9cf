"""A clock that is set by a day while work goes on: forward and back, as when a machine's time is mended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers import tiny_plan
from megavoxel.network.weights import load_weights
from training_jobs import training_command
from workflow_runs import PHANTOM, SMALL_STUDY, snakemake

DAY = 86400
STUDY = SMALL_STUDY | {"study": "clock"}
TARGETS = ("results/clock/splits.json", "results/clock/fingerprint.json")

pytestmark = pytest.mark.slow


@pytest.fixture
def faketime() -> Path:
    """The library that gives a process another time; of the package faketime."""
    found = [path for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1") if sys.platform == "linux"]
    if not found:
        pytest.skip("there is no libfaketime (apt-get install faketime)")
    return found[0]


def test_training_under_a_clock_that_jumps_ends_with_the_same_weights(tmp_path, faketime):
    plan = tiny_plan(training={"epochs": 4, "iterations_per_epoch": 10, "workers": 2})
    command = training_command(tmp_path, plan)
    plain = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", "plain"], cwd=tmp_path, env=plain, check=True, capture_output=True)
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    faked = plain | {
        "LD_PRELOAD": str(faketime), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    words = [*command, "--output", "jumped"]
    words[words.index("--state") + 1] = "other"
    job = subprocess.Popen(words, cwd=tmp_path, env=faked, stdout=subprocess.PIPE, text=True)
    jumps = {"epoch 1/": "+1d\n", "epoch 2/": "-1d\n"}
    for line in job.stdout:
        clock.write_text(next((jump for sign, jump in jumps.items() if sign in line), clock.read_text()))
    assert job.wait() == 0
    assert clock.read_text() == "-1d\n"
    weights, wanted = (load_weights(tmp_path / name / "model.pt")["weights"] for name in ("jumped", "plain"))
    assert all(value.equal(wanted[name]) for name, value in weights.items())


def test_snakemake_goes_on_with_files_that_were_made_tomorrow(repository, tmp_path):
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(PHANTOM))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | {"dataset": str(tmp_path / "dataset.yaml")}))
    words = (*TARGETS, "--configfile", "study.yaml")
    assert snakemake(repository, tmp_path, *words).returncode == 0
    content = [(tmp_path / name).read_bytes() for name in TARGETS]
    for path in (tmp_path / "results/clock/cases.json", tmp_path / "data/small-phantom/checksums.tsv"):
        os.utime(path, (time.time() + DAY,) * 2)
    again = snakemake(repository, tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert [(tmp_path / name).read_bytes() for name in TARGETS] == content
