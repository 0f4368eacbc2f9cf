"""nnU-Net's intensity augmentations: what is drawn, and what it changes, on any device and without waiting for it.

Every function of an image takes and gives one, float32 (channels, z, y, x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.config.training import Augmentation

PerChannel = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """What was drawn of one sample's intensities; None: no such change, of the sample or of a channel."""

    noise: tuple[float, int] | None
    """Standard deviation, and the seed of the noise."""
    has_uniform_noise: bool = False
    """Whether all values of the noise within its limits are as likely, instead of being normally distributed."""
    blur: tuple[tuple[float, ...] | None, ...] | None
    """Per channel, sigma in voxels per axis."""
    brightness: PerChannel | None
    contrast: PerChannel | None
    low_resolution: tuple[float | None, ...] | None
    """Per channel, the zoom."""
    gamma_inverted: PerChannel | None
    gamma: PerChannel | None


def draw(settings: Augmentation, channels: int, random: np.random.Generator) -> Intensity:
    """Noise, blur, brightness, contrast, low resolution and gamma, in nnU-Net's order, each with its probability."""

    def is_drawn(probability: float) -> bool:
        return random.random() < probability

    def factors(limits: Sequence[float]) -> PerChannel:
        return tuple(draw_factor(limits, random) for _ in range(channels))

    def of_some_channels(value: Callable[[], Any]) -> tuple[Any, ...]:
        return tuple(value() if is_drawn(0.5) else None for _ in range(channels))

    # Arguments are worked out from top to bottom: the draws of a sample keep their order.
    return Intensity(
        noise=(random.uniform(*settings.noise_std), int(random.integers(2**31))) if is_drawn(settings.noise) else None,
        blur=of_some_channels(lambda: tuple(random.uniform(*settings.blur_sigma, size=3)))
        if is_drawn(settings.blur)
        else None,
        has_uniform_noise=settings.noise_distribution == "uniform",
        brightness=factors(settings.brightness_range) if is_drawn(settings.brightness) else None,
        contrast=factors(settings.contrast_range) if is_drawn(settings.contrast) else None,
        low_resolution=of_some_channels(lambda: random.uniform(*settings.low_resolution_zoom))
        if is_drawn(settings.low_resolution)
        else None,
        gamma_inverted=factors(settings.gamma_range) if is_drawn(settings.gamma_inverted) else None,
        gamma=factors(settings.gamma_range) if is_drawn(settings.gamma) else None,
    )


def augment(image: Tensor, settings: Augmentation, random: np.random.Generator, *, in_plane: bool) -> Tensor:
    """`change` by what is drawn now."""
    return change(image, draw(settings, len(image), random), in_plane=in_plane)


def change(image: Tensor, drawn: Intensity, *, in_plane: bool, noise: Tensor | None = None) -> Tensor:
    """An image with the intensities that were drawn for it.

    Args:
        image: (channels, z, y, x), on any device; not changed.
        drawn: for it.
        in_plane: whether the first axis keeps its resolution when low resolution is simulated.
        noise: standard noise of the image's shape, by the seed that was drawn, where it is there already.
    """
    if drawn.noise is not None:
        std, seed = drawn.noise
        own = standard_noise(image.shape, seed, uniform=drawn.has_uniform_noise) if noise is None else noise
        image = add_noise(image, std, own)
    if drawn.blur is not None:
        image = _of_channels(image, drawn.blur, blur)
    if drawn.brightness is not None:
        image = image * _of_each_channel(drawn.brightness, image)
    if drawn.contrast is not None:
        image = change_contrast(image, _of_each_channel(drawn.contrast, image))
    if drawn.low_resolution is not None:
        image = _of_channels(image, drawn.low_resolution, partial(lower_resolution, in_plane=in_plane))
    if drawn.gamma_inverted is not None:
        image = -change_gamma(-image, _of_each_channel(drawn.gamma_inverted, image))
    if drawn.gamma is not None:
        image = change_gamma(image, _of_each_channel(drawn.gamma, image))
    return image


