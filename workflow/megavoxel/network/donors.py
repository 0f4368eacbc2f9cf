"""Weights of other networks, from a file: exported models of megavoxel, checkpoints of nnU-Net and of nnssl.

All are brought to the names that weights have in a program, without what only tells apart how a network was put
together: the number of a layer within a shortcut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megavoxel.errors import UserError
from megavoxel.network.tensor_files import load_tensors

Origin = Literal["megavoxel", "nnU-Net", "nnssl"]
PREFIX = "program.blocks."
LAYERS = {"conv": 0, "norm": 1}
"""Place of a layer in our blocks, by its name there."""
ALIASES = re.compile(r"(^|\.)all_modules\.|^decoder\.encoder\.")
"""In names under which a network of theirs has the same tensor once more."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What PyTorch puts before the names where a network is compiled or one of several."""
LAYER = r"(conv|norm)\.(weight|bias)"


@dataclass(frozen=True, kw_only=True)
class Donor:
    """The weights of a network in a file."""

    path: Path
    origin: Origin
    weights: dict[str, Tensor]
    """By our names without the prefix and without the numbers within shortcuts."""
    unknown: tuple[str, ...] = ()
    """Names of tensors that no network here has."""
    facts: Mapping[str, Any]
    """What else the file holds."""


def plain_name(name: str) -> str:
    """The name by which a weight of a program is looked up in a donor."""
    return re.sub(r"\.shortcut\.\d+\.", ".shortcut.", name.removeprefix(PREFIX))


def read_donor(path: Path) -> Donor:
    """Reads weights that another training ended with.

    Raises:
        UserError: there is no such file, it is damaged, or holds something else than such weights.
    """
    try:
        content = load_tensors(path, of_others=True)
        kind = next((key for key in ("network_weights", "weights") if isinstance(content.get(key), dict)), None)
        if kind is None:
            raise ValueError("it has neither 'weights' nor 'network_weights'")
        weights = content.pop(kind)
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
            raise ValueError(f"'{kind}' holds something else than tensors")
        if not all(torch.isfinite(value).all() for value in weights.values()):
            raise ValueError("some weights are NaN or infinite")
        return _donor(Path(path), weights, content, is_ours=kind == "weights")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file of weights") from None
    except ValueError as fault:
        raise UserError(
            f"{path}: no weights to begin with, or damaged ({fault}); expected: a model.pt, a file of an exported "
            "model, or a checkpoint of nnU-Net v2 or nnssl"
        ) from None


def _donor(path: Path, weights: dict[str, Tensor], facts: Mapping[str, Any], *, is_ours: bool) -> Donor:
    if is_ours:
        own = {plain_name(name): tensor for name, tensor in weights.items()}
        return Donor(path=path, origin="megavoxel", weights=own, facts=facts)
    weights = {WRAPPERS.sub("", name): in_three_dimensions(tensor) for name, tensor in weights.items()}
    adaptation = facts.get("nnssl_adaptation_plan")
    if adaptation is not None:
        weights = _encoder_of_nnssl(weights, adaptation)
    found, unknown = from_names_of_nnunet(weights)
    origin: Origin = "nnU-Net" if adaptation is None else "nnssl"
    return Donor(path=path, origin=origin, weights=found, unknown=unknown, facts=facts)


def in_three_dimensions(weight: Tensor) -> Tensor:
    """The kernel (out, in, y, x) of a network of slices as ours (out, in, 1, y, x); all other weights as they are."""
    return weight.unsqueeze(2) if weight.dim() == 4 else weight


def _encoder_of_nnssl(weights: Mapping[str, Tensor], adaptation: Any) -> dict[str, Tensor]:
    """The encoder under nnU-Net's names: the rest was trained for another task than segmentation."""
    places = {"key_to_stem": "encoder.stem", "key_to_encoder": "encoder.stages"}
    if not isinstance(adaptation, dict) or not all(isinstance(adaptation.get(key), str) for key in places):
        raise ValueError("'nnssl_adaptation_plan' does not say where the encoder is")
    return {
        there + name.removeprefix(adaptation[key]): tensor
        for key, there in places.items()
        for name, tensor in weights.items()
        if name.startswith(f"{adaptation[key]}.")
    }


def from_names_of_nnunet(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights of a plain or residual U-Net of nnU-Net by our names, and the names of those that are of neither."""
    own = {name: tensor for name, tensor in weights.items() if not ALIASES.search(name)}
    stages = {int(match[1]) for name in own if (match := re.match(r"encoder\.stages\.(\d+)\.", name))}
    rules = _rules(len(stages))
    found, unknown = {}, []
    for name, tensor in own.items():
        ours = next((rule(match) for pattern, rule in rules.items() if (match := re.fullmatch(pattern, name))), None)
        if ours is None:
            unknown.append(name)
        else:
            found[ours] = tensor
    return found, tuple(unknown)


def _rules(levels: int) -> dict[str, Callable[[re.Match], str]]:
    """Our name by a pattern of theirs; their decoder is counted from the lowest level."""

    def layer(match: re.Match) -> str:
        *_, kind, part = match.groups()
        return f"{LAYERS[kind]}.{part}"

    def level(match: re.Match) -> int:
        return levels - 2 - int(match[1])

    return {
        rf"encoder\.stem\.convs\.0\.{LAYER}": lambda m: f"encoder0_stem.module.{layer(m)}",
        rf"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv([12])\.{LAYER}": lambda m: (
            f"encoder{m[1]}_block{m[2]}_convolution{int(m[3]) - 1}.module.{layer(m)}"
        ),
        rf"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.\d\.{LAYER}": lambda m: (
            f"encoder{m[1]}_block{m[2]}_convolution1.module.shortcut.{layer(m)}"
        ),
        rf"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.{LAYER}": lambda m: (
            f"encoder{m[1]}_convolution{m[2]}.module.{layer(m)}"
        ),
        r"decoder\.transpconvs\.(\d+)\.(weight|bias)": lambda m: f"decoder{level(m)}_upsample.module.upsample.{m[2]}",
        rf"decoder\.stages\.(\d+)\.convs\.(\d+)\.{LAYER}": lambda m: (
            f"decoder{level(m)}_convolution{m[2]}.module.{layer(m)}"
        ),
        r"decoder\.seg_layers\.(\d+)\.(weight|bias)": lambda m: f"head{level(m)}.module.{m[2]}",
    }
