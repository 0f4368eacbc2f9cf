"""Train a setting on a fold: writes model.pt, history.csv and manifest.json, and keeps states to resume from."""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import atomic_path, file_sha256, write_json
from megavoxel.planning.plan import load_plan
from megavoxel.planning.splits import load_splits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--plan", type=Path, required=True, help="plan.json of the setting")
    parser.add_argument("--preprocessed", type=Path, required=True, help="folder of the preprocessed cases")
    parser.add_argument("--splits", type=Path, required=True, help="splits.json of the study")
    parser.add_argument("--fold", type=int, required=True, help="the fold, counted from 0")
    parser.add_argument(
        "--state", type=Path, required=True, help="folder for states; one below it per plan, fold and data"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for model.pt, history.csv, manifest.json")
    parser.add_argument("--checksums", type=Path, help="checksums.tsv of the dataset, for the manifest")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")


def run(arguments: argparse.Namespace) -> None:
    """Trains, then writes the three files; model.pt comes last."""
    from megavoxel.forecast.fit import check_fits, explained_out_of_memory
    from megavoxel.forecast.hours import Workload
    from megavoxel.network.device import choose_device, set_threads
    from megavoxel.network.host_memory import keep_freed_memory
    from megavoxel.network.weights import save_weights
    from megavoxel.training.loop import Fold, train
    from megavoxel.training.manifest import build_manifest

    plan = load_plan(arguments.plan)
    splits = load_splits(arguments.splits)
    if not 0 <= arguments.fold < len(splits.folds):
        raise UserError(f"--fold {arguments.fold}: {arguments.splits} has the folds 0 to {len(splits.folds) - 1}")
    split = splits.folds[arguments.fold]
    fold = Fold(
        number=arguments.fold,
        preprocessed=arguments.preprocessed,
        training=tuple(split.training),
        validation=tuple(split.validation),
        data=file_sha256(arguments.checksums) if arguments.checksums else None,
    )
    if plan.parallel.devices > 1:
        raise UserError(
            f"setting {plan.setting}: parallel asks for {plan.parallel.devices} devices, training runs on one; set "
            "parallel.data and parallel.pipeline to 1 (accumulate and checkpointing save memory on one device)"
        )
    set_threads(arguments.threads)
    keep_freed_memory()
    device = choose_device(arguments.device)
    cases = len(fold.training) + len(fold.validation)
    forecast = check_fits(plan, device, Workload(training_cases=cases, folds=len(splits.folds)))
    with explained_out_of_memory(plan, forecast):
        done = train(plan, fold, arguments.state, device)
    write_history(arguments.output / "history.csv", done.history)
    write_json(arguments.output / "manifest.json", build_manifest(done, fold))
    save_weights(arguments.output / "model.pt", done.network, plan_hash=plan.hash, precision=done.precision.name)


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Writes one line per epoch."""
    import pandas

    with atomic_path(path) as partial:
        pandas.DataFrame(history).to_csv(partial, index=False)
