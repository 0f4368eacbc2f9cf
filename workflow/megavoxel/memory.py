"""How much memory this process may use: that of the machine, or what the limits around the process allow."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

PROCESS = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")


def host_memory() -> int:
    """Bytes of the machine, or of the tightest limit on this process where that is less: of a control group around it,
    or as `ulimit -v` and `ulimit -d` set it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min([total, *limits_of_groups(), *(limit for limit in own if limit != resource.RLIM_INFINITY)])


def limits_of_groups(process: Path = PROCESS, mounted: Path = MOUNTED) -> list[int]:
    """Bytes that the control groups around this process allow, of both versions; those without a limit are left out.

    Args:
        process: what the kernel says of the process: `HIERARCHY:CONTROLLERS:PATH` per line.
        mounted: where groups are seen as folders.
    """
    lines = process.read_text().splitlines() if process.is_file() else []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            files = _of_each_group(mounted, path, "memory.max")
        elif "memory" in controllers.split(","):
            files = _of_each_group(mounted / "memory", path, "memory.limit_in_bytes")
        else:
            continue
        found += [int(text) for file in files if (text := file.read_text().strip()).isdigit()]
    return found


def _of_each_group(mounted: Path, path: str, name: str) -> Iterator[Path]:
    """The file of a control group and of those around it; a container sees its own group as the outermost one."""
    group = mounted / path.lstrip("/")
    while group.is_relative_to(mounted):
        if (group / name).is_file():
            yield group / name
        group = group.parent


def free_memory() -> int:
    """Bytes that can be had now: what is free on the machine, or what a limit leaves beside what this process holds."""
    left = host_memory() - psutil.Process().memory_info().rss
    return max(0, min(psutil.virtual_memory().available, left))
