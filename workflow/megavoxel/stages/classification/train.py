"""Training of a classifier."""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.errors import UserError
from megavoxel.files import file_sha256, write_json
from megavoxel.tasks.classification.cases import load_image_cases
from megavoxel.tasks.classification.plan import ClassifierPlan, load_classifier_plan
from megavoxel.tasks.classification.splits import load_image_splits

if TYPE_CHECKING:  # PyTorch is loaded when there is something to train
    from megavoxel.tasks.classification.loop import ClassifierFold
    from megavoxel.tasks.classification.step import ClassifierRun


def run_train(arguments: argparse.Namespace) -> None:
    """Trains, then writes model.pt, history.csv and manifest.json. Several workers: as a group of processes."""
    from megavoxel.distributed.group import is_leader, is_member, joined_group, local_device
    from megavoxel.distributed.launch import start_group
    from megavoxel.forecast.memory import explained_out_of_memory
    from megavoxel.network.device import choose_device, set_threads
    from megavoxel.network.host_memory import keep_freed_memory
    from megavoxel.stages.train import PATIENCE
    from megavoxel.tasks.classification.forecast import advice
    from megavoxel.tasks.classification.loop import train_classifier
    from megavoxel.training.lock import held, wait_for_others
    from megavoxel.training.manifest import code_commit

    plan = load_classifier_plan(arguments.plan)
    fold = _fold(arguments, plan)
    states = arguments.state / fold.key(plan)
    if plan.workers > 1 and not is_member():
        wait_for_others(states)
        start_group("train", arguments, processes=plan.workers, setting=plan.setting)
    code_commit()  # by Git, which a worker with private data cannot start once it trains
    set_threads(arguments.threads)
    keep_freed_memory()
    device = choose_device(local_device(arguments.device))
    own_states = held(states, patience=PATIENCE if is_member() else math.inf) if is_leader() else nullcontext()
    with own_states as lock:
        with explained_out_of_memory(plan.setting, lambda: advice(plan, device)), joined_group(device) as group:
            if group.size != plan.workers:
                raise UserError(
                    f"setting {plan.setting}: the plan is for {plan.workers} workers, {group.size} were started; start "
                    "'megavoxel train' once, it starts the others itself"
                )
            done = train_classifier(plan, fold, arguments.state, device, group, lock)
        if group.leads:
            lock.check()
            _write_outputs(arguments.output, done, fold)


def _fold(arguments: argparse.Namespace, plan: ClassifierPlan) -> ClassifierFold:
    from megavoxel.tasks.classification.loop import fold_of

    cases, folds = load_image_cases(arguments.cases), load_image_splits(arguments.splits).folds
    if not 0 <= arguments.fold < len(folds):
        raise UserError(f"--fold {arguments.fold}: {arguments.splits} has the folds 0 to {len(folds) - 1}")
    if plan.pretrained != (arguments.weights is not None):
        wanted = "begins with published weights: give them" if plan.pretrained else "begins at random: leave it out"
        raise UserError(f"--weights: setting {plan.setting} {wanted}")
    return fold_of(
        plan,
        cases,
        folds[arguments.fold],
        arguments.fold,
        data=file_sha256(arguments.checksums) if arguments.checksums else None,
        weights=arguments.weights,
        weights_data=file_sha256(arguments.weights) if arguments.weights else None,
    )


def _write_outputs(folder: Path, done: ClassifierRun, fold: ClassifierFold) -> None:
    from megavoxel.network.weights import save_weights
    from megavoxel.stages.train import write_history
    from megavoxel.tasks.classification.forecast import step_cost
    from megavoxel.tasks.classification.manifest import build_manifest
    from megavoxel.training.memory import GIB

    forecast = step_cost(done.plan, done.precision.name).peak_bytes / GIB
    write_history(folder / "history.csv", done.history)
    write_json(folder / "manifest.json", build_manifest(done, fold, forecast_gib=forecast))
    save_weights(folder / "model.pt", done.network, plan_hash=done.plan.hash, precision=done.precision.name)
