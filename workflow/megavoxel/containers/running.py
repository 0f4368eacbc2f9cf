"""The image that a process runs in, as the manifest of its run names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from megavoxel.containers.lock import doubt, read_lock
from megavoxel.errors import UserError
from megavoxel.files import file_sha256

LABELS = Path("/.singularity.d/labels.json")
"""Where Apptainer and Singularity keep the labels of an image, inside of it."""


def running_image() -> dict[str, str | None] | None:
    """The image that this process runs in; None outside of containers.

    A warning is printed where `images.lock`, in the folder above the image's own, says another digest.

    Returns:
        `image` (its file's name), `sha256` (None where the file cannot be seen from inside) and `sources` (the hash of
        the code in it: `hash_of_sources`; None for an image that does not say).
    """
    # Set by Apptainer and by Singularity in whatever they start.
    path = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not path:
        return None
    image = Path(path)
    digest = file_sha256(image) if image.is_file() else None
    if digest is not None:
        _hold_to_lock(image, digest)
    return {"image": image.name, "sha256": digest, "sources": _sources()}


def _hold_to_lock(image: Path, digest: str) -> None:
    lock = image.parent.with_name("images.lock")
    if not lock.is_file():
        return
    try:
        reason = doubt(image, read_lock(lock).get(image.name, {}), sha256=digest)
    except UserError as error:
        reason = str(error)
    if reason:
        print(f"warning: {image} {reason}", flush=True)


def _sources() -> str | None:
    try:
        return json.loads(LABELS.read_text()).get("sources")
    except (OSError, ValueError, AttributeError):
        return None
