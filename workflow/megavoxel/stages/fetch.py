"""Bring a dataset to its folder: make phantoms, link a local folder, or download and extract an archive.

A mirror is looked at before any address. The folder appears whole or not at all, with checksums.tsv; an interrupted
download goes on where it stopped. An archive without a published checksum (`checksum: unpublished`) is held to the one
that archives.tsv, beside the folder, recorded when it was first fetched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.config.classification import PublishedWeights
from megavoxel.config.dataset import load_dataset
from megavoxel.config.records import from_plain
from megavoxel.datasets.fetch import fetch
from megavoxel.files import parse_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", type=Path, help="dataset file, config/datasets/NAME.yaml")
    source.add_argument("--weights", metavar="JSON", help="published weights of a classifier: file or url, and sha256")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, data/NAME; of weights, a file")
    parser.add_argument(
        "--mirror", type=Path, help="folder that may hold the archive, or a folder of the dataset's name"
    )
    parser.add_argument(
        "--downloads", type=Path, default=Path("data/downloads"), help="where archives are kept (default: %(default)s)"
    )
    parser.add_argument("--copy", action="store_true", help="copy the files of a local folder instead of linking them")


def run(arguments: argparse.Namespace) -> None:
    """Writes the dataset's folder, or the file of weights."""
    if arguments.weights is not None:
        from megavoxel.tasks.classification.pretrained import fetch_weights

        weights = from_plain(PublishedWeights, parse_json(arguments.weights, option="--weights"), where="--weights")
        fetch_weights(weights, arguments.output)
        print(f"{arguments.output}: {weights.file or weights.url}")
        return
    dataset = load_dataset(arguments.dataset)
    origin = fetch(
        dataset, arguments.output, downloads=arguments.downloads, mirror=arguments.mirror, copy=arguments.copy
    )
    print(f"{arguments.output}: {origin}")
