"""A watch over code that is given broken input: no write outside a folder, no process, no pickle, no hang, no greed."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 30.0
"""Longest time of an example; sound input takes a tenth of one on an idle machine."""
EXTRA_BYTES = 2 * 2**30
"""Address space that an example may take beyond what the process has."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1}
CHANGES |= {"os.rename": 2, "os.link": 2, "os.symlink": 2}
"""Audit events that change the file system, and how many of their first arguments are paths that are changed."""
RELATIVE = ("os.mkdir", "os.remove", "os.rmdir")
"""Events whose last argument is a descriptor of the folder that the path begins in, or -1."""
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "pickle.find_class",
    "socket.connect",
)


class GuardError(AssertionError):
    """Broken input had an effect that it must not have."""


class Watch:
    """Where writes are allowed now, and what was seen that is not allowed; there is one per process."""

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notes forbidden events while an example runs; audit hooks cannot be removed."""
        if self.allowed is None:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open" and self._writes(*arguments[1:3]):
            self._look(event, arguments[0])
        elif event in CHANGES:
            # A link's first path is what it leads to.
            paths = arguments[1:2] if event in ("os.symlink", "os.link") else arguments[: CHANGES[event]]
            for path in paths:
                self._look(event, path, folder=arguments[-1] if event in RELATIVE else -1)

    def _writes(self, mode: str | None, flags: int) -> bool:
        return any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & WRITING)

    def _look(self, event: str, path: object, folder: int = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        start = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH109, PTH115
        place = os.path.normpath(os.path.join(start, os.fsdecode(path)))  # noqa: PTH118
        if place != os.devnull and not place.startswith(f"{self.allowed}{os.sep}") and place != str(self.allowed):
            self.seen.append(f"{event} {place}")


WATCH = Watch()


@contextmanager
def guarded(allowed: Path) -> Iterator[None]:
    """Watches a block of code that may write below `allowed` and nowhere else.

    Raises:
        GuardError: it wrote elsewhere, started a process, unpickled, connected, or took too long.
        MemoryError: it asked for more than `EXTRA_BYTES`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])

    def end(*_: object) -> None:
        raise GuardError(f"no end after {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, end)
    sys.dont_write_bytecode, written = True, sys.dont_write_bytecode
    WATCH.seen = []
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    WATCH.allowed = allowed.resolve()
    try:
        yield
    finally:
        WATCH.allowed = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        sys.dont_write_bytecode = written
    if WATCH.seen:
        raise GuardError("; ".join(WATCH.seen))
