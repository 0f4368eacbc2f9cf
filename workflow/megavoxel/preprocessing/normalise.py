"""Intensities to zero mean and unit variance, by the rules of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021), or
from a fixed range to 0 to 1.

One difference: nnU-Net also counts labelled voxels outside of the nonzero region as inside while it trains. Test images
have no labels, so that the same scan would be normalised in two ways; here the region depends on the image alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megavoxel.planning.plan import ChannelNormalisation

SMALLEST_STD = 1e-8


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Number, mean and standard deviation of some voxels."""

    count: int
    mean: float
    std: float


def normalise(
    image: np.ndarray, channels: Sequence[ChannelNormalisation], inside: np.ndarray | None = None
) -> np.ndarray:
    """Normalises an image in place and returns it.

    Args:
        image: float32 (channels, z, y, x).
        inside: bool (z, y, x), the nonzero region with its holes filled; needed where a channel says `inside_nonzero`.
    """
    for channel, rule in zip(image, channels, strict=True):
        region = inside if rule.inside_nonzero else None
        moments = moments_of(channel if region is None else channel[region]) if rule.scheme == "z-score" else None
        normalise_channel(channel, rule, moments, region)
    return image


def normalise_channel(
    channel: np.ndarray, rule: ChannelNormalisation, moments: Moments | None, inside: np.ndarray | None = None
) -> np.ndarray:
    """Normalises a channel, or a part of one, in place and returns it.

    Args:
        channel: float32 (z, y, x).
        moments: of the whole channel, or of its nonzero region; only `z-score` needs them.
        inside: bool (z, y, x), the nonzero region where the rule says `inside_nonzero`.
    """
    if rule.scheme == "ct":
        np.clip(channel, rule.lower, rule.upper, out=channel)
        return _scale(channel, rule.mean, rule.std)
    if rule.scheme == "range":
        np.clip(channel, rule.lower, rule.upper, out=channel)
        return _scale(channel, rule.lower, rule.upper - rule.lower)
    if moments.count:
        _scale(channel, moments.mean, moments.std)
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
