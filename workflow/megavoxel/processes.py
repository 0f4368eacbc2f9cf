"""Processes of this host: which have ended, whatever new process has their number by now."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import psutil


def this_host() -> str:
    """This host, and the space that its process numbers are from: a container may have one of its own."""
    with suppress(OSError):
        return f"{socket.gethostname()} ({Path('/proc/self/ns/pid').readlink()})"
    return socket.gethostname()


def began(process: int) -> int:
    """When a process began, in ticks since the system's start, which no clock moves; 0: that cannot be seen here."""
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def has_ended(process: int, start: int) -> bool:
    """Whether the process of this host that had a number, and began then, has ended."""
    return not psutil.pid_exists(process) or began(process) != start
