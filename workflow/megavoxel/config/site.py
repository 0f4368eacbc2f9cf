"""The site's file, slurm/site.yaml: what a cluster needs beside the profile and the rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megavoxel.config.records import from_plain
from megavoxel.config.schema import read_yaml, validate


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster's own names and wishes."""

    all: dict[str, Any] = field(default_factory=dict)
    """Resources of every job."""
    gpu: dict[str, Any] = field(default_factory=dict)
    """Resources of jobs that ask for a GPU, in place of those."""
    scratch: str | None = None
    """Folder for temporary files on the nodes; variables of the environment in it are filled in there. None: the
    system's."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of Snakemake and of its Slurm plugin."""

    def default_resources(self) -> dict[str, Any]:
        """What Snakemake's `default-resources` is given: Python, so that texts are quoted and stay texts."""
        resources = {name: repr(value) if isinstance(value, str) else value for name, value in self.all.items()}
        if self.scratch:
            # Local rules are given it as well, on machines that may lack the folder.
            usable = f"__import__('os').access({self.scratch!r}, 3)"
            resources["tmpdir"] = f"{self.scratch!r} if {usable} else system_tmpdir"
        return resources


def load_site(path: Path) -> Site:
    """Reads a site's file; without one a site needs nothing.

    Raises:
        UserError: the file is wrong.
    """
    if not path.exists():
        return Site()
    values = read_yaml(path)
    validate(values, "site", source=str(path))
    return from_plain(Site, {key: value for key, value in values.items() if value is not None}, where=str(path))
