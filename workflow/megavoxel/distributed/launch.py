"""Starts a stage again as a group of processes, one per device, by `torchrun`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

import torch

from megavoxel.errors import UserError
from megavoxel.network.device import usable_threads

FIRST_PORT, PORTS = 20000, 10000
"""Where the processes of several nodes meet: a port by the job's number, so that jobs that share a node differ."""


def start_group(stage: str, arguments: argparse.Namespace, *, processes: int, setting: str) -> None:
    """Replaces this process by `torchrun` with its share of `processes` of `megavoxel STAGE` and the same options.

    Signals then go straight to `torchrun`, which ends all processes when one of them fails. Where Slurm's `srun` has
    started the stage once on each of several nodes, they have equal shares and meet on the node of `srun`.

    Args:
        stage: name of the stage.
        arguments: its options, with `threads` (of all processes of the node together, None: all that there are) and
            `device`.
        processes: how many, over all nodes.
        setting: for messages.

    Raises:
        UserError: there are fewer GPUs, or the nodes cannot have equal shares.
    """
    nodes = nodes_of_step(os.environ)
    if processes % nodes:
        raise UserError(f"setting {setting}: parallel asks for {processes} devices, which {nodes} nodes cannot share")
    here = processes // nodes
    on_gpus = arguments.device.startswith("cuda") or (arguments.device == "auto" and torch.cuda.is_available())
    if on_gpus and torch.cuda.device_count() < here:
        raise UserError(
            f"setting {setting}: parallel asks for {here} devices on a node, PyTorch sees {torch.cuda.device_count()} "
            "GPUs here; ask for as many in the job, or lower parallel.data"
        )
    threads = max(1, usable_threads(arguments.threads) // here)
    options = vars(arguments) | {"threads": threads}
    words = [word for key, value in options.items() for word in _option(key, value)]
    runner = [sys.executable, "-m", "megavoxel.distributed.runner", *meeting_point(os.environ), "--max-restarts", "0"]
    runner += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    command = [*runner, "--nproc-per-node", str(here), "-m", "megavoxel", stage, *words]
    os.execve(sys.executable, command, os.environ | {"OMP_NUM_THREADS": str(threads)})


def nodes_of_step(environment: Mapping[str, str]) -> int:
    """On how many nodes `srun` has started this process and its like; 1 without Slurm."""
    return int(environment.get("SLURM_STEP_NUM_NODES", 1))


def meeting_point(environment: Mapping[str, str]) -> list[str]:
    """Options of `torchrun` that say where the processes of a job find one another."""
    nodes = nodes_of_step(environment)
    if nodes == 1:
        return ["--standalone"]
    port = FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
    name = f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    place = f"{environment['SLURM_LAUNCH_NODE_IPADDR']}:{port}"
    # Said outright, because a node may not recognise the address of one of its own networks.
    first = environment["SLURM_NODEID"] == "0"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", name, "--rdzv-endpoint", place]
    return ["--nnodes", str(nodes), *meeting, "--rdzv-conf", f"is_host={str(first).lower()}"]


def _option(key: str, value: object) -> list[str]:
    """An option as words of a command line; none where it was left out."""
    if isinstance(value, bool):
        return [f"--{key.replace('_', '-')}"] if value else []
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [f"--{key.replace('_', '-')}", *map(str, values)] if values else []
