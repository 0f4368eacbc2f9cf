"""Training states: whole or absent, the one before kept, never unpickled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megavoxel.errors import UserError, printable
from megavoxel.files import atomic_path, writing
from megavoxel.network.tensor_files import load_tensors


class StateWriter:
    """Writes the states of a run beside its training, one at a time."""

    def __init__(self, folder: Path, thread: ThreadPoolExecutor) -> None:
        self._folder, self._thread = folder, thread
        self._pending: Future[None] | None = None

    def write(self, state: dict[str, Any]) -> None:
        """Begins to write a copy of the state as it is now, after the one before is written.

        Raises:
            OSError: the one before could not be written.
            UserError: the same, as a library said it.
        """
        self.wait()
        self._pending = self._thread.submit(save_state, self._folder, on_host(state))

    def wait(self) -> None:
        """Returns when the state is written; errors as in `write`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


@contextmanager
def state_writer(folder: Path) -> Iterator[StateWriter]:
    """A writer that has written everything when the block is left, also by an error."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        writer = StateWriter(folder, thread)
        try:
            yield writer
        finally:
            writer.wait()


def on_host(state: Any) -> Any:
    """A copy of a state: tensors, in dictionaries, lists and tuples, become copies in the host's memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(part) for key, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(on_host, state))
    return state


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes `checkpoint.pt`; the one that was there becomes `checkpoint.previous.pt`."""
    path = Path(folder) / "checkpoint.pt"
    with atomic_path(path) as partial:
        with writing(path):
            torch.save(state, partial)
        if path.exists():
            os.replace(path, path.with_name("checkpoint.previous.pt"))


def load_state(folder: Path, *, key: str) -> dict[str, Any] | None:
    """The newest state in `folder` that is whole; None where there is none.

    A damaged state is passed over; a printed warning says so, and what training goes on from.

    Raises:
        UserError: the state belongs to another plan, fold or dataset than those of `key`.
    """
    damaged = []
    for path in (Path(folder) / "checkpoint.pt", Path(folder) / "checkpoint.previous.pt"):
        if not path.exists():
            continue
        try:
            state = load_tensors(path)
            found = state["key"]
        except (ValueError, KeyError) as fault:
            damaged.append(f"{path}: damaged ({fault})")
            continue
        if found != key:
            raise UserError(f"{path}: belongs to another run ({found}, expected {key}); remove the folder {folder}")
        _warn(damaged, "going on from the state before it")
        return state
    _warn(damaged, "no other state is there, so that training begins anew")
    return None


def _warn(damaged: list[str], what_follows: str) -> None:
    if damaged:
        print(printable(f"warning: {'; '.join(damaged)}; {what_follows}"), flush=True)
