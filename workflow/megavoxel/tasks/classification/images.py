"""JPEG and PNG files as square images of a given side, kept as pixels once they are decoded."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

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
