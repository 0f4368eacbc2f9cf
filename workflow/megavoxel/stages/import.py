"""Make a model for 'megavoxel predict --model' from a network that was trained elsewhere, without training again.

A folder of nnU-Net v2, with plans.json, dataset.json and fold_*/checkpoint_final.pth:
  megavoxel import nnunet nnUNet_results/DATASET/nnUNetTrainer__nnUNetPlans__3d_fullres --to models/NAME
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=["nnunet"], help="what trained it: nnU-Net v2")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--folds",
        nargs="+",
        metavar="K",
        help="which folds, such as 0 1 2, or all; default: the numbered ones, else all",
    )
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    parser.add_argument(
        "--orientation",
        metavar="RAS",
        help="where the axes i, j, k of the training images run, such as RAS or LPS; default: as in the label maps of "
        "fold_*/validation",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="float16",
        help="numbers in which it predicts; default: float16, which is float32 on a processor, as in nnU-Net",
    )
    parser.add_argument("--authors", default="", help="who made the model, for its card")


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder, whole or not at all."""
    from megavoxel.models.directory import next_command
    from megavoxel.models.nnunet import Request, import_model

    description = import_model(
        Request(
            folder=arguments.folder,
            folds=tuple(arguments.folds or ()),
            checkpoint=arguments.checkpoint,
            orientation=arguments.orientation,
            precision=arguments.precision,
            authors=arguments.authors,
        ),
        arguments.to,
    )
    print(f"{arguments.to}: {description.name}, fold {', '.join(str(fold.fold) for fold in description.folds)}")
    print(next_command(arguments.to), flush=True)
