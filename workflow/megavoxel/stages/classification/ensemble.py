"""The mean of the probabilities of several classifiers."""

from __future__ import annotations

import argparse

from megavoxel.errors import UserError


def run_ensemble(arguments: argparse.Namespace) -> None:
    """Writes a CSV as `megavoxel predict` does."""
    from megavoxel.tasks.classification.probabilities import mean_probabilities, write_probabilities

    if len(arguments.members) != len(arguments.probabilities):
        raise UserError("--members and --probabilities need as many values each")
    mean = mean_probabilities(arguments.probabilities)
    write_probabilities(arguments.output, list(mean.index), list(mean.columns), mean.to_numpy())
    print(f"{len(mean)} images: {arguments.output}")
