"""The packages of an image, as wheels in a folder: the build of the image then needs no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import atomic_directory

PYTHON_OF_IMAGE = (3, 11)
"""Of Debian 12, on which the images are based."""
BUILD_TOOLS = ("setuptools", "wheel")
"""What builds the package itself inside of the image."""


def collect_wheels(requirements: Path, folder: Path, *, index: str | None = None) -> None:
    """Downloads the locked packages, building wheels of those that come as source only.

    Args:
        requirements: a file of pinned requirements.
        folder: where the wheels go; an older folder there is replaced.
        index: an address or folder in which pip looks as well. A local version (``2.13.0+cpu``) found there is
            preferred to the plain one.

    Raises:
        UserError: another Python than that of the images, or pip failed; what it says goes to standard error.
    """
    if sys.version_info[:2] != PYTHON_OF_IMAGE:
        wanted, here = (".".join(map(str, version)) for version in (PYTHON_OF_IMAGE, sys.version_info[:2]))
        raise UserError(f"the images have Python {wanted}, and wheels collected by Python {here} do not fit it")
    with atomic_directory(folder, replace=True) as partial:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        command += ["--requirement", str(requirements), *BUILD_TOOLS, "--wheel-dir", str(partial)]
        command += ["--extra-index-url", index] if index else []
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"{requirements}: pip could not collect all packages; the lines above say which")
