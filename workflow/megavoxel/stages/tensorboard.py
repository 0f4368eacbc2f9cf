"""Write the training curves of finished runs as event files of TensorBoard: `tensorboard --logdir DIR` shows them.

They come from history.csv: learning rate, losses, pseudo-Dice in all and per label (of a classifier accuracy), seconds
and peak memory by epoch. Event files in the folder of a run are replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.reporting.curves import add_runs, find_histories, points_of

EVENTS = "events.out.tfevents.*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    add_runs(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the event files")


def run(arguments: argparse.Namespace) -> None:
    """Writes DIR/SETTING/fold-K/events.out.tfevents.* for each run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "event files need the package tensorboard: pip install 'megavoxel[tensorboard]', or pip install tensorboard"
        ) from None
    for history in find_histories(arguments.runs):
        folder = arguments.output / history.parent.parent.name / history.parent.name
        for old in folder.glob(EVENTS):
            old.unlink()
        epochs = 0
        with SummaryWriter(str(folder)) as writer:
            for point in points_of(history):
                writer.add_scalar(point.name, point.value, global_step=point.epoch, walltime=point.time)
                epochs = max(epochs, point.epoch)
        print(f"{folder}: {epochs} epochs", flush=True)
