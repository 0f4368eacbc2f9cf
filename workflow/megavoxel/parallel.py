"""Runs a function on many cases, in this process or in several, and shows the progress."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from typing import TypeVar

from threadpoolctl import threadpool_limits

from megavoxel.errors import UserError
from megavoxel.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PROBES = 2
"""Items done in this process first. The last of them, after all imports, tells how long the others will take."""
START_SECONDS = 6.0
"""Time in which other processes start and import; if less work than that is left, this process does it alone."""


def map_cases(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    processes: int = 1,
    title: str,
    unit: str = "case",
    describe: Callable[[Item, Result], str] | None = None,
) -> list[Result]:
    """Returns `[work(item) for item in items]`, in that order with any number of processes.

    Products of matrices are computed by one thread each, here as in other processes: how BLAS divides them among
    threads changes the last digits, and results must not depend on the number of cores.

    Args:
        work: a function of a module, or a `functools.partial` of one, which can be sent to other processes.
        items: the arguments of `work`.
        processes: how many run at once; of several, each computes with one thread in all.
        title: shown beside the progress.
        unit: what an item is.
        describe: makes a line about each finished item; None: a log gets about ten lines in all.

    Raises:
        UserError: a process was killed. Errors of `work` are raised as well.
    """
    results: list[Result] = []
    with progress(title, len(items), unit=unit) as shown, threadpool_limits(1, user_api="blas"):
        for result in _results(work, items, processes, title):
            item = items[len(results)]
            results.append(result)
            shown.advance(line=None if describe is None else describe(item, result))
    return results


def _results(work: Callable[[Item], Result], items: Sequence[Item], processes: int, title: str) -> Iterator[Result]:
    for done, item in enumerate(items, start=1):
        begin = time.monotonic()
        result = work(item)
        left = (time.monotonic() - begin) * (len(items) - done)
        yield result
        if processes > 1 and done == PROBES and left > START_SECONDS:
            yield from _by_processes(work, items[done:], processes, title)
            return


def _by_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int, title: str
) -> Iterator[Result]:
    # A fork of a process that has used OpenMP threads can hang. The fork server is a fresh process with the module.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(work, "func", work).__module__])
    try:
        with _one_thread_each(), _pool(min(processes, len(items)), context) as pool:
            yield from pool.map(work, items)
    except BrokenProcessPool:
        raise UserError(
            f"{title}: a process was killed, most likely because memory ran out; "
            "run with fewer --processes, or more memory"
        ) from None


@contextmanager
def _pool(processes: int, context: BaseContext) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl-C, which a terminal sends to all of them, to this one: it ends them."""
    leave_to_parent = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=leave_to_parent) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            # The pool's thread may meet futures that are cancelled already, and then says so (Python 3.11).
            threading.excepthook = lambda _: None
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Has processes that are started inside compute with one thread each, so that they do not compete for cores."""
    before = {name: os.environ.get(name) for name in THREAD_COUNTS}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
