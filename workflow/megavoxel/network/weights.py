"""Weights on disk: tensors and plain values, whole or absent, never unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from megavoxel.errors import UserError
from megavoxel.files import atomic_path, writing


def save_weights(path: Path, network: torch.nn.Module, **facts: Any) -> None:
    """Writes final weights with a few plain facts; loadable with `weights_only=True`."""
    with atomic_path(path) as partial, writing(path):
        torch.save({"weights": {name: value.cpu() for name, value in network.state_dict().items()}, **facts}, partial)


def load_weights(path: Path, *, plan_hash: str | None = None) -> dict[str, Any]:
    """Reads what `save_weights` wrote.

    Raises:
        UserError: the file is missing, damaged, or was trained under another plan than `plan_hash`.
    """
    try:
        content = load_tensors(path)
        found = content["plan_hash"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights; run 'megavoxel train'") from None
    except (ValueError, KeyError) as fault:
        raise UserError(f"{path}: no weights of megavoxel, or damaged ({fault})") from None
    if plan_hash is not None and found != plan_hash:
        raise UserError(f"{path}: was trained under another plan ({found}, expected {plan_hash}); train it again")
    return content


def load_tensors(path: Path) -> dict[str, Any]:
    """Reads tensors and plain values, and nothing that runs code, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no archive of PyTorch, or damaged.
    """
    if not zipfile.is_zipfile(path):
        if not Path(path).exists():
            raise FileNotFoundError(path)
        raise ValueError("no archive of PyTorch")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # a broken archive can raise nearly anything from the unpickler
        raise ValueError(" ".join(str(fault).split())[:200]) from fault
