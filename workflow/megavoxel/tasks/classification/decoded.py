"""Images that a run has decoded once and keeps as pixels, so that later epochs do not wait for decoders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from mmap import mmap
from pathlib import Path

from PIL import Image

from megavoxel.tasks.classification.images import COLOUR, GREY, read_image

BANDS = {GREY: 1, COLOUR: 3}


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
