"""Build a container image from a definition file with Apptainer."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from megavoxel.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--definition", type=Path, required=True, help="definition file: containers/*.def")
    parser.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE", help="value of {{ NAME }} in the definition"
    )
    parser.add_argument(
        "--mirror", metavar="ADDRESS", help="Debian mirror as value of {{ mirror }}; host: this machine's own"
    )
    parser.add_argument(
        "--base-lock",
        type=Path,
        metavar="FILE",
        help="the packages of Debian that the image must have (containers/base.lock); written if there is no such file",
    )
    parser.add_argument("--output", type=Path, required=True, help="image to make, ending in .sif")


def run(arguments: argparse.Namespace) -> None:
    """Writes the image."""
    from megavoxel.containers.base import lock_base
    from megavoxel.containers.build import build_image, mirror_of_host

    values = dict(argument.partition("=")[::2] for argument in arguments.argument)
    empty = [name for name, value in values.items() if not value]
    if empty:
        raise UserError(f"--argument {empty[0]}: has no value; write NAME=VALUE")
    if arguments.mirror:
        values["mirror"] = mirror_of_host() if arguments.mirror == "host" else arguments.mirror
    accept = partial(lock_base, arguments.base_lock) if arguments.base_lock else None
    build_image(arguments.definition, arguments.output, values, accept=accept)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 2**20:.0f} MiB")
