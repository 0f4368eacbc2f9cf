"""Weights on disk: tensors and plain values, whole or absent, never unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from megavoxel.errors import UserError
from megavoxel.files import atomic_path, writing

CONTENT = {"weights": dict, "plan_hash": str}
"""What every reader needs of a `model.pt`."""


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
        for key, kind in CONTENT.items():
            if not isinstance(content.get(key), kind):
                raise ValueError(f"'{key}' is missing or something else")
        if not all(isinstance(value, torch.Tensor) for value in content["weights"].values()):
            raise ValueError("'weights' holds something else than tensors")
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights; run 'megavoxel train'") from None
    except ValueError as fault:
        raise UserError(f"{path}: no weights of megavoxel, or damaged ({fault})") from None
    found = content["plan_hash"]
    if plan_hash is not None and found != plan_hash:
        raise UserError(f"{path}: was trained under another plan ({found}, expected {plan_hash}); train it again")
    return content


def fill_network(network: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Gives a network the weights that were read from `path`.

    Raises:
        UserError: they are those of another network.
    """
    try:
        network.load_state_dict(weights)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as fault:
        raise UserError(
            f"{path}: its weights do not fit the network of the plan ({_line(fault)}); train it again"
        ) from None


def load_tensors(path: Path) -> dict[str, Any]:
    """Reads tensors and plain values, and nothing that runs code, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no archive of PyTorch, or damaged, or no mapping.
    """
    if not zipfile.is_zipfile(path):
        if not Path(path).exists():
            raise FileNotFoundError(path)
        raise ValueError("no archive of PyTorch")
    _require_stored(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # a broken archive can raise nearly anything from the unpickler
        raise ValueError(_line(fault)) from fault
    if not isinstance(content, dict):
        raise ValueError(f"it holds no mapping but {type(content).__name__}")
    return content


def _require_stored(path: Path) -> None:
    """Refuses parts that are said to be larger than the file: PyTorch compresses nothing, and would allocate them."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except Exception as fault:  # so can its table of contents
        raise ValueError(_line(fault)) from fault
    if size > Path(path).stat().st_size:
        raise ValueError(f"its parts are said to have {size} bytes, more than the file")


def _line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:200]
