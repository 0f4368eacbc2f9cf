"""Bring the training curves of finished runs to MLflow, or write them as offline runs of Weights & Biases.

They come from history.csv, and parameters from plan.json; nothing of cases is told. A run that is there already is left
alone, and one of another training takes the place of the older.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.reporting.curves import add_runs, find_histories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    add_runs(parser)
    parser.add_argument("--mlflow", metavar="URI", help="server or database; variables as in $NAME are replaced")
    parser.add_argument("--wandb", type=Path, metavar="DIR", help="folder for offline runs")


def run(arguments: argparse.Namespace) -> None:
    """Brings all runs to all that are named."""
    from megavoxel.reporting.tracking import to_mlflow, to_wandb, tracked_run

    if not (arguments.mlflow or arguments.wandb):
        raise UserError("give --mlflow URI, --wandb DIR, or both")
    runs = [tracked_run(history) for history in find_histories(arguments.runs)]
    if arguments.mlflow:
        for line in to_mlflow(runs, os.path.expandvars(arguments.mlflow)):
            print(f"MLflow: {line}", flush=True)
    if arguments.wandb:
        for line in to_wandb(runs, arguments.wandb):
            print(f"wandb: {line}", flush=True)
