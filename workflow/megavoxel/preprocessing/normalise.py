"""Intensities to zero mean and unit variance, by the rules of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021).

One difference: nnU-Net also counts labelled voxels outside of the nonzero region as inside while it trains. Test images
have no labels, so that the same scan would be normalised in two ways; here the region depends on the image alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megavoxel.planning.plan import ChannelNormalisation

SMALLEST_STD = 1e-8


def normalise(
    image: np.ndarray, channels: Sequence[ChannelNormalisation], inside: np.ndarray | None = None
) -> np.ndarray:
    """Normalises an image in place and returns it.

    Args:
        image: float32 (channels, z, y, x).
        channels: what to do, per channel.
        inside: bool (z, y, x), the nonzero region with its holes filled; needed where a channel says `inside_nonzero`.
    """
    for channel, rule in zip(image, channels, strict=True):
        if rule.scheme == "ct":
            _normalise_ct(channel, rule)
        else:
            _normalise_z_score(channel, inside if rule.inside_nonzero else None)
    return image


def _normalise_ct(channel: np.ndarray, rule: ChannelNormalisation) -> None:
    np.clip(channel, rule.lower, rule.upper, out=channel)
    channel -= np.float32(rule.mean)
    channel /= np.float32(max(rule.std, SMALLEST_STD))


def _normalise_z_score(channel: np.ndarray, inside: np.ndarray | None) -> None:
    voxels = channel if inside is None else channel[inside]
    if voxels.size:
        mean, std = voxels.mean(dtype=np.float64), voxels.std(dtype=np.float64)
        channel -= np.float32(mean)
        channel /= np.float32(max(std, SMALLEST_STD))
    if inside is not None:
        channel[~inside] = 0
