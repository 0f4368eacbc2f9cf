"""When states are written: now and then, at the end, and when the job is told to end.

Slurm sends SIGTERM at the end of a job's time, when it is cancelled or preempted, and kills it some seconds later
(KillWait, 30 by default). SIGUSR1 is what `sbatch --signal` is often given for an earlier warning, and SIGINT what a
terminal sends on Ctrl-C.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megavoxel.distributed.group import Group
from megavoxel.errors import Interrupted, UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOK_SECONDS = 2.0
"""How often the processes of a group tell one another whether they were told to end."""


class Saving:
    """Asked after every step and epoch by all processes of a group, which get the same answers."""

    def __init__(self, group: Group, save: Callable[..., None], *, minutes: float) -> None:
        """`save(wait=...)` writes the state; `minutes` lie between two states, 0: one after each epoch."""
        self.group, self._save, self.seconds = group, save, 60 * minutes
        self.told: int = 0
        self._saved = self._looked = time.monotonic()
        self._steps, self._look_after = 0, 1

    def after_step(self, progress: str) -> bool:
        """Writes a state where it is time.

        Returns:
            whether the processes of the group have talked, as they do every few seconds.

        Raises:
            UserError: the job was told to end; its state is written.
            Interrupted: so it was, by Ctrl-C.
        """
        self._steps += 1
        if self._steps < self._look_after:
            return False
        is_due = self.seconds > 0 and time.monotonic() - self._saved >= self.seconds
        self._look(progress, is_due)
        return True

    def after_epoch(self, progress: str, *, is_last: bool) -> None:
        """Saves a state if one is due, after an epoch and its validation."""
        self._look(progress, is_last or time.monotonic() - self._saved >= self.seconds)

    def _look(self, progress: str, is_due: bool) -> None:
        # All processes have to agree: a pipeline's state is gathered from them, and one may be told to end a step late.
        told = round(max(self.group.all(self.told)))
        if self.group.all(is_due)[0] or told:
            # A process that ends takes the others with it: then the state has to be there before any goes on.
            self._save(wait=bool(told))
            self._saved = time.monotonic()
        self._plan_next_look()
        if told:
            saved = f"after {progress}; the state is saved: run the stage again to go on"
            if told == signal.SIGINT:
                raise Interrupted(f"interrupted {saved}")
            raise UserError(f"ended by {signal.Signals(told).name} {saved}")

    def _plan_next_look(self) -> None:
        """Talking costs a group time: it is done every few steps, as many as the slowest process takes in that time."""
        now = time.monotonic()
        slowest = max(self.group.all((now - self._looked) / max(self._steps, 1)))
        self._looked, self._steps = now, 0
        self._look_after = max(1, int(LOOK_SECONDS / slowest)) if self.group.size > 1 else 1


@contextmanager
def saving(group: Group, save: Callable[..., None], *, minutes: float) -> Iterator[Saving]:
    """A `Saving` that knows, within a `with` block, what signals tell this process."""
    found = Saving(group, save, minutes=minutes)

    def note(number: int, _: object) -> None:
        found.told = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends the process at once

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_the_parent(_: int = 0) -> None:
    """For processes that load patches: Slurm and terminals signal all processes of a job, and the step needs theirs."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
