"""Errors that say that memory ran out, turned into one line: of what, what it was expected to need, what to try."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megavoxel.errors import UserError

SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What PyTorch says where it has no error of its own kind: its CPU allocator, the CUDA driver and its libraries."""
KILLED_LOADERS = ("is killed by signal: Killed", "out of shared memory")
"""What it says of a process that loads data and that the system has ended."""


@contextmanager
def explained_out_of_memory(setting: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turns an error inside that means that memory ran out into one line.

    Args:
        setting: its name.
        advice: asked in that case only: on which device, what was foretold, and what to try.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if any(_says(link, KILLED_LOADERS) for link in _chain(error)):
            raise UserError(
                f"setting {setting}: the system ended a process that loads data, as it does when memory runs out; "
                "give the job more host memory"
            ) from error
        if not any(_is_out_of_memory(link) for link in _chain(error)):
            raise
        raise UserError(f"setting {setting}: out of memory {advice()}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return refused or isinstance(error, kinds) or _says(error, SIGNS)


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from: a loader's end may stand behind another message."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
