"""Apptainer through spython: build an image, and ask it what it is."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spython.main import get_client

from megavoxel.errors import UserError
from megavoxel.files import atomic_path

PACKAGES = "/opt/megavoxel/packages.txt"
"""Inside of an image: what `pip freeze` said when it was built."""
WHEELS = "/opt/megavoxel/wheels.txt"
"""Inside of an image: what `sha256sum` said of the wheels that went in."""
# As fast to unpack as gzip, and several times as fast to make.
COMPRESSION = ("--mksquashfs-args", "-comp zstd -Xcompression-level 3")


def build_image(definition: Path, image: Path, arguments: Mapping[str, str]) -> None:
    """Builds an image from a definition file, whole or not at all.

    Args:
        definition: a definition file.
        image: the SIF file to make; an older one is replaced when the new one is there.
        arguments: values of the ``{{ names }}`` in the definition.

    Raises:
        UserError: there is no Apptainer, or it failed; what it says goes to standard output.
    """
    options = [*COMPRESSION, *(word for item in arguments.items() for word in ("--build-arg", "=".join(item)))]
    with apptainer(merge_output=True) as client, atomic_path(image) as partial:
        _, lines = client.build(
            str(definition), image=str(partial), sudo=False, force=True, stream=True, quiet=True, options=options
        )
        try:
            for line in lines:
                print(line, end="", flush=True)
        except subprocess.CalledProcessError:
            raise UserError(
                f"{definition}: Apptainer could not build {image}; the lines above say why. What it needs without root "
                "is in containers/README.md"
            ) from None


def labels_of(image: Path) -> dict[str, str]:
    """The labels of an image.

    Raises:
        UserError: there is no Apptainer or no such file, or it is no image.
    """
    if not image.is_file():
        raise UserError(f"{image}: there is no such image; make it: snakemake images")
    with apptainer() as client:
        found = client.inspect(str(image), quiet=True)
    try:
        return found["attributes"]["labels"]
    except (KeyError, TypeError):
        raise UserError(f"{image}: this is no image with labels; make it again: snakemake images") from None


def packages_of(image: Path) -> list[str]:
    """Pins of the Python packages in an image that was built from `containers/megavoxel.def`, sorted by name.

    Raises:
        UserError: there is no Apptainer, or the image has no such list.
    """
    return sorted(_words_in(image, PACKAGES), key=str.lower)


def wheels_of(image: Path) -> dict[str, str]:
    """SHA-256 of each wheel that went into an image that was built from `containers/megavoxel.def`, by file name.

    Raises:
        UserError: there is no Apptainer, or the image has no such list.
    """
    words = _words_in(image, WHEELS)
    return dict(zip(words[1::2], words[::2], strict=True))


def _words_in(image: Path, file: str) -> list[str]:
    with apptainer() as client:
        found = client.execute(str(image), ["cat", file], return_result=True, quiet=True)
    if found["return_code"]:
        raise UserError(f"{image}: has no {file}; make it again: snakemake images")
    return "".join(found["message"]).split()


@contextmanager
def apptainer(*, merge_output: bool = False) -> Iterator[object]:
    """spython's client. It calls the program by its old name, singularity, which an installation may lack.

    Args:
        merge_output: whether the program's standard error goes to its standard output. spython reads no more than
            one of them while a program runs, and a full pipe would stop the program.

    Raises:
        UserError: neither program is there.
    """
    program = shutil.which("apptainer") or shutil.which("singularity")
    if program is None:
        raise UserError("there is no apptainer on this machine's PATH; install Apptainer 1.1 or newer")
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "singularity"
        name.write_text(f'#!/bin/sh\nexec {shlex.quote(program)} "$@" {"2>&1" if merge_output else ""}\n')
        name.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
        try:
            yield get_client(quiet=not merge_output)
        finally:
            os.environ["PATH"] = path
