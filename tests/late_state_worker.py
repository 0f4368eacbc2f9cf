"""What each process of a group does in tests/test_group.py: it goes on from the state in a folder of its own.

RANK=… WORLD_SIZE=… python tests/late_state_worker.py OUTPUT

The first process writes what came of it. Processes on several machines may see different files of one folder, where a
file system shows them late.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from megavoxel.distributed.group import joined_group
from megavoxel.errors import UserError
from megavoxel.training.loop import TrainingFunctions, train_plan


def main() -> None:
    """Joins the group and starts training."""
    output, cpu = Path(sys.argv[1]), torch.device("cpu")
    functions = mock.create_autospec(TrainingFunctions, instance=True)
    functions.start = lambda *given: SimpleNamespace(**(given[3] or {"epoch": 0, "losses": []}))
    with joined_group(cpu) as group:
        try:
            train_plan(functions, None, None, output.with_name(f"seen-by-{group.rank}"), "some", group)
        except UserError as fault:
            said = str(fault)
        except AttributeError as fault:  # the run in place of a real one has no history: training would begin
            said = f"goes on: {fault}"
        if group.leads:
            output.write_text(said)


if __name__ == "__main__":
    main()
