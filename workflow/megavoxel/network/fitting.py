"""Weights of a donor fitted to a network: what is taken, what is changed for it, and what stays random.

The rules are those by which nnssl's encoders are fine-tuned: where a kernel of 3 becomes 1 along an axis, its weights
are averaged; a first convolution of one channel is repeated over several, with as large a sum; levels that only one of
the two networks has do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from megavoxel.config.setting import StartParts
from megavoxel.errors import UserError
from megavoxel.network.donors import Donor, plain_name

TAKEN: dict[StartParts, tuple[str, ...]] = {
    "encoder": ("encoder",), "body": ("encoder", "decoder"), "all": ("encoder", "decoder", "head", "full"),
}  # fmt: skip
"""How the blocks begin whose weights are taken."""
FIRST = ("encoder0_stem", "encoder0_convolution0")
"""The block that reads the image."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a network takes over from a donor."""

    weights: dict[str, Tensor]
    """float32, by the network's own names; those that are missing stay random."""
    loaded: tuple[str, ...]
    """Blocks all of whose weights are taken as they are."""
    changed: dict[str, str]
    """What was changed, by block."""
    random: dict[str, str]
    """Blocks with weights that stay random, each with the reason."""
    unused: tuple[str, ...]
    """Blocks of the donor that the network has no place for, or does not take."""

    def lines(self, donor: Donor) -> list[str]:
        """What a log says of it."""
        counts = (
            f"{len(self.loaded)} blocks taken as they are, {len(self.changed)} changed, {len(self.random)} at random"
        )
        lines = [f"start: {donor.path} ({donor.origin}): {counts}"]
        lines += [f"start: changed: {block}: {how}" for block, how in self.changed.items()]
        for reason in dict.fromkeys(self.random.values()):
            blocks = (block for block, own in self.random.items() if own == reason)
            lines.append(f"start: at random, {reason}: {', '.join(blocks)}")
        return lines + ([f"start: not used of the file: {', '.join(self.unused)}"] if self.unused else [])


def fit(network: Mapping[str, Tensor], donor: Donor, parts: StartParts, *, where: str) -> Fitted:
    """Fits a donor's weights to a network.

    Args:
        network: the network's own weights by name, of which only the shapes count.
        parts: of the donor that are taken: the encoder, also the decoder (`body`), or the heads as well.
        where: names the setting and the key in messages.

    Raises:
        UserError: the donor is another kind of network, reads another number of channels, has kernels that cannot
            become those of the network, or has heads for other classes where these are to be taken.
    """
    taken, weights, changed, random = TAKEN[parts], {}, {}, {}
    _require_same_kind(network, donor, where)
    for name, wanted in network.items():
        plain, found = plain_name(name), donor.weights.get(plain_name(name))
        block = plain.split(".")[0]
        if not block.startswith(taken):
            random[block] = f"not among the parts '{parts}'"
        elif found is None:
            random[block] = "not in the file"
        elif found.shape == wanted.shape:
            weights[name] = found.float()
        elif block.startswith("head"):
            raise UserError(
                f"{where}: {donor.path} has heads for {found.shape[0]} classes, the dataset has {wanted.shape[0]}; "
                "leave them out with 'parts: body'"
            )
        else:
            fitted, how = _fitted(found, wanted, block, donor, where)
            (random if fitted is None else changed)[block] = how
            if fitted is not None:
                weights[name] = fitted
    _require_any(weights, donor, where)
    return _summary(network, donor, weights, changed, random)


def _summary(
    network: Mapping[str, Tensor],
    donor: Donor,
    weights: dict[str, Tensor],
    changed: dict[str, str],
    random: dict[str, str],
) -> Fitted:
    used = {plain_name(name) for name in weights}
    blocks = dict.fromkeys(plain_name(name).split(".")[0] for name in network)
    return Fitted(
        weights=weights,
        loaded=tuple(block for block in blocks if block not in changed | random),
        changed=changed,
        random=random,
        unused=tuple(dict.fromkeys(name.split(".")[0] for name in donor.weights if name not in used)),
    )


def _require_same_kind(network: Mapping[str, Tensor], donor: Donor, where: str) -> None:
    blocks = {plain_name(name).split(".")[0] for name in network}
    (first,) = (block for block in FIRST if block in blocks)
    found = donor.weights.get(f"{first}.module.0.weight")
    wanted = next(tensor for name, tensor in network.items() if plain_name(name) == f"{first}.module.0.weight")
    kinds = {"encoder0_stem": "with residual encoders", "encoder0_convolution0": "without residual blocks"}
    if found is None or found.dim() != wanted.dim():
        raise UserError(
            f"{where}: {donor.path} holds another kind of network than this setting's, which is one {kinds[first]} in "
            "three dimensions; give a file of that kind, or another 'network.architecture'"
        )
    if found.shape[0] != wanted.shape[0]:
        raise UserError(
            f"{where}: {donor.path} is of a network of {found.shape[0]} features in its first level, this setting's "
            f"has {wanted.shape[0]}; set network.base_features to {found.shape[0]}"
        )


def _require_any(weights: Mapping[str, Tensor], donor: Donor, where: str) -> None:
    if not any(tensor.dim() > 1 for tensor in weights.values()):
        raise UserError(f"{where}: nothing in {donor.path} fits this setting's network; give a file of such a network")


def _fitted(
    found: Tensor, wanted: Tensor, block: str, donor: Donor, where: str
) -> tuple[Tensor, str] | tuple[None, str]:
    """A tensor of another shape brought to that of the network, and how; or None, and why that is not done."""
    steps = []
    if found.dim() == wanted.dim() > 1 and block in FIRST and found.shape[1] != wanted.shape[1]:
        if found.shape[1] != 1:
            raise UserError(
                f"{where}: {donor.path} reads {found.shape[1]} channels, this setting's network {wanted.shape[1]}; "
                "only weights of one channel can be spread over several: give a file of as many channels"
            )
        found = found.expand(-1, wanted.shape[1], *found.shape[2:]) / wanted.shape[1]
        steps.append(f"its one channel is repeated {wanted.shape[1]} times and divided by {wanted.shape[1]}")
    if found.shape[:2] == wanted.shape[:2] and found.shape != wanted.shape and not block.endswith("upsample"):
        found, how = _with_kernel(found, wanted, block, donor, where)
        steps.append(how)
    if found.shape != wanted.shape:
        return None, f"of another shape in the file than here, as {list(found.shape)} and {list(wanted.shape)}"
    return found.float().contiguous(), " and ".join(steps)


def _with_kernel(found: Tensor, wanted: Tensor, block: str, donor: Donor, where: str) -> tuple[Tensor, str]:
    """The weights of a convolution, averaged along axes in which a kernel of 3 becomes 1."""
    sides = list(zip(found.shape[2:], wanted.shape[2:], strict=True))
    if any(old != new and (old, new) != (3, 1) for old, new in sides):
        old, new = list(found.shape[2:]), list(wanted.shape[2:])
        raise UserError(
            f"{where}: {block} of {donor.path} has a kernel of {old}, this setting's network {new}; only a kernel of 3 "
            "becomes 1: set 'network.kernels' to those of the file, or take another one"
        )
    axes = [2 + axis for axis, (old, new) in enumerate(sides) if old != new]
    return found.mean(dim=axes, keepdim=True), f"kernels averaged along axis {' and '.join(str(a - 2) for a in axes)}"
