"""Choose the temperature of a setting: its logits are divided by it, and probabilities are nearer to what is right.

  megavoxel temperature --confidence results/STUDY/SETTING/fold-*/confidence --output temperature.json

No label changes by it. 'megavoxel export' puts the file of a setting into its model, and 'predict --probabilities' uses
it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--confidence",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="fold-K/confidence: what 'megavoxel predict --confidence' wrote of the validation cases of each fold",
    )
    parser.add_argument("--output", type=Path, required=True, help="temperature.json")


def run(arguments: argparse.Namespace) -> None:
    """Writes the file."""
    from megavoxel.inference.temperature import fitted, read_confidence, save_temperature

    folds = {folder.resolve().parent.name: list(read_confidence(folder).values()) for folder in arguments.confidence}
    if len(folds) < len(arguments.confidence):
        raise UserError("--confidence: two of the folders are of the same fold-K; name each once")
    found = fitted(folds)
    save_temperature(arguments.output, found)
    told = "one fold, so that nothing is held out"
    if found.held_out_nll is not None:
        told = f"{found.held_out_nll:.5f} with it, each fold at that of the others"
    print(f"temperature {found.temperature:.3g}: NLL of a voxel {found.nll:.5f}, {told}", flush=True)
