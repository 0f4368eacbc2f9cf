"""What each process of a group does in tests/test_launch.py: one fails while the other waits for a kernel.

torchrun … tests/stuck_worker.py train
"""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

import torch

from megavoxel.distributed.failures import run_member
from megavoxel.distributed.group import joined_group
from megavoxel.distributed.launch import told_to_runner
from megavoxel.errors import UserError


def without_end(*_: object) -> NoReturn:
    """What NCCL's kernels do, and all that waits for them, where a process is lost."""
    while True:
        time.sleep(1)


def work() -> int:
    """Ends well in no process."""
    torch.distributed.destroy_process_group = without_end
    signal.signal(signal.SIGTERM, lambda *_: None)  # the handler of Python that has no turn meanwhile
    with told_to_runner(), joined_group(torch.device("cpu")) as group:
        group.all(0.0)
        if group.rank == 1:
            raise UserError("case 7 is damaged")
        without_end()
    return 0


if __name__ == "__main__":
    assert "TORCHELASTIC_RUN_ID" in os.environ
    run_member(work)
