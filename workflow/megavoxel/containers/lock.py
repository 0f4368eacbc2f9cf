"""`containers/images.lock`: which images were built here, from which sources, and with which packages."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megavoxel.containers.base import debian_packages
from megavoxel.containers.build import ask
from megavoxel.errors import UserError
from megavoxel.files import file_sha256, write_text

HEAD = "# The content of the images that `snakemake images` built last. Written by it: do not edit.\n"
SOURCES = (
    "requirements.lock",
    "requirements-hashed.lock",
    "pyproject.toml",
    "containers/*.def",
    "workflow/megavoxel/**/*",
    "workflow/schemas/*",
    "config/hardware.yaml",
)

PACKAGES = "/opt/megavoxel/packages.txt"
"""File in an image: the output of `pip freeze` when it was built."""
WHEELS = "/opt/megavoxel/wheels.txt"
"""File in an image: the output of `sha256sum` for the wheels that went in."""
LABELS = Path("/.singularity.d/labels.json")
"""File in every image in which Apptainer and Singularity keep its labels."""


def source_files(checkout: Path) -> list[Path]:
    """The files of a checkout that go into the images, sorted."""
    found = {path for pattern in SOURCES for path in Path(checkout).glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.suffix != ".pyc")


def hash_of_sources(checkout: Path) -> str:
    """A hash of the names and content of `source_files`, 64 hexadecimal digits, the same wherever the checkout is."""
    digest = hashlib.sha256()
    for path in source_files(checkout):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(checkout)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def describe_image(image: Path) -> dict[str, Any]:
    """The record of an image in the lock.

    Returns:
        `sha256` and `bytes` of the file, `sources` (`hash_of_sources` when it was built), `apptainer` (the version that
        built it), `debian` (NAME=VERSION of Debian's packages), `packages` (pins, sorted by name) and `wheels`
        (SHA-256 by file name).

    Raises:
        UserError: there is no Apptainer or no such file, or the file is no image of this project.
    """
    labels = _labels_of(image)
    if "sources" not in labels:
        raise UserError(f"{image}: does not say from what it was built; make it again: snakemake images")
    wheels = _words_in(image, WHEELS)
    return {
        "sha256": file_sha256(image),
        "bytes": image.stat().st_size,
        "sources": labels["sources"],
        "apptainer": labels.get("org.label-schema.usage.apptainer.version"),
        "debian": debian_packages(image),
        "packages": sorted(_words_in(image, PACKAGES), key=str.lower),
        "wheels": dict(zip(wheels[1::2], wheels[::2], strict=True)),
    }


def _labels_of(image: Path) -> dict[str, str]:
    if not image.is_file():
        raise UserError(f"{image}: there is no such image; make it: snakemake images")
    said = ask("inspect", "--json", str(image)).stdout
    try:
        return json.loads(said)["data"]["attributes"]["labels"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{image}: this is no image with labels; make it again: snakemake images") from None


def _words_in(image: Path, file: str) -> list[str]:
    done = ask("exec", str(image), "cat", file)
    if done.returncode:
        raise UserError(f"{image}: has no {file}; make it again: snakemake images")
    return done.stdout.split()


def write_lock(path: Path, images: Sequence[Path]) -> None:
    """Writes the records of these images, each under its file name, and keeps those of other images that still exist.

    Raises:
        UserError: there is no Apptainer, or a file is no image of this project.
    """
    there = {name: record for name, record in _locked_before(path).items() if (images[0].parent / name).is_file()}
    records = there | {image.name: describe_image(image) for image in images}
    write_text(path, HEAD + yaml.safe_dump(dict(sorted(records.items())), sort_keys=False))


def _locked_before(lock: Path) -> dict[str, dict[str, Any]]:
    """The records of a lock that is about to be written; none where there is no lock, or a broken one."""
    try:
        return read_lock(lock)
    except UserError:
        return {}


def doubt(
    image: Path, record: Mapping[str, Any], *, sources: str | None = None, sha256: str | None = None
) -> str | None:
    """The reason to doubt that an image is the one that the lock describes; None where there is none.

    Args:
        image: its file.
        record: its record in the lock; empty if it has none.
        sources: `hash_of_sources` of the checkout that uses the image; None: is not compared.
        sha256: the digest of the file; None: only its size is compared.
    """
    if sources is not None and record.get("sources") != sources:
        return "was built from other sources than these: snakemake images"
    if record.get("bytes") != image.stat().st_size or (sha256 and record.get("sha256") != sha256):
        return "is not the file that images.lock describes: snakemake images, or put the right one there"
    return None


def read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """The records that `write_lock` wrote, by file name.

    Raises:
        UserError: the file cannot be read, or is no lock.
    """
    try:
        records = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); write it again: snakemake images") from None
    if not isinstance(records, Mapping) or not all(isinstance(record, Mapping) for record in records.values()):
        raise UserError(f"{path}: is no lock of images; write it again: snakemake images")
    return {str(name): dict(record) for name, record in records.items()}


def running_image() -> dict[str, str | None] | None:
    """The image in which this process runs; None outside containers.

    A warning is printed if `images.lock`, in the folder above the image's own, has another digest for it.

    Returns:
        `image` (the name of its file), `sha256` (None if the file cannot be seen from inside) and `sources`
        (`hash_of_sources` of the code in it; None for an image without that label).
    """
    # Apptainer and Singularity set these variables for every program that they start.
    path = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not path:
        return None
    image = Path(path)
    digest = file_sha256(image) if image.is_file() else None
    if digest is not None:
        _hold_to_lock(image, digest)
    return {"image": image.name, "sha256": digest, "sources": _own_sources()}


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


def _own_sources() -> str | None:
    try:
        return json.loads(LABELS.read_text()).get("sources")
    except (OSError, ValueError, AttributeError):
        return None
