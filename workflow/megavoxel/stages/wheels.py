"""Download the packages of a container image, so that its build needs no network."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--requirements", type=Path, required=True, help="pinned requirements: requirements.lock")
    parser.add_argument(
        "--hashed", type=Path, required=True, help="those with checksums of their files: requirements-hashed.lock"
    )
    parser.add_argument("--index", help="an address or folder in which pip looks as well, say for a build of PyTorch")
    parser.add_argument("--output", type=Path, required=True, help="folder of the wheels")


def run(arguments: argparse.Namespace) -> None:
    """Fills the folder with wheels."""
    from megavoxel.containers.build import collect_wheels

    collect_wheels(arguments.requirements, arguments.hashed, arguments.output, index=arguments.index)
    found = list(arguments.output.iterdir())
    print(f"{len(found)} packages, {sum(path.stat().st_size for path in found) / 2**20:.0f} MiB")
