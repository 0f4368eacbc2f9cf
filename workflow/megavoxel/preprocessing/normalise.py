"""Intensities to zero mean and unit variance, or to 0 to 1, by the rules of nnU-Net (Isensee et al., Nat. Methods
18:203, 2021), or from a fixed range to 0 to 1.

One difference: nnU-Net also counts labelled voxels outside of the nonzero region as inside while it trains. Test images
have no labels, so that the same scan would be normalised in two ways; here the region depends on the image alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megavoxel.errors import UserError
from megavoxel.planning.plan import ChannelNormalisation

SMALLEST_STD = 1e-8
MOST_RGB = 255


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Number, mean and standard deviation of some voxels."""

    count: int
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Lowest and highest value of some voxels."""

    low: float
    high: float


Statistics = Moments | Extent | None
"""What a rule needs to know of the whole channel, or of its nonzero region."""


def normalise(
    image: np.ndarray,
    channels: Sequence[ChannelNormalisation],
    inside: np.ndarray | None = None,
    *,
    where: str = "the image",
) -> np.ndarray:
    """Normalises an image in place and returns it.

    Args:
        image: float32 (channels, z, y, x).
        inside: bool (z, y, x), the nonzero region with its holes filled; needed where a channel says `inside_nonzero`.
        where: what a message calls the image.

    Raises:
        UserError: as `statistics_of`.
    """
    for channel, rule in zip(image, channels, strict=True):
        region = inside if rule.inside_nonzero else None
        seen = statistics_of(rule, [channel if region is None else channel[region]], where)
        normalise_channel(channel, rule, seen, region)
    return image


def statistics_of(rule: ChannelNormalisation, parts: Iterable[np.ndarray], where: str) -> Statistics:
    """What a rule needs to know of a channel, which is given in parts of any shape.

    Args:
        where: what a message calls the image.

    Raises:
        UserError: the values are not those of an RGB image where the rule takes them for that.
    """
    if rule.scheme == "z-score":
        first, *others = map(moments_of, parts)
        return merged_moments([first, *others]) if others else first
    if rule.scheme not in ("rescale-0-1", "rgb-0-1"):
        return None
    ends = np.array([(part.min(), part.max()) for part in parts])
    extent = Extent(low=float(ends.min()), high=float(ends.max()))
    if rule.scheme == "rgb-0-1" and not 0 <= extent.low <= extent.high <= MOST_RGB:
        raise UserError(
            f"{where} has values from {extent.low:g} to {extent.high:g}, and its normalisation is rgb-0-1, for values "
            f"from 0 to {MOST_RGB}; mend the image, or set preprocessing.normalisation of the study"
        )
    return extent


def normalise_channel(
    channel: np.ndarray, rule: ChannelNormalisation, seen: Statistics, inside: np.ndarray | None = None
) -> np.ndarray:
    """Normalises a channel, or a part of one, in place and returns it.

    Args:
        channel: float32 (z, y, x).
        seen: what `statistics_of` gives for the whole channel, or for its nonzero region.
        inside: bool (z, y, x), the nonzero region where the rule says `inside_nonzero`.
    """
    if rule.scheme == "unchanged":
        return channel
    if rule.scheme == "rgb-0-1":
        return _scale(channel, 0, MOST_RGB)
    if rule.scheme == "rescale-0-1":
        return _scale(channel, seen.low, seen.high - seen.low)
    if rule.scheme == "ct":
        np.clip(channel, rule.lower, rule.upper, out=channel)
        return _scale(channel, rule.mean, rule.std)
    if rule.scheme == "range":
        np.clip(channel, rule.lower, rule.upper, out=channel)
        return _scale(channel, rule.lower, rule.upper - rule.lower)
    if seen.count:
        _scale(channel, seen.mean, seen.std)
    if inside is not None:
        channel[~inside] = 0
    return channel


def moments_of(voxels: np.ndarray) -> Moments:
    """Moments of an array of any shape, summed in float64; of none, 0."""
    if not voxels.size:
        return Moments(count=0, mean=0.0, std=0.0)
    return Moments(
        count=voxels.size, mean=float(voxels.mean(dtype=np.float64)), std=float(voxels.std(dtype=np.float64))
    )


def merged_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of several parts together (Chan, Golub & LeVeque, Am. Stat. 37:242, 1983, eq. 2.1)."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part.count:
            total = count + part.count
            offset = part.mean - mean
            squares += part.std**2 * part.count + offset**2 * count * part.count / total
            mean, count = mean + offset * part.count / total, total
    return Moments(count=count, mean=mean, std=(squares / count) ** 0.5 if count else 0.0)


def _scale(channel: np.ndarray, mean: float, std: float) -> np.ndarray:
    channel -= np.float32(mean)
    channel /= np.float32(max(std, SMALLEST_STD))
    return channel
