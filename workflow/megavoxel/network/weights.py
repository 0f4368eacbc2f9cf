"""Weights on disk: tensors and plain values, whole or absent, never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megavoxel.errors import UserError, shown
from megavoxel.network.device import TYPES
from megavoxel.network.tensor_files import load_tensors, one_line, save_tensors

CONTENT = {"weights": dict, "plan_hash": str}
"""What every reader needs of a `model.pt`."""


def save_weights(path: Path, network: torch.nn.Module, **facts: Any) -> None:
    """Writes final weights with a few plain facts; loadable with `weights_only=True`."""
    save_tensors(path, {"weights": {name: value.cpu() for name, value in network.state_dict().items()}, **facts})


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

    Args:
        network: as it was made; one that was made on the device `meta`, where it takes no memory, takes the tensors
            themselves.
        weights: tensors by name.
        path: their file, for the message.

    Raises:
        UserError: they are those of another network.
    """
    own = network.state_dict()
    try:
        for name in own.keys() & weights.keys():
            if weights[name].dtype != own[name].dtype:
                raise ValueError(f"{name} has numbers of {weights[name].dtype}, expected {own[name].dtype}")
        network.load_state_dict(weights, assign=any(tensor.is_meta for tensor in own.values()))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as fault:
        raise UserError(
            f"{path}: its weights do not fit the network of the plan ({one_line(fault)}); train it again"
        ) from None


def precision_of(content: dict[str, Any], path: Path) -> str:
    """The precision in which weights were trained.

    Raises:
        UserError: the file says none.
    """
    name = content.get("precision")
    if not isinstance(name, str) or name not in TYPES:
        raise UserError(f"{path}: damaged: its precision is {shown(name)}; allowed: {', '.join(TYPES)}; train it again")
    return name
