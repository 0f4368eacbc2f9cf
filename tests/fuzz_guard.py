"""A watch over code that is given broken input: no write outside a folder, no process, no pickle, no hang, no greed.

Each example has a fork of this process, so that one that hangs in compiled code, crashes or takes all of its memory
ends nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 10
"""Processor time that an example may take, which does not depend on what else the machine does."""
PATIENCE = 120.0
"""Seconds after which an example counts as hanging, though it takes no processor time."""
EXTRA_BYTES = 2**30
"""Address space that an example may take beyond what the process has, and bytes that it may write."""
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
        GuardError: it wrote elsewhere, started a process, unpickled or connected.
    """
    sys.dont_write_bytecode, written = True, sys.dont_write_bytecode
    WATCH.seen, WATCH.allowed = [], allowed.resolve()
    try:
        yield
    finally:
        WATCH.allowed = None
        sys.dont_write_bytecode = written
    if WATCH.seen:
        raise GuardError("; ".join(WATCH.seen))


def outcome(read: Callable[[], bool], allowed: Path) -> bool:
    """What a function returns in a process of its own, which may write below `allowed` and nowhere else.

    Raises:
        GuardError: it raised, crashed, took too long or too much memory, wrote too much, or did what `guarded` forbids.
    """
    receiving, sending = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(receiving)
            _answer(sending, read, allowed)
        finally:
            os._exit(3)  # whatever happened: a fork must never go on with the tests
    os.close(sending)
    answer = b""
    with os.fdopen(receiving, "rb") as pipe:
        if select.select([pipe], [], [], PATIENCE)[0]:
            answer = pipe.read()
        else:
            os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status == -signal.SIGXCPU:
        raise GuardError(f"no end after {SECONDS} s")
    if status or not answer:
        raise GuardError(f"hung for {PATIENCE:g} s" if status == -signal.SIGKILL else f"crashed with status {status}")
    found = json.loads(answer)
    if isinstance(found, str):
        raise GuardError(found)
    return found


def _answer(pipe: int, read: Callable[[], bool], allowed: Path) -> NoReturn:
    """Ends this process after it has written to the pipe what came of it: a truth value, or what went wrong.

    Whatever happens, nothing of the parent's work goes on in this process.
    """
    try:
        os.write(pipe, json.dumps(_found(read, allowed)).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _found(read: Callable[[], bool], allowed: Path) -> bool | str:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_BYTES, hard))
    try:
        with guarded(allowed):
            taken = bool(read())
    except BaseException as fault:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return _told(fault)
    written = sum(path.lstat().st_size for path in allowed.rglob("*") if path.is_file())
    return taken if written <= EXTRA_BYTES else f"wrote {written} bytes"


def _told(fault: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(fault.__traceback__) if "megavoxel" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{type(fault).__name__}: {str(fault)[:600]} < {' < '.join(places[::-1][:6])}"
