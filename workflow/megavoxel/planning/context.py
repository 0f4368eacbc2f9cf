"""What a network is given beside its patch: an expanded patch around it (meU-net), a first stage's labels (cascade)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megavoxel.config.study import Setting
from megavoxel.errors import UserError
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.spacing import times
from megavoxel.planning.topology import divisor_of, padded_patch


def expanded_patch(patch: Sequence[int], factors: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis of the expanded patch: rounded, and larger by an even number, so that the patch is its centre."""
    wanted = [round(size * factor) for size, factor in zip(patch, factors, strict=True)]
    return tuple(large + (large - size) % 2 for size, large in zip(patch, wanted, strict=True))


def plan_expansion(
    setting: Setting, patch: Sequence[int], network: NetworkPlan, median_shape: Sequence[float]
) -> tuple[tuple[int, ...] | None, NetworkPlan, list[str]]:
    """The expanded patch of a setting, the network with the head that it needs, and a note.

    Raises:
        UserError: along an axis that the patch grows along, it has the median case's size already, or grows beyond that
            size rounded up to the network's stride; or the network has no second decoder level.
    """
    if setting.expansion is None:
        return None, network, []
    where = f"setting {setting.name}: expansion"
    large = expanded_patch(patch, setting.expansion.factor)
    sides = zip(patch, large, median_shape, padded_patch(median_shape, divisor_of(network.strides)), strict=True)
    for axis, (size, grown, median, padded) in enumerate(sides):
        # Within the rounding that patches of whole images need, as the paper's 240 of 235 voxels at half resolution.
        if grown > size and (size >= median or grown > padded):
            raise UserError(
                f"{where}: along axis {axis} the expanded patch has {grown} voxels, more than the median case "
                f"({times(median_shape)}); lower 'factor' there, one number per axis, or the patch ({times(patch)})"
            )
    if len(network.features) < 3:
        raise UserError(f"{where}: it needs a second decoder level, so a network of 3 levels at least; raise 'levels'")
    note = (
        f"expansion: {times(large)} around the patch {times(patch)}, without gradient in the first level, loss at the "
        "second decoder level; filled with 0 beyond the image"
    )
    return large, replace(network, expanded_head=True), [note]


def plan_cascade(setting: Setting, network: NetworkPlan) -> tuple[NetworkPlan, list[str]]:
    """The network with the channels of a first stage's labels, and a note.

    Raises:
        UserError: they are to join decoder levels that the network does not have.
    """
    if not setting.stage1:
        return network, []
    if setting.fusion == "post" and len(network.features) < 2:
        raise UserError(
            f"setting {setting.name}: fusion 'post' joins the first stage at decoder levels, and a network of one "
            "level has none; raise 'levels', or set fusion to 'pre'"
        )
    channels = len(setting.stage1) * (network.classes - 1)
    place = "the start of every decoder level" if setting.fusion == "post" else "the image"
    note = f"cascade: the labels of {' and '.join(setting.stage1)}, one-hot in {channels} channels, join {place}"
    return replace(network, prior_channels=channels, fusion=setting.fusion), [note]
