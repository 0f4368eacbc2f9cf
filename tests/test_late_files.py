"""A shared file system on which a rename is seen late: Snakemake waits for files of a finished job."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from test_workflow import PHANTOM

# In place of `megavoxel`: what the stage has written comes into sight some seconds after the stage has ended.
LATE = """\
#!/bin/sh
{megavoxel} "$@" || exit $?
case "$1" in split|fingerprint) ;; *) exit 0;; esac
while [ "$1" != --output ]; do shift; done
mv "$2" "$2.unseen"
(sleep {seconds}; mv "$2.unseen" "$2") > /dev/null 2>&1 &
"""
STUDY = {
    "study": "late",
    "folds": 2,
    "defaults": {"patch": [8, 16, 16], "batch": 2, "network": {"base_features": 4, "levels": 3}},
    "settings": {"only": {}},
}
TARGETS = ("results/late/splits.json", "results/late/fingerprint.json")


def python_beside_late_stages(folder: Path, seconds: int) -> Path:
    """A Python with the packages of this one, beside a `megavoxel` whose files are seen late."""
    here, binaries = Path(sys.prefix), folder / "late" / "bin"
    binaries.mkdir(parents=True)
    (folder / "late" / "lib").symlink_to(here / "lib")
    if (here / "pyvenv.cfg").exists():
        (folder / "late" / "pyvenv.cfg").write_text((here / "pyvenv.cfg").read_text())
    (binaries / "python").symlink_to(Path(sys.executable).resolve())
    stage = binaries / "megavoxel"
    stage.write_text(LATE.format(megavoxel=f"{shlex.quote(sys.executable)} -m megavoxel", seconds=seconds))
    stage.chmod(0o755)
    return binaries / "python"


def test_files_that_are_seen_late_are_waited_for(repository, tmp_path):
    python = python_beside_late_stages(tmp_path, seconds=6)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(PHANTOM))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | {"dataset": str(tmp_path / "dataset.yaml")}))

    def snakemake(*arguments: str) -> subprocess.CompletedProcess:
        command = [str(python), "-m", "snakemake", *TARGETS, "--snakefile", str(repository / "Snakefile")]
        command += ["--directory", str(tmp_path), "--cores", "2", "--configfile", str(tmp_path / "study.yaml")]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    impatient = snakemake("--latency-wait", "1")
    assert impatient.returncode != 0
    assert "MissingOutputException" in impatient.stderr
    (wait,) = re.findall(r"(?m)^latency-wait: (\d+)$", (repository / "slurm" / "config.yaml").read_text())
    patient = snakemake("--latency-wait", wait, "--rerun-incomplete")
    assert patient.returncode == 0, patient.stderr
    assert all((tmp_path / target).is_file() for target in TARGETS)
