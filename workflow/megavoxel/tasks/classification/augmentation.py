"""Random changes of 2D training images, on 8-bit pixels."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageStat

from megavoxel.config.classification import ClassifierAugmentation
from megavoxel.tasks.classification.images import COLOUR, GREY

FILL = 0
"""Grey of what a turned or moved image leaves open."""
LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue add to grey (ITU-R BT.601), as Pillow has it."""


def augment(image: Image.Image, keys: ClassifierAugmentation, random: np.random.Generator) -> Image.Image:
    """Turned, flipped, zoomed and moved in one interpolation, then with other brightness, contrast and saturation.

    The number of draws does not depend on the image.
    """
    draws = random.random(4)
    angle = math.radians(random.uniform(-keys.rotation_degrees, keys.rotation_degrees))
    zoom = random.uniform(*keys.zoom_range)
    shift = random.uniform(-keys.shift, keys.shift, size=2)
    flips = (draws[0] < keys.flip_horizontal, draws[1] < keys.flip_vertical)
    moved = transform(image, angle=angle, zoom=zoom, shift=(shift[0], shift[1]), flips=flips)
    brightness, contrast = random.uniform(*keys.brightness_range), random.uniform(*keys.contrast_range)
    saturation = random.uniform(*keys.saturation_range)
    shaded = shade(moved, brightness=brightness, contrast=contrast)
    return shaded if image.mode == GREY else saturate(shaded, saturation)


def transform(
    image: Image.Image,
    *,
    angle: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flips: tuple[bool, bool] = (False, False),
) -> Image.Image:
    """The image turned around its centre, zoomed, flipped and moved, by bilinear interpolation; what opens is black.

    Args:
        image: square, grey or colour.
        angle: in radians, counter-clockwise.
        zoom: above 1: what is shown is larger.
        shift: to the right and down, as a fraction of the side.
        flips: whether left and right, and top and bottom, change places before all else.
    """
    side = image.size[0]
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    centre, mirror_x, mirror_y = side / 2, -1 if flips[0] else 1, -1 if flips[1] else 1
    dx, dy = centre + shift[0] * side, centre + shift[1] * side
    # From a pixel of the result to that of the source: back by the shift, the angle and the zoom, then flipped.
    rows = ((mirror_x * cosine, -mirror_x * sine), (mirror_y * sine, mirror_y * cosine))
    coefficients = [value for a, b in rows for value in (a, b, centre - a * dx - b * dy)]
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL)


def shade(image: Image.Image, *, brightness: float = 1.0, contrast: float = 1.0) -> Image.Image:
    """All pixels times `brightness`, then their distance to the mean times `contrast`; clipped to 0 to 255."""
    grey = image if image.mode == GREY else image.convert(GREY)
    mean = ImageStat.Stat(grey).mean[0] * brightness
    table = np.clip((np.arange(256) * brightness - mean) * contrast + mean, 0, 255).round().astype(int).tolist()
    return image.point(table * len(image.getbands()))


def saturate(image: Image.Image, saturation: float) -> Image.Image:
    """A colour image whose pixels have `saturation` times their distance to grey; clipped to 0 to 255."""
    mixture = saturation * np.eye(3) + (1 - saturation) * np.array(LUMA)
    return image.convert(COLOUR, tuple(np.column_stack([mixture, np.zeros(3)]).ravel().tolist()))
