"""Make a synthetic labelled CT-like dataset from a seed: same options, same bytes."""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.config.records import from_plain
from megavoxel.config.source import Phantom
from megavoxel.datasets.folder import replaced_folder
from megavoxel.datasets.phantom import write_phantoms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--training-cases", type=int, required=True, help="labelled cases for cross-validation")
    parser.add_argument(
        "--test-cases", type=int, default=Phantom.test_cases, help="labelled cases kept out of all folds"
    )
    parser.add_argument("--seed", type=int, default=Phantom.seed, help="default: %(default)s")
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), default=Phantom.shape, help="mean voxels per axis"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), default=Phantom.spacing, help="mean spacing in mm"
    )
    parser.add_argument(
        "--noise", type=float, default=Phantom.noise, metavar="HU", help="standard deviation of the noise in HU"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the dataset, whole or not at all."""
    keys = ("training_cases", "test_cases", "seed", "noise", "shape", "spacing")
    values = {key: getattr(arguments, key) for key in keys}
    phantom = from_plain(Phantom, values, where="options")
    with replaced_folder(arguments.output) as folder:
        write_phantoms(folder, phantom)
