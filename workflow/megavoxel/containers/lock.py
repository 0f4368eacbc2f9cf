"""`containers/images.lock`: which images were built here, from what, and with which packages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megavoxel.containers.apptainer import labels_of, packages_of, wheels_of
from megavoxel.errors import UserError
from megavoxel.files import file_sha256, write_text

HEAD = "# What the images hold that `snakemake images` built last. Written by it: do not edit.\n"
SOURCES = ("requirements.lock", "pyproject.toml", "containers/*.def", "workflow/megavoxel/**/*", "workflow/schemas/*")


def source_files(checkout: Path) -> list[Path]:
    """All files of a checkout that go into the images, sorted."""
    found = {path for pattern in SOURCES for path in Path(checkout).glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.suffix != ".pyc")


def hash_of_sources(checkout: Path) -> str:
    """Hash of names and content of `source_files`, 64 hexadecimal digits; where the checkout lies does not count."""
    digest = hashlib.sha256()
    for path in source_files(checkout):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(checkout)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def describe_image(image: Path) -> dict[str, Any]:
    """What the lock says of an image.

    Returns:
        `sha256` and `bytes` of the file, `sources` (`hash_of_sources` when it was built), `apptainer` (the version that
        built it), `packages` (pins) and `wheels` (SHA-256 by file name).

    Raises:
        UserError: there is no Apptainer, or the file is no image of this project.
    """
    labels = labels_of(image)
    if "sources" not in labels:
        raise UserError(f"{image}: does not say from what it was built; make it again: snakemake images")
    return {
        "sha256": file_sha256(image),
        "bytes": image.stat().st_size,
        "sources": labels["sources"],
        "apptainer": labels.get("org.label-schema.usage.apptainer.version"),
        "packages": packages_of(image),
        "wheels": wheels_of(image),
    }


def write_lock(path: Path, images: Sequence[Path]) -> None:
    """Writes the lock of these images, each under its file name; records of others that are still there are kept.

    Raises:
        UserError: there is no Apptainer, or a file is no image of this project.
    """
    records = _records_of_images_in(images[0].parent, path) | {image.name: describe_image(image) for image in images}
    write_text(path, HEAD + yaml.safe_dump(dict(sorted(records.items())), sort_keys=False))


def _records_of_images_in(folder: Path, lock: Path) -> dict[str, dict[str, Any]]:
    try:
        return {name: record for name, record in read_lock(lock).items() if (folder / name).is_file()}
    except UserError:  # the lock is missing or broken, and written anew
        return {}


def doubt(
    image: Path, record: Mapping[str, Any], *, sources: str | None = None, sha256: str | None = None
) -> str | None:
    """Why an image may not be what it is taken for; None where nothing says so.

    Args:
        image: its file.
        record: what the lock says of it; nothing where it is not in there.
        sources: `hash_of_sources` of the checkout that uses the image; None: is not compared.
        sha256: the digest of the file, where it was computed; else its size alone is compared.
    """
    if sources is not None and record.get("sources") != sources:
        return "was built from other sources than these: snakemake images"
    if record.get("bytes") != image.stat().st_size or (sha256 and record.get("sha256") != sha256):
        return "is not the file that images.lock describes: snakemake images, or put the right one there"
    return None


def read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """The records of `write_lock` by file name.

    Raises:
        UserError: the file is not there, or is no lock.
    """
    try:
        records = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); write it again: snakemake images") from None
    if not isinstance(records, Mapping) or not all(isinstance(record, Mapping) for record in records.values()):
        raise UserError(f"{path}: is no lock of images; write it again: snakemake images")
    return {str(name): dict(record) for name, record in records.items()}
