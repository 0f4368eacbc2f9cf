"""TIFF stacks, cut off, without sense in their sizes, or of other axes than a volume has."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from hypothesis import strategies as st

from fuzz_example import Example
from fuzz_image import SPACING, STACK, example


def stack(voxels: np.ndarray = STACK, axes: str = "ZYX", **options: object) -> bytes:
    """The sound image as OME-TIFF, or another array."""
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", SPACING, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "mm" for axis in "XYZ"}
    stream = io.BytesIO()
    tifffile.imwrite(stream, voxels, ome=True, metadata={"axes": axes, **sizes, **units}, **options)
    return stream.getvalue()


@st.composite
def spoilt_tiff(draw: st.DrawFn) -> Example:
    """A stack with one thing wrong."""
    way = draw(st.sampled_from(["cut", "size", "times", "flip"]))
    compression = draw(st.sampled_from([None, "zlib"]))
    content = bytearray(stack(compression=compression))
    if way == "cut":
        del content[draw(st.integers(0, len(content) - 2)) :]
    elif way == "size":
        size = draw(st.sampled_from([b"0.0", b"-1.", b"nan", b"inf"]))
        stated = f'PhysicalSizeZ="{SPACING[2]}"'.encode()
        content = bytearray(stack(compression=compression).replace(stated, b'PhysicalSizeZ="' + size + b'"'))
    elif way == "times":
        content = bytearray(stack(np.stack([STACK, STACK]), "TZYX"))
    else:
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] ^= draw(st.integers(1, 255))
    return example(f"tiff: {way}", {"scan.ome.tif": bytes(content)}, None if way == "flip" else False, None)
