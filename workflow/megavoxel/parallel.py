"""Runs a function on many cases, in this process or in several, and shows the progress."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

from threadpoolctl import threadpool_limits

from megavoxel.errors import UserError
from megavoxel.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
Message = TypeVar("Message")
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


def all_at_once(
    work: Callable[[Item, Callable[[Message], None]], Result],
    items: Sequence[Item],
    *,
    heard: Callable[[Message], None],
    title: str,
) -> list[Result]:
    """Returns `[work(item, tell) for item in items]`, each in a process of its own, all at the same time.

    Args:
        work: a function of a module, or a `functools.partial` of one. What it passes to `tell` reaches `heard`.
        items: the first arguments of `work`.
        heard: called in this process, in a thread, for one message after another.
        title: what is being done.

    Raises:
        UserError: a process was killed. Errors of `work`, of which the others do not hear, and of `heard` are raised
            as well, after all have ended.
    """
    context = multiprocessing.get_context("spawn")  # the fork server may keep to one thread each
    messages = context.SimpleQueue()
    with ThreadPoolExecutor(1) as listener, _pool(len(items), context, messages) as pool:
        listening = listener.submit(_listen, messages, heard)
        futures = [pool.submit(_work_and_tell, work, item) for item in items]
        try:
            wait(futures)
        finally:
            messages.put(None)
        listening.result()
    try:
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise UserError(f"{title}: a process was killed, most likely because the machine's memory ran out") from None


def _listen(messages: SimpleQueue, heard: Callable[[Message], None]) -> None:
    while (message := messages.get()) is not None:
        heard(message)


def _work_and_tell(work: Callable[[Item, Callable[[Message], None]], Result], item: Item) -> Result:
    (messages,) = _to_parent
    return work(item, messages.put)


_to_parent: list[SimpleQueue] = []
"""In a process that was started here: the queue of its messages, if it has one."""


def _begin(messages: SimpleQueue | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if messages is not None:
        _to_parent.append(messages)


@contextmanager
def _pool(processes: int, context: BaseContext, messages: SimpleQueue | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl-C, which a terminal sends to all of them, to this one: it ends them."""
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(messages,)) as pool:
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
