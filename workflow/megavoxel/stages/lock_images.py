"""Write the digest, sources and packages of container images."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="images built from megavoxel.def")
    parser.add_argument("--output", type=Path, required=True, help="the lock to write: containers/images.lock")


def run(arguments: argparse.Namespace) -> None:
    """Writes the lock."""
    from megavoxel.containers.lock import read_lock, write_lock

    write_lock(arguments.output, arguments.images)
    records = read_lock(arguments.output)
    for image in arguments.images:
        record = records[image.name]
        print(f"{image.name}: sha256 {record['sha256']}, {len(record['packages'])} packages")