def draw_factor(limits: Sequence[float], random: np.random.Generator) -> float:
    """A factor between two limits; where they lie on both sides of one, half of the draws are below one."""
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if random.random() < 0.5 else (1.0, high)
    return float(random.uniform(low, high))


def standard_noise(shape: Sequence[int], seed: int, *, uniform: bool = False) -> Tensor:
    """Noise of standard deviation one, float32, in the host's memory: other devices draw other numbers.

    Args:
        uniform: whether it is uniform, between -√3 and √3, instead of Gaussian.
    """
    generator = torch.Generator().manual_seed(seed)
    if uniform:
        return torch.rand(tuple(shape), generator=generator).sub_(0.5).mul_(math.sqrt(12))
    return torch.randn(tuple(shape), generator=generator)


def add_noise(image: Tensor, std: float, noise: Tensor) -> Tensor:
    """Noise of one standard deviation; `noise`, of the image's shape, has standard deviation one."""
    return (noise * std).add_(image)


def blur(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur of one sigma in voxels per axis; the kernel ends at three sigma, borders are reflected."""
    for axis, sigma in enumerate(sigmas, start=1):
        image = _blur_along(image, axis, sigma)
    return image


def change_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Scales around each channel's mean and clips to its former range."""
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
    return (image - mean).mul_(factor).add_(mean).clamp_(low, high)


def lower_resolution(image: Tensor, zoom: float, *, in_plane: bool) -> Tensor:
    """Shrinks by nearest neighbour to `zoom` of the size and grows back by linear interpolation."""
    shape = image.shape[1:]
    small = [max(1, round(size * zoom)) for size in shape]
    if in_plane:
        small[0] = shape[0]
    reduced = F.interpolate(image[None], size=small, mode="nearest-exact")
    return F.interpolate(reduced, size=shape, mode="trilinear", align_corners=False)[0]


def change_gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """Raises intensities, scaled to 0…1 per channel, to `exponent`; mean and standard deviation are restored."""
    space = (1, 2, 3)
    low = image.amin(dim=space, keepdim=True)
    extent = (image.amax(dim=space, keepdim=True) - low).clamp(min=1e-7)
    curved = (image - low).div_(extent).pow_(exponent)
    scale = image.std(dim=space, keepdim=True) / curved.std(dim=space, keepdim=True).clamp(min=1e-7)
    shift = image.mean(dim=space, keepdim=True) - curved.mean(dim=space, keepdim=True) * scale
    return curved.mul_(scale).add_(shift)


def _of_each_channel(factors: PerChannel, image: Tensor) -> Tensor:
    """One factor per channel beside the image, (channels, 1, 1, 1)."""
    return torch.tensor(factors).view(-1, 1, 1, 1).to(image.device, non_blocking=True)


def _of_channels(image: Tensor, drawn: Sequence[Any], function: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """The channels, each changed by what was drawn for it."""
    pairs = zip(image.split(1), drawn, strict=True)
    return torch.cat([channel if value is None else function(channel, value) for channel, value in pairs])


def _blur_along(image: Tensor, axis: int, sigma: float) -> Tensor:
    """Sums shifted images: several times as fast as a convolution with one channel."""
    size = image.shape[axis]
    # nnU-Net's kernel has 6 sigma + 0.5 voxels, rounded to the nearest odd number.
    radius = min(math.floor(3 * sigma + 0.25), size - 1)
    weights = [math.exp(-0.5 * (offset / max(sigma, 1e-6)) ** 2) for offset in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    padding = [0] * 6
    padding[2 * (3 - axis)] = padding[2 * (3 - axis) + 1] = radius
    padded = F.pad(image, padding, mode="reflect")
    blurred = padded.narrow(axis, radius, size) * (weights[0] / total)
    for offset in range(1, radius + 1):
        for first in (radius - offset, radius + offset):
            blurred.add_(padded.narrow(axis, first, size), alpha=weights[offset] / total)
    return blurred
