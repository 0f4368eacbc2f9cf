"""Plans that were damaged or changed by hand, refused before anybody takes them for what the planner writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megavoxel.config.records import to_plain
from megavoxel.config.schema import validate
from megavoxel.errors import expect

if TYPE_CHECKING:
    from megavoxel.planning.plan import ChannelNormalisation, NetworkPlan, Plan, PreprocessingPlan

NEEDED = {"ct": ("mean", "std", "lower", "upper"), "range": ("lower", "upper"), "z-score": ()}
"""What a normalisation must say, by its scheme."""
FROM_STUDY = ("training", "augmentation", "inference", "parallel")
MOST_CHANNELS = 65536
MOST_VOXELS = 1_000_000
"""Along an axis."""


def check_plan(plan: Plan, where: str) -> None:
    """Holds a setting's plan against itself, and what it takes over from the study against the study's schema.

    Raises:
        UserError: with the key that is wrong.
    """
    check_preprocessing_plan(plan.preprocessing, f"{where}: preprocessing")
    _check_network(plan.network, f"{where}: network")
    channels, classes = len(plan.preprocessing.channels), len(plan.preprocessing.labels) + 1
    expect(plan.network.channels == channels, f"{where}: network.channels", f"{channels}, those of the image")
    expect(plan.network.classes == classes, f"{where}: network.classes", f"{classes}, the labels and the background")
    for key in ("patch", "expanded_patch"):
        sizes = getattr(plan, key)
        expect(sizes is None or _are_sizes(sizes), f"{where}: {key}", "three whole numbers above 0")
    expect(plan.batch > 0 and plan.seed >= 0, f"{where}: batch, seed", "a batch above 0 and a seed of 0 or more")
    expect(plan.expansion_order in ("sequential", "joint"), f"{where}: expansion_order", "sequential or joint")
    for phase in plan.phases:
        is_sound = _are_sizes(phase.patch) and min(phase.batch, phase.epochs, phase.learning_rate) > 0
        expect(is_sound, f"{where}: phases", "patch, batch, epochs and learning_rate above 0")
    validate({key: _given(to_plain(getattr(plan, key))) for key in FROM_STUDY}, "study", source=where, part="setting")


def check_preprocessing_plan(plan: PreprocessingPlan, where: str) -> None:
    """The same for the plan of a preprocessing."""
    values = [*plan.labels.values(), *plan.background_values]
    expect(len(plan.channels) > 0, f"{where}: channels", "one name or more")
    expect(len(plan.labels) > 0 and len(set(values)) == len(values), f"{where}: labels", "a value of its own for each")
    expect(all(0 < value <= 65535 for value in values), f"{where}: labels", "values from 1 to 65535")
    expect(sorted(plan.transpose) == [0, 1, 2], f"{where}: transpose", "0, 1 and 2 in some order")
    expect(len(plan.spacing) == 3 and min(plan.spacing) > 0, f"{where}: spacing", "three numbers above 0")
    is_shape = len(plan.median_shape) == 3 and min(plan.median_shape) > 0
    expect(is_shape, f"{where}: median_shape", "three numbers above 0")
    largest = plan.largest_shape
    expect(largest is None or _are_sizes(largest), f"{where}: largest_shape", "three whole numbers above 0")
    expect(
        0 <= plan.image_order <= 5 and 0 <= plan.label_order <= 1,
        f"{where}: image_order, label_order",
        "0 to 5, 0 to 1",
    )
    for channels in plan.normalisation_by_modality.values() or [plan.normalisation]:
        expect(len(channels) == len(plan.channels), f"{where}: normalisation", "one per channel")
        for channel in channels:
            _check_normalisation(channel, f"{where}: normalisation")


def _check_normalisation(channel: ChannelNormalisation, where: str) -> None:
    expect(channel.scheme in NEEDED, f"{where}.scheme", "ct, z-score or range")
    lacking = [key for key in NEEDED[channel.scheme] if getattr(channel, key) is None]
    expect(not lacking, where, f"{' and '.join(NEEDED[channel.scheme])} for {channel.scheme}")
    expect(channel.scheme != "range" or channel.lower < channel.upper, where, "lower below upper")
    expect(channel.std is None or channel.std >= 0, where, "no negative std")


def _check_network(network: NetworkPlan, where: str) -> None:
    levels = len(network.features)
    decoder = () if network.decoder_features is None else network.decoder_features
    counts = (*network.features, *decoder, network.channels, network.classes, network.convolutions_per_level)
    expect(0 < levels <= 16, f"{where}.features", "1 to 16 levels")
    expect(all(0 < count <= MOST_CHANNELS for count in counts), where, f"channels from 1 to {MOST_CHANNELS}")
    expect(network.convolutions_per_level <= 64, f"{where}.convolutions_per_level", "1 to 64")
    expect(0 <= network.prior_channels <= MOST_CHANNELS, f"{where}.prior_channels", "0 or more")
    expect(network.decoder_features is None or len(decoder) == levels - 1, f"{where}.decoder_features", "one per level")
    for key in ("kernels", "strides"):
        sizes = getattr(network, key)
        is_sound = len(sizes) == levels and all(_are_sizes(size, 64) for size in sizes)
        expect(is_sound, f"{where}.{key}", "three whole numbers above 0 per level")
    expect(all(size % 2 for kernel in network.kernels for size in kernel), f"{where}.kernels", "odd numbers")
    allowed = {
        "norm": ("instance", "batch"),
        "pooling": ("stride", "max"),
        "upsampling": ("transposed", "nearest"),
        "fusion": ("post", "pre"),
    }
    for key, values in allowed.items():
        expect(getattr(network, key) in values, f"{where}.{key}", " or ".join(values))
    ratio = network.squeeze_excitation
    expect(ratio is None or ratio > 0, f"{where}.squeeze_excitation", "a number above 0")


def _are_sizes(sizes: Sequence[int], most: int = MOST_VOXELS) -> bool:
    return len(sizes) == 3 and all(0 < size <= most for size in sizes)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What is not left out; a study leaves out what a plan writes as null."""
    return {key: value for key, value in values.items() if value is not None}
