"""Weights that training begins with: those of another setting, or of the phase before."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from megavoxel.errors import UserError
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import load_weights
from megavoxel.planning.plan import Plan


def starting_weights(path: Path | None) -> dict[str, Tensor] | None:
    """The weights in a `model.pt`; None without one.

    Raises:
        UserError: the file is missing or damaged.
    """
    return None if path is None else load_weights(path)["weights"]


def load_start(network: SegmentationNetwork, weights: dict[str, Tensor], plan: Plan) -> None:
    """Gives a new network the weights of another run.

    Raises:
        UserError: they do not have the same names and shapes.
    """
    wanted, found = _shapes(network.state_dict()), _shapes(weights)
    other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if other:
        raise UserError(
            f"setting {plan.setting}: start: the network of {plan.start or 'the phase before'} is another one: "
            f"{other[0]} has the shape {found.get(other[0])} there and {wanted.get(other[0])} here; give both the same "
            "'network', with 'for_patch' where their patches differ"
        )
    network.load_state_dict(weights)


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
