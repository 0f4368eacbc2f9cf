"""Pictures within the page, as data URIs of WebP, which takes about half of what PNG does."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from megavoxel.errors import UserError
from megavoxel.reporting.slices import WIDEST

PHOTO_QUALITY = 80


def drawing_uri(path: Path) -> str:
    """A PNG file without loss, as lines and letters need it.

    Raises:
        UserError: the file is missing.
    """
    return _uri(path, lossless=True, method=3)


def photo_uri(path: Path) -> str:
    """A PNG file of slices, with a loss that is hard to see.

    Raises:
        UserError: the file is missing.
    """
    return _uri(path, quality=PHOTO_QUALITY, method=4)


def _uri(path: Path, **options: Any) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: this figure is missing; run 'megavoxel report' without --tables-only") from None
    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) > WIDEST:
            return _encoded("png", content)
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "WEBP", **options)
    return _encoded("webp", stream.getvalue())


def _encoded(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
