"""Starts a stage again as a group of processes, one per device, by `torchrun`."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from megavoxel.errors import UserError
from megavoxel.network.device import usable_threads


def start_group(stage: str, arguments: argparse.Namespace, *, processes: int, setting: str) -> None:
    """Replaces this process by `torchrun` with `processes` of `megavoxel STAGE` and the same options.

    Signals then go straight to `torchrun`, which ends all processes when one of them fails.

    Args:
        stage: name of the stage.
        arguments: its options, with `threads` (of all processes together, None: all that there are) and `device`.
        processes: how many.
        setting: for messages.

    Raises:
        UserError: there are fewer GPUs.
    """
    on_gpus = arguments.device.startswith("cuda") or (arguments.device == "auto" and torch.cuda.is_available())
    if on_gpus and torch.cuda.device_count() < processes:
        raise UserError(
            f"setting {setting}: parallel asks for {processes} devices, PyTorch sees {torch.cuda.device_count()} GPUs "
            "here; ask for as many in the job, or lower parallel.data"
        )
    threads = max(1, usable_threads(arguments.threads) // processes)
    options = vars(arguments) | {"threads": threads}
    words = [word for key, value in options.items() for word in _option(key, value)]
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    command = [*runner, "--nproc-per-node", str(processes), "-m", "megavoxel", stage, *words]
    os.execve(sys.executable, command, os.environ | {"OMP_NUM_THREADS": str(threads)})


def _option(key: str, value: object) -> list[str]:
    """An option as words of a command line; none where it was left out."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [f"--{key.replace('_', '-')}", *map(str, values)] if values else []
