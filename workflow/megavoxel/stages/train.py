"""Train a setting on a fold: writes model.pt, history.csv and manifest.json, and keeps states to resume from."""

from __future__ import annotations

import argparse
import math
import os
from contextlib import nullcontext
from pathlib import Path

from megavoxel.config.hardware import load_device
from megavoxel.config.setting import ALL
from megavoxel.errors import UserError
from megavoxel.progress import also_on_terminal

PATIENCE = 90.0
"""Seconds that the leader of a group waits for its states: longer than a dead holder's lock lasts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--plan", type=Path, required=True, help="plan.json of the setting")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--preprocessed", type=Path, help="folder of the preprocessed cases")
    data.add_argument("--cases", type=Path, help="cases.json, for a setting of a classification study")
    parser.add_argument("--splits", type=Path, required=True, help="splits.json of the study")
    parser.add_argument(
        "--fold", type=fold_name, required=True, help="the fold, counted from 0; all: one network on all training cases"
    )
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
        help="hardware file and the device in it that this is, for what is said of memory; where it is a GPU, --device "
        "auto means cuda",
    )
    parser.add_argument(
        "--terminal", metavar="NAME", help="show the epochs also on the terminal of this job, if any, headed by NAME"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")


def run(arguments: argparse.Namespace) -> None:
    """Trains, then writes the three files; model.pt comes last. Several devices: as a group of processes."""
    from megavoxel.training.states.lock import living

    # Before the libraries are loaded, which takes long on a slow file system.
    alive = living(arguments.state) if os.environ.get("RANK", "0") == "0" else nullcontext()
    with alive, also_on_terminal(arguments.terminal):
        _train(arguments)


def fold_name(word: str) -> int | str:
    return word if word == ALL else int(word)


def _train(arguments: argparse.Namespace) -> None:
    from megavoxel.distributed.group import is_leader, is_member, joined_group, local_device
    from megavoxel.distributed.launch import start_group
    from megavoxel.forecast.memory import explained_out_of_memory
    from megavoxel.network.device import choose_device, set_threads
    from megavoxel.network.host_memory import keep_freed_memory
    from megavoxel.tasks import task_of
    from megavoxel.training.manifest import code_commit, write_outputs
    from megavoxel.training.states.lock import held, wait_for_others

    task = task_of(arguments.plan, what="plan")
    described = arguments.hardware and load_device(
        Path(arguments.hardware[0]), arguments.hardware[1], source="--hardware"
    )
    if described and described.kind == "gpu" and arguments.device == "auto":
        arguments.device = "cuda"  # a processor in its place would be days too slow, and nobody would be told
    device = choose_device(local_device(arguments.device))
    plan, data = task.data(arguments)
    devices, states = plan.parallel.devices, arguments.state / data.key(plan)
    if devices > 1 and not is_member():
        wait_for_others(states)
        start_group("train", arguments, processes=devices, setting=plan.setting)
    code_commit()  # by Git, which a worker with private data cannot start once it trains
    set_threads(arguments.threads)
    keep_freed_memory()
    foretold = task.check_fits(plan, data, device, described)
    # The others of a group wait for its leader to join them, for some minutes; whom to wait for longer was seen above.
    own_states = held(states, patience=PATIENCE if is_member() else math.inf) if is_leader() else nullcontext()
    with own_states as lock:
        with explained_out_of_memory(plan.setting, foretold.advice), joined_group(device) as group:
            if group.size != devices:
                raise UserError(
                    f"setting {plan.setting}: the plan spreads a step over {devices} processes, {group.size} were "
                    "started; start 'megavoxel train' once, it starts the others itself"
                )
            done = task.train(plan, data, arguments.state, device, group, lock)
        if group.leads:
            lock.check()
            write_outputs(arguments.output, done, data, forecast_gib=foretold.peak_gib(done))
