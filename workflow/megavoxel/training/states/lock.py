"""One job at a time on a run's states, also over the nodes of a cluster.

Where Snakemake was killed and started again, the job of the first may still train. A lock file beside the states says
who holds them, and its holder touches it now and then. It is made by an exclusive open, which is atomic on NFS as well,
and its age is read off the file system's own clock: those of nodes may differ.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.processes import began, has_ended, this_host

ALIVE = "alive.json"
HEARTBEAT = 15.0
"""Seconds between two signs of life."""
MISSED = 4
"""Number of missed signs of life after which the holder counts as dead."""
WATCHED = 1.5
"""Number of signs of life that who waits must have missed: an age alone may come of a clock that was set."""
LOOK = 1.0
"""Seconds between two looks at somebody else's lock."""
LONGEST_SILENCE = 180.0
"""Seconds without a visible sign of life after which a process on another host counts as dead for those who only look:
the missed signs, a file system that shows new times up to a minute late, and clocks that differ."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds states, or would like to."""

    host: str = field(default_factory=this_host)
    process: int = field(default_factory=os.getpid)
    began: int = field(default_factory=lambda: began(os.getpid()))
    """Tells this process from a later one with its number."""
    job: str = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID", ""))
    """Number of the Slurm job; empty outside of Slurm."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this lock from an earlier one of the same process."""

    def __str__(self) -> str:
        job = f"Slurm job {self.job}, " if self.job else ""
        return f"{job}process {self.process} on {self.host.split(' ')[0]}"

    @property
    def is_gone(self) -> bool | None:
        """Whether the process has ended; None: it is on another host, where only its signs of life tell."""
        if self.host != this_host():
            return None
        return has_ended(self.process, self.began)


class Lock:
    """A lock that is held, and kept by signs of life."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self.holder = path, holder
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Refuses to go on without the lock.

        Raises:
            UserError: this process was silent for so long that another one has taken over.
        """
        found = _holder(self.path)
        if found != self.holder:
            raise UserError(
                f"{self.path.parent}: taken over by {found or 'another process'} while this one gave no sign of life; "
                "it writes nothing more here"
            )

    def release(self) -> None:
        """Lets go of the lock, unless somebody else has it by now."""
        self._released.set()
        self._heart.join()
        if _holder(self.path) == self.holder:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with suppress(OSError):  # the next one may reach the file system again
                if _holder(self.path) == self.holder:
                    os.utime(self.path)


@contextmanager
def held(folder: Path, *, patience: float = float("inf")) -> Iterator[Lock]:
    """The lock of a folder of states, for the time of a `with` block.

    While somebody else has it, a line says who, and this process waits.

    Args:
        folder: is made if need be.
        patience: seconds to wait at most.

    Raises:
        UserError: somebody else has it still.
    """
    holder = Holder()
    path = _path(folder)
    _wait(path, lambda: _take(path, holder), patience)
    lock = Lock(path, holder)
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """Shows that this process works on a run, in `alive.json` of the run's folder, for the time of a `with` block.

    The file stays behind a process that is killed, and tells then that it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = Holder()
    write_json(folder / ALIVE, asdict(holder))
    sign = Lock(folder / ALIVE, holder)
    try:
        yield
    finally:
        sign.release()


def is_alive(folder: Path) -> bool | None:
    """Whether a process works on the run of a folder, by its `alive.json`; None: none began, or it has ended by itself.

    A process on this host is looked for by its number. Of others the age of their last sign counts, by this host's
    clock, which may be some seconds off that of the file system.
    """
    path = folder / ALIVE
    other = _holder(path)
    if other is None:
        return None
    if other.is_gone is not None:
        return not other.is_gone
    try:
        return time.time() - path.stat().st_mtime <= LONGEST_SILENCE
    except FileNotFoundError:
        return None


def wait_for_others(folder: Path) -> None:
    """Waits until no other job holds the lock of a folder of states; one of the same Slurm job does not count."""
    path, own = _path(folder), Holder()

    def is_free() -> bool:
        other = _holder(path)
        return not path.exists() or (other is not None and other.job == own.job != "")

    _wait(path, is_free, float("inf"))


def _wait(path: Path, is_done: Callable[[], bool], patience: float) -> None:
    begin, told, seen = time.monotonic(), None, _LastSign()
    while not is_done():
        other = _holder(path)
        if _is_dead(path, other, seen):
            _remove(path, other)
            continue
        if other not in (None, told):
            told = other
            print(f"waiting for {other}, which trains here: {path.parent}", flush=True)
        if time.monotonic() - begin > patience:
            raise UserError(
                f"{path.parent}: {other or 'another process'} trains here already; cancel it or wait for its end, then "
                "run the stage again"
            )
        time.sleep(LOOK)


def _path(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "lock.json"


def _holder(path: Path) -> Holder | None:
    """Who holds a lock; None where nobody does, or it cannot be read in this moment."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def _take(path: Path, holder: Holder) -> bool:
    """Makes the lock file if there is none; whether this process did."""
    try:
        with path.open("x") as file:
            file.write(json.dumps(asdict(holder)))
    except FileExistsError:
        return False
    return True


@dataclass(kw_only=True)
class _LastSign:
    """The last sign of life of a holder that was seen, and since when there was no other one."""

    sign: tuple[int, int] = (0, 0)
    """Number and time of the lock file."""
    since: float = 0.0

    def silence(self, found: os.stat_result) -> float:
        """Seconds, by a clock that nobody sets, in which the lock file stayed as it is."""
        sign = found.st_ino, found.st_mtime_ns
        if sign != self.sign:
            self.sign, self.since = sign, time.monotonic()
        return time.monotonic() - self.since


def _is_dead(path: Path, other: Holder | None, seen: _LastSign) -> bool:
    """Whether the holder is known to have ended, or gave no sign of life for too long."""
    if other is not None and other.is_gone:
        return True
    try:
        found = path.stat()
        silence, is_old = seen.silence(found), _now(path.parent) - found.st_mtime > MISSED * HEARTBEAT
    except FileNotFoundError:
        return False
    return silence > (WATCHED if is_old else MISSED) * HEARTBEAT


def _now(folder: Path) -> float:
    """The time by the clock of the file system that `folder` lies on."""
    probe = folder / f".time-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path, dead: Holder | None) -> None:
    """Removes a dead holder's lock; of several processes that try, one does."""
    if _holder(path) != dead:  # another process was quicker
        return
    aside = path.with_name(f".lock-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _holder(aside) != dead:
        # It was quicker in this very moment, and this is its new lock: it goes back. Where a third one has taken the
        # place by now, `check` tells the owner before it writes.
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
