"""Groups of processes, one per device, that `torchrun` starts: how a stage becomes one, and how its failure is told."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil
import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.run import parse_args, run

from megavoxel.errors import INTERRUPTED, UserError, printable
from megavoxel.network.device import choose_device, usable_threads

FIRST_PORT, PORTS = 20000, 10000
"""Where the processes of several nodes meet: a port by the job's number, so that jobs that share a node differ."""


def start_group(stage: str, arguments: argparse.Namespace, *, processes: int, setting: str) -> None:
    """Replaces this process by `torchrun` with its share of `processes` of `megavoxel STAGE` and the same options.

    Signals then go straight to `torchrun`, which ends all processes when one of them fails. Where Slurm's `srun` has
    started the stage once on each of several nodes, they have equal shares and meet on the node of `srun`.

    Args:
        arguments: its options, with `threads` (of all processes of the node together, None: all that there are) and
            `device`.
        processes: how many, over all nodes.

    Raises:
        UserError: there are fewer GPUs, a GPU cannot be used, or the nodes cannot have equal shares.
    """
    nodes = nodes_of_step(os.environ)
    if processes % nodes:
        raise UserError(f"setting {setting}: parallel asks for {processes} devices, which {nodes} nodes cannot share")
    here = processes // nodes
    seen = gpus_here(arguments.device)
    if seen is not None and seen < here:
        raise UserError(
            f"setting {setting}: parallel asks for {here} devices on a node, PyTorch sees {seen} "
            "GPUs here; ask for as many in the job, or lower parallel.data"
        )
    threads = max(1, usable_threads(arguments.threads) // here)
    options = vars(arguments) | {"threads": threads}
    words = [word for key, value in options.items() for word in _option(key, value)]
    runner = [sys.executable, "-m", "megavoxel.distributed.launch", *meeting_point(os.environ), "--max-restarts", "0"]
    runner += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    command = [*runner, "--nproc-per-node", str(here), "-m", "megavoxel", stage, *words]
    os.execve(sys.executable, command, os.environ | {"OMP_NUM_THREADS": str(threads)})


def gpus_here(device: str | None) -> int | None:
    """GPUs that PyTorch sees on this node; None where the device of that name is no GPU."""
    return torch.cuda.device_count() if choose_device(device).type == "cuda" else None


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


SIGNS_OF_A_LOST_PEER = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed",
    "failed to recv, got 0 bytes", "remote process exited", "Timed out waiting", "Connection refused",
)  # fmt: skip
"""What gloo, NCCL and their store say where another process is no longer there."""


@contextmanager
def told_to_runner() -> Iterator[None]:
    """Leaves an error of this process for the process that started the group, which prints it as the last line.

    Raises:
        UserError: another process of the group has ended; the cause is there and not here.
    """
    try:
        yield
    except Exception as error:
        if lost_peer(error):
            rank = os.environ.get("RANK", "0")
            raise UserError(f"process {rank} ends because another one did; its error is the last line") from None
        record_error(error)
        raise


def record_error(error: Exception) -> None:
    """Leaves an error for the process that started the group, unless it says no more than that another one is gone."""
    if not lost_peer(error):
        get_error_handler().record_exception(error)


def lost_peer(error: Exception) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_A_LOST_PEER)


def first_failure(failed: ChildFailedError) -> tuple[int, str]:
    """Rank and error of the process of a group that failed first.

    Processes that have left an error come first: those that only lost another process leave none. Processes that were
    killed come next.
    """
    rank, failure = min(failed.failures.items(), key=lambda item: _order(item[1]))
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    return rank, message.removeprefix(f"{UserError.__name__}: ")


def _order(failure: ProcessFailure) -> tuple[bool, bool, int]:
    return not isinstance(failure.message, dict), failure.exitcode >= 0, failure.timestamp


def main(words: Sequence[str] | None = None) -> int:
    """Runs a group of processes; `words` are the options of `torchrun`.

    Returns:
        0; 1 where one of them failed or a signal ended them; 130 after Ctrl-C, of which a second ends them at once.
    """
    options = parse_args(sys.argv[1:] if words is None else words)
    logging.disable(logging.WARNING)  # torchrun warns of every signal that it hands on
    try:
        run(options)
    except SignalException as told:  # the processes have said what they saved
        for process in psutil.Process().children(recursive=True):
            process.kill()
        return INTERRUPTED if told.sigval == signal.SIGINT else 1
    except ChildFailedError as failed:
        rank, message = first_failure(failed)
        stage = options.training_script_args[0]
        print(printable(f"megavoxel {stage}: error: process {rank}: {message}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
