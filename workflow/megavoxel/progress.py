"""Progress of a long piece of work: a bar on a terminal, plain lines with the remaining time in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

LINES = 10
"""Lines in a log if items have no lines of their own."""
SAID_FROM_SECONDS = 5.0
"""A shorter remaining time is not shown."""
BYTES = "B"
"""Unit of work that is counted in bytes."""


_terminals: dict[str, TextIO] = {}


@contextmanager
def also_on_terminal(name: str | None) -> Iterator[None]:
    """Within a `with` block, lines that are said appear on the terminal of the process too, headed by `name`.

    The output of a job goes to a log; who started it from a terminal sees what it says all the same. Without a terminal
    or a name, lines go to the log only.
    """
    with ExitStack() as stack:
        if name is not None:
            with suppress(OSError):  # a job of a cluster, or of cron, has none
                _terminals[name] = stack.enter_context(Path("/dev/tty").open("w"))
                stack.callback(_terminals.pop, name)
        yield


def say(line: str) -> None:
    """Writes a line to the output at once, and where `also_on_terminal` says so."""
    print(line, flush=True)
    for name, terminal in _terminals.items():
        print(f"{name}: {line}", file=terminal, flush=True)


class Progress:
    """Counts and shows the progress of one piece of work."""

    def __init__(self, bar: tqdm, title: str, total: int | None, done: int) -> None:
        self._bar, self._title, self._total, self._first, self._done = bar, title, total, done, done
        self._begin = time.monotonic()

    def advance(self, amount: int = 1, line: str | None = None) -> None:
        """Counts more work as done.

        Args:
            amount: how much, in units.
            line: text to write, also on a terminal; None: a log gets about ten lines in all, a terminal none.
        """
        before, self._done = self._done, self._done + amount
        self._bar.update(amount)
        if not self._bar.disable:
            if line is not None:
                self._bar.write(line)
        elif self._total and (line is not None or _tenths(self._done, self._total) > _tenths(before, self._total)):
            said = f"{self._title}: " if line is None else f"{line}; "
            # Without flush, Python would keep the lines of a log back until there are many.
            print(f"{said}{self._count(self._total)}", flush=True)

    def _count(self, total: int) -> str:
        left = time_left(self._done - self._first, total - self._done, time.monotonic() - self._begin)
        if self._bar.unit == BYTES:
            return f"{self._done / 1e6:.1f} of {total / 1e6:.1f} MB{left}"
        return f"{self._done} of {total}{left}"


@contextmanager
def progress(title: str, total: int | None, *, unit: str = "case", done: int = 0) -> Iterator[Progress]:
    """Shows the progress of a `with` block.

    Args:
        title: shown beside the bar and before the count.
        total: how much there is to do; None: not known, and no lines are written.
        unit: what is counted; `B`: bytes, shown in MB.
        done: how much was done before; it does not count for the speed.
    """
    with tqdm(total=total, initial=done, desc=title, unit=unit, unit_scale=unit == BYTES, disable=None) as bar:
        bar.unit = unit  # a switched-off bar does not keep it
        yield Progress(bar, title, total, done)


def time_left(done: int, missing: int, seconds: float) -> str:
    """`, about 3 min left`, at the speed so far; empty if that is not known or the time is short."""
    left = seconds / done * missing if done > 0 else 0.0
    return f", about {duration(left)} left" if left >= SAID_FROM_SECONDS else ""


def duration(seconds: float) -> str:
    """A duration as text: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size or (seconds >= size and unit == "h"):
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _tenths(done: int, total: int) -> int:
    return done * LINES // total
