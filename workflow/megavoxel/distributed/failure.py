"""How the end of one process of a group is told: its own error in one place, and one line from those that lose it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler

from megavoxel.errors import UserError

SIGNS_OF_A_LOST_PEER = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed",
    "failed to recv, got 0 bytes", "remote process exited", "Timed out waiting", "Connection refused",
)  # fmt: skip
"""What gloo, NCCL and their store say where another process is no longer there."""


@contextmanager
def told_to_runner() -> Iterator[None]:
    """Leaves the error of a member of a group for the process that started it, which says it last.

    Raises:
        UserError: another process of the group has ended, which is its error and not this one's.
    """
    try:
        yield
    except Exception as error:
        if lost_peer(error):
            rank = os.environ.get("RANK", "0")
            raise UserError(f"process {rank} ends because another one did; its error is the last line") from None
        get_error_handler().record_exception(error)
        raise


def lost_peer(error: Exception) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_A_LOST_PEER)


def first_failure(failed: ChildFailedError) -> tuple[int, str]:
    """Rank and error of the process of a group that failed first.

    One that has left its error is: those that lose another leave none. Else one that was killed is.
    """
    rank, failure = min(failed.failures.items(), key=lambda item: _order(item[1]))
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    return rank, message.removeprefix(f"{UserError.__name__}: ")


def _order(failure: ProcessFailure) -> tuple[bool, bool, int]:
    return not isinstance(failure.message, dict), failure.exitcode >= 0, failure.timestamp
