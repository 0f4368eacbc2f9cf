"""JPEG and PNG files as square images of a given side, kept as pixels once they are decoded, and changed at random."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageStat
from torch import Tensor

from megavoxel.config.classification import ClassifierAugmentation
from megavoxel.errors import UserError

GREY, COLOUR = "L", "RGB"
BANDS = {GREY: 1, COLOUR: 3}
MODES = {"1": GREY, "L": GREY, "LA": GREY, "P": COLOUR, "PA": COLOUR, "RGB": COLOUR, "RGBA": COLOUR, "CMYK": COLOUR}
"""What Pillow may call an image of 8 bits or less, and what it is read as; transparency is dropped."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's colours from 0 to 1, as torchvision's weights expect them; used for all networks."""


def read_image(path: Path, side: int) -> Image.Image:
    """An image brought to `side` x `side` pixels, grey or colour; the aspect ratio is not kept.

    A JPEG is decoded at the smallest of 1, 1/2, 1/4, 1/8 of its size that is no smaller than that. The rest of the way
    is a triangular filter as wide as the reduction (Pillow's BILINEAR). A camera's note of its orientation is followed.

    Raises:
        UserError: the file cannot be read to its end, or is no image of at most 8 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.draft(None, (side, side))
                mode = _mode(file, path)
                file.load()
                image = ImageOps.exif_transpose(file).convert(mode)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{path}: has more than {Image.MAX_IMAGE_PIXELS} pixels, which is taken for an attack"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except Exception as fault:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        raise UserError(
            f"{path}: cannot be read as an image ({' '.join(str(fault).split())}); bring a whole copy, or leave it out "
            "by 'exclude' of the dataset file"
        ) from None
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def image_mode(path: Path) -> str:
    """Whether an image is `L` (grey) or `RGB`, from its whole content; grey that is stored as three colours is grey.

    Raises:
        UserError: as `read_image`.
    """
    bands = read_image(path, 32).split()
    return COLOUR if any(band.tobytes() != bands[0].tobytes() for band in bands) else GREY


def to_tensor(image: Image.Image) -> Tensor:
    """float32 (3, height, width), normalised by `MEAN` and `DEVIATION`; the grey of grey images stands for all three
    colours."""
    values = torch.from_numpy(np.array(image))
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    scale, offset = (1 / (255 * deviation)).view(3, 1, 1), (mean / deviation).view(3, 1, 1)
    if image.mode == GREY:
        return values.expand(3, *values.shape) * scale - offset
    # One plane after the other in memory first: twice as fast as working on interleaved colours.
    planes = values.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.mul_(scale).sub_(offset)


def _mode(file: Image.Image, path: Path) -> str:
    if file.mode not in MODES:
        raise UserError(f"{path}: its pixels are of the kind '{file.mode}'; expected grey or colour of at most 8 bits")
    return MODES[file.mode]


class DecodedImages:
    """What `read_image` gives, of files by number, each decoded once.

    Pixels lie in a file without a name where Python puts temporary ones (TMPDIR), and go with the last process that has
    it open; forked processes share it. Where it cannot grow any more, further images are decoded every time.

    Args:
        files: the images.
        side: pixels of each side that they are brought to.
    """

    def __init__(self, files: Sequence[Path], side: int) -> None:
        self.files, self.side = files, side
        self.pixels = tempfile.TemporaryFile(prefix="megavoxel-")  # noqa: SIM115 (open as long as this object)
        self.bands = mmap(-1, max(len(files), 1))

    def __getitem__(self, number: int) -> Image.Image:
        """An image, grey or colour.

        Raises:
            UserError: as `read_image`.
        """
        size, place = self.side**2, number * self.side**2 * max(BANDS.values())
        for mode, bands in BANDS.items():
            if self.bands[number] == bands:
                return Image.frombytes(
                    mode, (self.side, self.side), os.pread(self.pixels.fileno(), size * bands, place)
                )
        image = read_image(self.files[number], self.side)
        try:
            written = os.pwrite(self.pixels.fileno(), image.tobytes(), place)
        except OSError:  # no space is left
            return image
        if written == size * BANDS[image.mode]:
            self.bands[number] = BANDS[image.mode]
        return image


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
