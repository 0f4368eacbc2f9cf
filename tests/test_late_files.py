"""A shared file system on which a rename is seen late: Snakemake waits for files of a finished job."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import yaml

from stage_server import python_beside
from workflow_runs import PHANTOM, SMALL_STUDY, snakemake

# In place of `megavoxel`: what the stage has written comes into sight some seconds after the stage has ended.
LATE = """\
#!/bin/sh
{megavoxel} "$@" || exit $?
case "$1" in split|fingerprint) ;; *) exit 0;; esac
while [ "$1" != --output ]; do shift; done
mv "$2" "$2.unseen"
(sleep {seconds}; mv "$2.unseen" "$2") > /dev/null 2>&1 &
"""
STUDY = SMALL_STUDY | {"study": "late"}
TARGETS = ("results/late/splits.json", "results/late/fingerprint.json")

pytestmark = pytest.mark.slow


def test_files_that_are_seen_late_are_waited_for(repository, tmp_path):
    late = LATE.format(megavoxel=f"{shlex.quote(sys.executable)} -m megavoxel", seconds=6)
    python = python_beside(tmp_path / "late", late)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(PHANTOM))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | {"dataset": str(tmp_path / "dataset.yaml")}))

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return snakemake(
            repository, tmp_path, *TARGETS, "--configfile", "study.yaml", *arguments,
            program=python.with_name("snakemake"),
        )  # fmt: skip

    impatient = run("--latency-wait", "1")
    assert impatient.returncode != 0
    assert "MissingOutputException" in impatient.stderr
    (wait,) = re.findall(r"(?m)^latency-wait: (\d+)$", (repository / "slurm" / "config.yaml").read_text())
    patient = run("--latency-wait", wait, "--rerun-incomplete")
    assert patient.returncode == 0, patient.stderr
    assert all((tmp_path / target).is_file() for target in TARGETS)
