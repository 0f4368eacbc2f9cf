"""How much memory control groups and limits of the shell leave to a process."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest

from megavoxel.memory import host_memory, limits_of_groups


def made(tmp_path, lines: str, limits: dict[str, str]):
    (tmp_path / "cgroup").write_text(lines)
    for name, value in limits.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return limits_of_groups(tmp_path / "cgroup", tmp_path / "mounted")


def test_the_limit_of_a_nested_group_counts_as_well_as_those_around_it(tmp_path):
    limits = {
        "system.slice/job_7/step_0/memory.max": "max",
        "system.slice/job_7/memory.max": "6000",
        "memory.max": "9000",
        "other/memory.max": "1",
    }
    assert made(tmp_path, "0::/system.slice/job_7/step_0\n", limits) == [6000, 9000]


def test_groups_of_version_1_are_understood(tmp_path):
    limits = {"memory/slurm/job_7/memory.limit_in_bytes": "6000", "cpu/slurm/job_7/memory.limit_in_bytes": "1"}
    lines = "5:cpu,cpuacct:/slurm/job_7\n4:memory:/slurm/job_7\n0::/\n"
    assert made(tmp_path, lines, limits) == [6000]


def test_a_container_that_sees_its_own_group_only_finds_its_limit(tmp_path):
    assert made(tmp_path, "0::/docker/abc\n", {"memory.max": "6000"}) == [6000]


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_shell_counts_as_memory(monkeypatch, kind):
    real = resource.getrlimit
    wanted = getattr(resource, kind)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (2**27, -1) if limit == wanted else real(limit))
    assert host_memory() == 2**27


def test_a_machine_has_some_memory():
    assert 2**27 < host_memory() < 2**60


MIB = 2**20
LIMIT = 512 * MIB
ASKED = "from megavoxel.memory import free_memory, host_memory; print(host_memory(), free_memory())"


def own_group() -> tuple[Path, str] | None:
    """The folder of the control group around this process that limits memory, and the name of the limit's file."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/"), "memory.limit_in_bytes"
        if not controllers and "memory" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split():
            return Path("/sys/fs/cgroup") / path.lstrip("/"), "memory.max"
    return None


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real control group with a limit, around nothing."""
    folder = None
    try:
        around, limit = own_group() or pytest.skip("no control group limits memory here")
        folder = around / f"megavoxel-test-{os.getpid()}"
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT))
    except OSError as fault:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"control groups cannot be made here: {fault}")
    yield folder
    folder.rmdir()


def run_in(group: Path, *words: object) -> subprocess.CompletedProcess:
    """A Python that joins a control group before it begins."""
    command = shlex.join([sys.executable, *map(str, words)])
    joined = ["sh", "-c", f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))} && exec {command}"]
    return subprocess.run(joined, capture_output=True, text=True, check=False, timeout=120)


def label_maps(folder: Path, side: int) -> list[Path]:
    """Two folders with a label map each, of side^3 voxels that are packed to nearly nothing."""
    for name in ("predicted", "reference"):
        (folder / name).mkdir()
        nibabel.Nifti1Image(np.zeros((side,) * 3, np.uint8), np.eye(4)).to_filename(folder / name / "a.nii.gz")
    return [folder / "predicted", folder / "reference"]


def test_a_process_in_a_control_group_finds_its_limit(limited):
    total, free = map(int, run_in(limited, "-c", ASKED).stdout.split())
    assert total == LIMIT
    assert LIMIT / 2 < free < LIMIT


def test_a_process_under_a_limit_of_the_shell_finds_it():
    done = subprocess.run(
        ["sh", "-c", f"ulimit -v {4096 * 2**10} && exec {shlex.join([sys.executable, '-c', ASKED])}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    total, free = map(int, done.stdout.split())
    assert total == 4096 * MIB
    assert 2048 * MIB < free < total


def test_what_a_control_group_does_not_hold_is_refused_in_one_line_and_not_killed(limited, tmp_path):
    folders = label_maps(tmp_path, 400)
    done = run_in(
        limited, "-m", "megavoxel", "evaluate", *folders, "--tolerance", 1, "--output", tmp_path / "scores.csv"
    )
    assert done.returncode == 1, done
    assert "case a: comparing two label maps of 64000000 voxels takes" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "scores.csv").exists()
