"""What training says between the ends of two epochs, so that a long epoch is not silent."""

from __future__ import annotations

import time

from megavoxel.progress import duration, say
from megavoxel.training.run import Run

SECONDS = 30.0
"""Seconds between two lines."""


class Pace:
    """Counts the steps of an epoch; all processes of a group ask it after the same steps."""

    def __init__(self, run: Run, steps: int) -> None:
        """`steps`: of a whole epoch; the run may have taken some of them before it was interrupted."""
        self._run, self._steps, self._first = run, steps, len(run.losses)
        self._begin = self._said = time.monotonic()

    def is_due(self) -> bool:
        """Whether the leading process has been silent for long; the same answer in all processes."""
        return bool(self._run.group.all(time.monotonic() - self._said >= SECONDS)[0])

    def say(self, loss: float) -> None:
        """Writes the leading process's line; `loss` is the mean over the epoch so far."""
        self._said, done = time.monotonic(), len(self._run.losses)
        if not self._run.group.leads:
            return
        rate = (done - self._first) / (self._said - self._begin)
        left = duration((self._steps - done) / rate)
        epoch = f"epoch {self._run.epoch + 1}/{self._run.plan.training.epochs}"
        say(f"{epoch}, step {done}/{self._steps}  loss {loss:.4f}  {rate:.2f} steps/s, {left} left of the epoch")
