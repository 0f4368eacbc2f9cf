"""How much memory control groups leave to a process."""

from __future__ import annotations

import resource

import pytest

from megavoxel.network.host_memory import host_memory, limits_of_groups


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
