"""Training states: whole or absent, the one before kept, never unpickled."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from megavoxel.errors import UserError
from megavoxel.files import atomic_path, writing
from megavoxel.network.weights import load_tensors


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

    A damaged state is passed over with a warning.

    Raises:
        UserError: the state belongs to another plan, fold or dataset than those of `key`.
    """
    for path in (Path(folder) / "checkpoint.pt", Path(folder) / "checkpoint.previous.pt"):
        if not path.exists():
            continue
        try:
            state = load_tensors(path)
            found = state["key"]
        except (ValueError, KeyError) as fault:
            warnings.warn(f"{path}: damaged ({fault}); going on from the state before it", stacklevel=2)
            continue
        if found != key:
            raise UserError(f"{path}: belongs to another run ({found}, expected {key}); remove the folder {folder}")
        return state
    return None
