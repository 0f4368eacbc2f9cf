"""`containers/base.lock`: the packages of Debian in the base of the images, and when a mirror had them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import yaml

from megavoxel.containers.build import ask
from megavoxel.errors import UserError
from megavoxel.files import write_text

HEAD = "# The packages of Debian in the base of the images. Written by `snakemake images` if it is not there.\n"
QUERY = ("dpkg-query", "--show", "--showformat", "${Package}=${Version}\\n")


def debian_packages(image: Path) -> list[str]:
    """The packages of Debian that an image holds, as sorted NAME=VERSION.

    Raises:
        UserError: there is no Apptainer, or nothing of Debian in the image.
    """
    done = ask("exec", str(image), *QUERY)
    if done.returncode or not done.stdout:
        raise UserError(f"{image}: its packages of Debian cannot be listed: {done.stderr.strip() or 'there are none'}")
    return sorted(done.stdout.split())


def lock_base(lock: Path, image: Path) -> None:
    """Holds an image to the lock. Where there is none, writes it, with the present moment as that of the mirror.

    Raises:
        UserError: the packages of Debian in the image are others than those of the lock, or the lock is not readable.
    """
    found = debian_packages(image)
    if not lock.exists():
        content = {"archive": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", "packages": found}
        write_text(lock, HEAD + yaml.safe_dump(content, sort_keys=False))
        return
    archive, locked = _read(lock)
    if changes := _changes(locked, found):
        raise UserError(
            f"{len(changes)} packages of Debian are not those of {lock}: {', '.join(changes)}. Give an archive of "
            f"mirrors as of {archive} (--config debian_mirror=ADDRESS, see containers/README.md), or remove {lock}: "
            "the packages of today are then taken and locked"
        )


def _read(lock: Path) -> tuple[str, list[str]]:
    try:
        content = yaml.safe_load(lock.read_text())
        archive, packages = content["archive"], content["packages"]
        if re.fullmatch(r"\d{8}T\d{6}Z", archive) and all("=" in pin for pin in packages):
            return archive, packages
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        pass
    raise UserError(f"{lock}: is no lock of a base; remove it, and snakemake images writes it again")


def _changes(locked: list[str], found: list[str]) -> list[str]:
    """A word for each package in which two lists of NAME=VERSION differ."""
    old, new = (dict(pin.split("=", 1) for pin in pins) for pins in (locked, found))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name} {new.get(name, 'missing')} (locked: {old.get(name, 'none')})" for name in names]
