"""Write the training curves of finished runs as event files of TensorBoard: `tensorboard --logdir DIR` shows them.

They come from history.csv: learning rate, losses, pseudo-Dice in all and per label (of a classifier accuracy), seconds
and peak memory by epoch. Event files in the folder of a run are replaced.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from megavoxel.errors import UserError

GROUPS = {
    "training_loss": "loss/training",
    "validation_loss": "loss/validation",
    "pseudo_dice": "pseudo-Dice/all",
    "training_accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "optimiser/learning rate",
    "seconds": "cost/seconds",
    "peak_memory_mib": "cost/peak memory in MiB",
}
LABEL = "pseudo_dice_"
EVENTS = "events.out.tfevents.*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs (results/STUDY/SETTING/fold-K), or folders above them",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the event files")


def run(arguments: argparse.Namespace) -> None:
    """Writes DIR/SETTING/fold-K/events.out.tfevents.* for each run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "event files need the package tensorboard: pip install 'megavoxel[tensorboard]', or pip install tensorboard"
        ) from None

    for history in _histories(arguments.runs):
        folder = arguments.output / history.parent.parent.name / history.parent.name
        for old in folder.glob(EVENTS):
            old.unlink()
        with SummaryWriter(str(folder)) as writer:
            epochs = _write(writer, history)
        print(f"{folder}: {epochs} epochs", flush=True)


def _histories(runs: list[Path]) -> list[Path]:
    """The history.csv in or below each folder."""
    found = []
    for folder in runs:
        below = (
            [folder / "history.csv"] if (folder / "history.csv").is_file() else sorted(folder.glob("**/history.csv"))
        )
        if not below:
            raise UserError(f"{folder}: there is no history.csv in or below it; training writes it at its end")
        found += below
    return found


def _write(writer: object, history: Path) -> int:
    """One point per epoch and curve, as far apart in time as the epochs; the last one when the file was written."""
    import pandas

    table = pandas.read_csv(history)
    end = history.stat().st_mtime
    left = table["seconds"][::-1].cumsum()[::-1] - table["seconds"]
    for row, before_end in zip(table.to_dict("records"), left, strict=True):
        for column, value in row.items():
            name = f"pseudo-Dice/{column.removeprefix(LABEL)}" if column.startswith(LABEL) else GROUPS.get(column)
            if name is not None and not math.isnan(value):
                writer.add_scalar(name, value, global_step=int(row["epoch"]), walltime=end - before_end)
    return len(table)
