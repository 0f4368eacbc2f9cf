"""Train a setting on a fold: writes model.pt, history.csv and manifest.json, and keeps states to resume from."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.config.hardware import load_device
from megavoxel.errors import UserError
from megavoxel.files import atomic_path, content_hash, file_sha256, write_json
from megavoxel.planning.plan import Plan, load_plan, require_first_stage
from megavoxel.planning.splits import Fold as Split
from megavoxel.planning.splits import load_splits

if TYPE_CHECKING:  # PyTorch is loaded when there is something to train
    import torch

    from megavoxel.distributed.group import Group
    from megavoxel.forecast.setting import Forecast
    from megavoxel.training.loop import Fold
    from megavoxel.training.run import Run

PATIENCE = 90.0
"""Seconds that the leader of a group waits for its states: longer than a dead holder's lock lasts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--plan", type=Path, required=True, help="plan.json of the setting")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--preprocessed", type=Path, help="folder of the preprocessed cases")
    data.add_argument("--cases", type=Path, help="cases.json, for a setting of a classification study")
    parser.add_argument("--splits", type=Path, required=True, help="splits.json of the study")
    parser.add_argument("--fold", type=int, required=True, help="the fold, counted from 0")
    parser.add_argument(
        "--state", type=Path, required=True, help="folder for states; one below it per plan, fold and data"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for model.pt, history.csv, manifest.json")
    parser.add_argument(
        "--stage1", type=Path, nargs="+", default=[], help="folders that 'megavoxel stage1' wrote, one per fold"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        help="model.pt to begin with, for a setting with 'start'; published ones for 'pretrained'",
    )
    parser.add_argument("--checksums", type=Path, help="checksums.tsv of the dataset, for the manifest")
    parser.add_argument(
        "--hardware",
        nargs=2,
        metavar=("FILE", "NAME"),
        help="hardware file and the device in it that this is, for what is said of memory",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")


def run(arguments: argparse.Namespace) -> None:
    """Trains, then writes the three files; model.pt comes last. Several devices: as a group of processes."""
    if arguments.cases is not None:
        from megavoxel.stages.classification.train import run_train

        run_train(arguments)
        return
    from megavoxel.distributed.group import is_leader, is_member, joined_group, local_device
    from megavoxel.distributed.launch import start_group
    from megavoxel.forecast.memory import advice_for_training, explained_out_of_memory
    from megavoxel.network.device import choose_device, set_threads
    from megavoxel.network.host_memory import keep_freed_memory
    from megavoxel.training.lock import held, wait_for_others
    from megavoxel.training.loop import train

    plan, folds = load_plan(arguments.plan), load_splits(arguments.splits).folds
    if not 0 <= arguments.fold < len(folds):
        raise UserError(f"--fold {arguments.fold}: {arguments.splits} has the folds 0 to {len(folds) - 1}")
    _check_stages(plan)
    require_first_stage(plan, arguments.stage1, option="--stage1")
    _check_start(plan, arguments.weights)
    fold = _fold(arguments, folds[arguments.fold])
    states = arguments.state / fold.key(plan)
    if plan.parallel.devices > 1 and not is_member():
        wait_for_others(states)
        start_group("train", arguments, processes=plan.parallel.devices, setting=plan.setting)
    set_threads(arguments.threads)
    keep_freed_memory()
    device = choose_device(local_device(arguments.device))
    forecast = _checked_forecast(plan, fold, len(folds), device, arguments.hardware)
    # The others of a group wait for its leader to join them, for some minutes; whom to wait for longer was seen above.
    own_states = held(states, patience=PATIENCE if is_member() else math.inf) if is_leader() else nullcontext()
    with own_states as lock:
        with (
            explained_out_of_memory(plan.setting, lambda: advice_for_training(plan, forecast)),
            joined_group(device) as group,
        ):
            _check_group(plan, group)
            if group.leads:
                _warn_of_what_is_not_taught(plan, fold)
            done = train(plan, fold, arguments.state, device, group, lock)
        if group.leads:
            lock.check()
            _write_outputs(arguments.output, done, fold)


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Writes one line per epoch."""
    import pandas

    with atomic_path(path) as partial:
        pandas.DataFrame(history).to_csv(partial, index=False)


def _checked_forecast(
    plan: Plan, fold: Fold, folds: int, device: torch.device, hardware: Sequence[str] | None
) -> Forecast:
    """The forecast for the device at hand, in the precision that training will choose there."""
    from megavoxel.forecast.duration import Workload
    from megavoxel.forecast.memory import check_fits, device_at_hand
    from megavoxel.network.device import choose_precision

    described = load_device(Path(hardware[0]), hardware[1], source="--hardware") if hardware else None
    found = device_at_hand(device, plan.parallel.devices, described=described)
    training = replace(plan.training, precision=choose_precision(plan, device).name)
    workload = Workload(training_cases=len(fold.training) + len(fold.validation), folds=folds)
    return check_fits(replace(plan, training=training), found, workload)


def _fold(arguments: argparse.Namespace, split: Split) -> Fold:
    from megavoxel.preprocessing.first_stage import first_stage_path
    from megavoxel.training.loop import Fold

    cases = (*split.training, *split.validation)
    labels = [first_stage_path(arguments.stage1, case) for case in cases] if arguments.stage1 else []
    return Fold(
        number=arguments.fold,
        preprocessed=arguments.preprocessed,
        training=tuple(split.training),
        validation=tuple(split.validation),
        first_stage=tuple(arguments.stage1),
        data=file_sha256(arguments.checksums) if arguments.checksums else None,
        first_stage_data=content_hash([file_sha256(path) for path in labels]) if labels else None,
        start=arguments.weights,
        start_data=file_sha256(arguments.weights) if arguments.weights else None,
    )


def _check_stages(plan: Plan) -> None:
    count = plan.parallel.pipeline
    if count > 1 and len(plan.stages) != count:
        raise UserError(
            f"setting {plan.setting}: its plan.json asks for a pipeline over {count} devices and cuts the network into "
            f"{len(plan.stages)} stages; run 'megavoxel plan' again, which writes both"
        )


def _check_start(plan: Plan, start: Path | None) -> None:
    if plan.start is not None and start is None:
        raise UserError(
            f"setting {plan.setting}: it begins with the weights of {plan.start}; give --weights with the model.pt of "
            "that setting's same fold"
        )
    if start is not None and plan.start is None:
        raise UserError(f"--weights: setting {plan.setting} begins with random weights; leave it out")
    if start is not None and not start.is_file():
        raise UserError(f"--weights {start}: no such file; train {plan.start} on this fold first")


def _check_group(plan: Plan, group: Group) -> None:
    if group.size != plan.parallel.devices:
        raise UserError(
            f"setting {plan.setting}: the plan spreads a step over {plan.parallel.devices} processes, {group.size} "
            "were started; start 'megavoxel train' once, it starts the others itself"
        )


def _warn_of_what_is_not_taught(plan: Plan, fold: Fold) -> None:
    from megavoxel.training.absent import background_never_seen, labels_never_seen

    absent = labels_never_seen(plan, fold.preprocessed, fold.training)
    if absent:
        print(
            f"warning: fold {fold.number}: no training case has {', '.join(absent)} annotated; the network cannot "
            "learn it, and validation cases that have it score 0 for it",
            flush=True,
        )
    if background_never_seen(plan, fold.training):
        print(
            f"warning: fold {fold.number}: every training case lacks the annotation of some label, so that no voxel is "
            "known to be background; only a loss with Dice teaches it, as what is none of the labels",
            flush=True,
        )


def _write_outputs(folder: Path, done: Run, fold: Fold) -> None:
    from megavoxel.network.weights import save_weights
    from megavoxel.training.manifest import build_manifest

    write_history(folder / "history.csv", done.history)
    write_json(folder / "manifest.json", build_manifest(done, fold, forecast_gib=_forecast_gib(done)))
    save_weights(folder / "model.pt", done.network, plan_hash=done.plan.hash, precision=done.precision.name)


def _forecast_gib(done: Run) -> float:
    """What the forecast says of the peak memory of a run as PyTorch counts it, in the precision that the run took."""
    from megavoxel.forecast.setting import step_costs
    from megavoxel.forecast.step import GIB

    plan = done.plan
    costs = [cost for phase in plan.by_phase() for cost in step_costs(phase, plan.parallel, done.precision.name)]
    return max(cost.peak_bytes for cost in costs) / GIB
