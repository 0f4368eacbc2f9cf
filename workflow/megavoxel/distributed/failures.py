"""How the processes of a group learn that one of them has failed.

On a GPU, NCCL's kernels wait for a lost peer without end, and the process waits for the kernels: neither a signal's
handler nor an exception gets through to it. So a process that fails says it in the group's store before anything else.
In every other one a thread looks there, and ends the process if it has not ended by itself soon after. This works
across the nodes of a job, of which `torchrun` only knows its own.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch.distributed

from megavoxel.distributed.launch import record_error

FAILED = "megavoxel/failed"
"""Key of the store, with the rank of a process that failed."""
LOOK_SECONDS = 1.0
GRACE_SECONDS = 10.0
"""How long a process may take to end by itself after another one has failed."""
CONNECTING = timedelta(seconds=30)
UNREACHABLE = (RuntimeError, OSError)
"""What a store that is no longer there raises."""


@contextmanager
def failures_told() -> Iterator[None]:
    """Tells the other processes of an error within a `with` block, and ends this one if another one fails.

    The error is recorded for `torchrun` first: whatever comes after may have to wait for a lost peer.
    """
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=CONNECTING, wait_for_workers=False
    )
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(store, done), daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        record_error(error)
        _tell(store)
        raise
    finally:
        done.set()
        watcher.join()


def _tell(store: torch.distributed.Store) -> None:
    try:
        store.set(FAILED, os.environ["RANK"])
    except UNREACHABLE:
        return  # the process that keeps the store has ended, and with it the job


def _watch(store: torch.distributed.Store, done: threading.Event) -> None:
    """Looks at the store until `done`; ends this process where another one has failed and this one does not end."""
    while not done.wait(LOOK_SECONDS):
        try:
            failed = store.check([FAILED])
        except UNREACHABLE:
            return
        if failed:
            if not done.wait(GRACE_SECONDS):
                _end(f"process {os.environ['RANK']} ends because another one did; its error is the last line")
            return


def _end(why: str) -> NoReturn:
    print(why, file=sys.stderr, flush=True)
    os._exit(1)


def run_member(stage: Callable[[], int]) -> NoReturn:
    """Runs a stage in a process of a group, and ends the process with its exit status.

    After an error it ends at once: what Python and PyTorch do at the end of a process could wait for a lost peer.
    """
    try:
        status = stage()
    except Exception:
        traceback.print_exc()
        status = 1
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
