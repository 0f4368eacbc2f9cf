"""nnU-Net's intensity augmentations. Every function takes and gives a float32 image (channels, z, y, x)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.config.training import Augmentation


def augment(image: Tensor, settings: Augmentation, random: np.random.Generator, *, in_plane: bool) -> Tensor:
    """Noise, blur, brightness, contrast, low resolution and gamma, in nnU-Net's order, each with its probability.

    Args:
        image: (channels, z, y, x); not changed.
        in_plane: whether the first axis keeps its resolution when low resolution is simulated.
    """
    if random.random() < settings.noise:
        image = add_noise(image, random.uniform(*settings.noise_std), random)
    if random.random() < settings.blur:
        image = _some_channels(image, random, lambda one: blur(one, random.uniform(*settings.blur_sigma, size=3)))
    if random.random() < settings.brightness:
        image = image * draw_per_channel(settings.brightness_range, image, random)
    if random.random() < settings.contrast:
        image = change_contrast(image, draw_per_channel(settings.contrast_range, image, random))
    if random.random() < settings.low_resolution:
        image = _some_channels(
            image,
            random,
            lambda one: lower_resolution(one, random.uniform(*settings.low_resolution_zoom), in_plane=in_plane),
        )
    if random.random() < settings.gamma_inverted:
        image = -change_gamma(-image, draw_per_channel(settings.gamma_range, image, random))
    if random.random() < settings.gamma:
        image = change_gamma(image, draw_per_channel(settings.gamma_range, image, random))
    return image


def draw_factor(limits: Sequence[float], random: np.random.Generator) -> float:
    """A factor between two limits; where they lie on both sides of one, half of the draws are below one."""
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if random.random() < 0.5 else (1.0, high)
    return float(random.uniform(low, high))


def draw_per_channel(limits: Sequence[float], image: Tensor, random: np.random.Generator) -> Tensor:
    """One factor per channel, (channels, 1, 1, 1)."""
    return torch.tensor([draw_factor(limits, random) for _ in image]).view(-1, 1, 1, 1)


def add_noise(image: Tensor, std: float, random: np.random.Generator) -> Tensor:
    """Gaussian noise of one standard deviation."""
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    return torch.randn(image.shape, generator=generator).mul_(std).add_(image)


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


def _some_channels(image: Tensor, random: np.random.Generator, change) -> Tensor:
    """Applies `change` to each channel with probability 0.5."""
    channels = [change(channel[None]) if random.random() < 0.5 else channel[None] for channel in image]
    return torch.cat(channels)


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
