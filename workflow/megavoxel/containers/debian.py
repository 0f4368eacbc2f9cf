"""Where a Debian machine takes its packages from, so that the images can take theirs there as well."""

from __future__ import annotations

import re
from pathlib import Path

from megavoxel.errors import UserError


def mirror_of_host(root: Path = Path("/")) -> str:
    """The address of the first package source of this machine.

    Raises:
        UserError: this is no Debian, or its sources name no address.
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
