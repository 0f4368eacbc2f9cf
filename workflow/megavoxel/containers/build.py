"""What an image is built from, and its build by Apptainer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, atomic_path

PYTHON_OF_IMAGE = (3, 11)
"""The Python of Debian 12, on which the images are based."""
BUILD_TOOLS = ("setuptools", "wheel")
"""The packages that build megavoxel itself inside the image."""
# As fast to unpack as gzip, and several times as fast to make.
COMPRESSION = ("--mksquashfs-args", "-comp zstd -Xcompression-level 3")


def mirror_of_host(root: Path = Path("/")) -> str:
    """The address from which this Debian machine takes its packages; the images take theirs from there as well.

    Raises:
        UserError: this is not Debian, or its sources name no address.
    """
    if re.search(r"^ID=\"?debian\"?$", _text(root / "etc/os-release"), re.MULTILINE):
        for file in [*sorted(root.glob("etc/apt/sources.list.d/*.sources")), root / "etc/apt/sources.list"]:
            pattern = r"^URIs:\s*(\S+)" if file.suffix == ".sources" else r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)"
            found = re.search(pattern, _text(file), re.MULTILINE)
            if found:
                return found[1]
    raise UserError("no address of a Debian mirror is known here; give one: --config debian_mirror=ADDRESS")


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def collect_wheels(requirements: Path, hashed: Path, folder: Path, *, index: str | None = None) -> None:
    """Downloads the locked packages as wheels, so that the build of the image needs no network.

    Packages that come as source only are built here.

    Args:
        requirements: a file of pinned requirements.
        hashed: those of them that are held to the checksums of their files; the others are taken as the index has them.
        folder: where the wheels go; an older folder there is replaced.
        index: an address or folder in which pip looks as well. A local version (``2.13.0+cpu``) found there is
            preferred to the plain one.

    Raises:
        UserError: this Python is not that of the images, or pip failed; pip explains itself on standard error.
    """
    if sys.version_info[:2] != PYTHON_OF_IMAGE:
        wanted, here = (".".join(map(str, version)) for version in (PYTHON_OF_IMAGE, sys.version_info[:2]))
        raise UserError(f"the images have Python {wanted}, and wheels collected by Python {here} do not fit it")
    with atomic_directory(folder, replace=True) as partial:
        _wheels(partial, hashed, "--no-deps", "--require-hashes")
        others = partial / "others.txt"
        others.write_text("\n".join(pins_beside(requirements.read_text(), hashed.read_text())))
        found_first = ["--find-links", str(partial), *(["--extra-index-url", index] if index else [])]
        # What the others need is of the locked versions, too, and not the newest that the index has.
        locked = ["--constraint", str(requirements)]
        _wheels(partial, others, *BUILD_TOOLS, *locked, *found_first, called=requirements)
        others.unlink()


def pins_beside(requirements: str, hashed: str) -> list[str]:
    """The requirements of a file that another one, with checksums, does not have; texts of both."""
    held = {_package(line) for line in hashed.splitlines() if "==" in line}
    pins = [line for line in requirements.splitlines() if line.strip() and not line.startswith("#")]
    return [pin for pin in pins if _package(pin) not in held]


def _package(pin: str) -> str:
    """Name of a pinned package, in the spelling by which pip compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=\s\[]", pin, maxsplit=1)[0]).lower()


def _wheels(folder: Path, requirements: Path, *options: str, called: Path | None = None) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--requirement", str(requirements), "--wheel-dir", str(folder), *options]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{called or requirements}: pip could not collect all packages; the lines above say which")


def build_image(
    definition: Path, image: Path, arguments: Mapping[str, str], *, accept: Callable[[Path], None] | None = None
) -> None:
    """Builds an image from a definition file, whole or not at all.

    Args:
        image: the SIF file to make; an older one is replaced once the new one is complete.
        arguments: values of the ``{{ names }}`` in the definition.
        accept: is called with the complete image, before it replaces an older one; may raise an error instead.

    Raises:
        UserError: there is no Apptainer, or it failed; it explains itself on standard output.
    """
    options = [word for item in arguments.items() for word in ("--build-arg", "=".join(item))]
    with atomic_path(image) as partial:
        command = [apptainer(), "build", "--force", *COMPRESSION, *options, str(partial), str(definition)]
        if subprocess.run(command, check=False, stderr=subprocess.STDOUT).returncode:
            raise UserError(
                f"{definition}: Apptainer could not build {image}; the lines above say why. What it needs without root "
                "is in containers/README.md"
            )
        if accept:
            accept(partial)


def apptainer() -> str:
    """The path of the program.

    Raises:
        UserError: there is neither `apptainer` nor, by its old name, `singularity`.
    """
    program = shutil.which("apptainer") or shutil.which("singularity")
    if program is None:
        raise UserError("there is no apptainer on this machine's PATH; install Apptainer 1.1 or newer")
    return program


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """What Apptainer answers to a command, without what it says about itself.

    Raises:
        UserError: there is no Apptainer.
    """
    return subprocess.run([apptainer(), "--quiet", *words], capture_output=True, text=True, check=False)
