"""A run that goes on from a state, whose content is looked at before anything is taken from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from megavoxel.errors import UserError
from megavoxel.network.device import TYPES, Precision
from megavoxel.network.kernels import LAYOUTS, Kernels
from megavoxel.training.optimizer import KERNELS
from megavoxel.training.pipeline import load_weights
from megavoxel.training.run import Run

UNFIT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What comes of a state with other content than the one that the run wrote."""


def precision_of(state: dict[str, Any], plan: Any) -> Precision:
    """The precision that a state was trained in.

    Raises:
        UserError: the state says none.
    """
    with _explained(plan):
        name, reason = state["precision"]["name"], state["precision"]["reason"]
        if name not in TYPES or not isinstance(reason, str):
            raise ValueError("'precision'")
        return Precision(name=name, reason=reason)


def kernels_of(state: dict[str, Any], plan: Any) -> Kernels:
    """The choice of kernels that a state was trained with.

    Raises:
        UserError: the state says none.
    """
    with _explained(plan):
        kernels = Kernels(**state["kernels"])
        texts, choices = ("memory_layout", "optimizer", "reason"), ("cudnn_benchmark", "tf32", "compile")
        kinds = dict.fromkeys(texts, str) | dict.fromkeys(choices, bool)
        known = kernels.memory_layout in LAYOUTS and kernels.optimizer in KERNELS
        if not known or any(not isinstance(getattr(kernels, name), kind) for name, kind in kinds.items()):
            raise ValueError("'kernels'")
        return kernels


def take_up(run: Run, state: dict[str, Any]) -> None:
    """Gives a new run all that a state holds, and prints how far it is.

    Raises:
        UserError: the state has other content than one of this run.
    """
    with _explained(run.plan):
        _require(isinstance(state["epoch"], int) and 0 <= state["epoch"] == len(state["history"]), "epoch")
        _require(all(isinstance(row, dict) for row in state["history"]), "history")
        _require(isinstance(state["peak_memory"], dict | None), "peak_memory")
        factors = [group.get("factor", 1.0) for group in run.optimizer.param_groups]
        load_weights(run, state)
        for group, factor in zip(run.optimizer.param_groups, factors, strict=True):
            group["factor"] = factor
        _require_sound_optimizer(run.optimizer)
        run.scaler.load_state_dict(state["scaler"])
        run.epoch, run.history, run.peak_memory = state["epoch"], state["history"], state["peak_memory"]
        _require(isinstance(state["replicas"], int) and state["replicas"] > 0, "replicas")
        run.losses = _own_losses(run, state.get("losses"), state["replicas"])
    if run.group.leads:
        print(f"going on after {run.progress} (of {run.plan.training.epochs} epochs)", flush=True)


def _require_sound_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuses numbers that are not one per weight, or one for all."""
    for parameter, found in optimizer.state.items():
        sizes = {tuple(value.shape) for value in found.values() if isinstance(value, Tensor)}
        _require(isinstance(parameter, Tensor) and sizes <= {(), tuple(parameter.shape)}, "optimizer")


def _require(is_sound: bool, key: str) -> None:
    if not is_sound:
        raise ValueError(f"'{key}'")


def _own_losses(run: Run, losses: Tensor | None, replicas: int) -> list[Tensor]:
    """Losses of a state, which are sums over all processes: the leading one goes on with them, the others with 0.

    Their mean over the replicas is the loss of a step, so that they grow with the number of replicas.
    """
    if losses is None:
        return []
    losses = losses.to(run.device, torch.float64) * (run.replicas.size / replicas)
    return list(losses if run.group.leads else torch.zeros_like(losses))


@contextmanager
def _explained(plan: Any) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNFIT as fault:
        detail = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
        raise UserError(
            f"setting {plan.setting}: its training state is not what this run writes ({detail}); remove its folder of "
            "states, and training begins anew"
        ) from None
