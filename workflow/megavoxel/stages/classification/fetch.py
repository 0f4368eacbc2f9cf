"""Published weights to a file."""

from __future__ import annotations

import argparse

from megavoxel.config.classification import PublishedWeights
from megavoxel.config.records import from_plain
from megavoxel.stages.plan_preprocessing import parse_definition
from megavoxel.tasks.classification.pretrained import fetch_weights


def run_fetch_weights(arguments: argparse.Namespace) -> None:
    """Brings the weights, held against their checksum."""
    keys = parse_definition(arguments.weights, option="--weights")
    weights = from_plain(PublishedWeights, keys, where="--weights")
    fetch_weights(weights, arguments.output)
    print(f"{arguments.output}: {weights.file or weights.url}")
