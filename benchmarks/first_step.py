"""The command line of megavoxel in its own process, with the time of the first training step.

    python -m benchmarks.first_step BEGIN train ...

`BEGIN` is when the process was started, in seconds of the wall clock. Prints `first step after SECONDS` when the first
step has ended, its weights updated; then goes on as `megavoxel train ...` does.
"""

from __future__ import annotations

import sys
import time

from torch import Tensor

from megavoxel.cli import main
from megavoxel.training import memory
from megavoxel.training.run import Run


def announce_first_step(begin: float) -> None:
    """Has the first step of training, which every process on a CPU tracks, say how long it took to get there."""
    step = memory.train_step

    def announced(run: Run, image: Tensor, target: Tensor) -> Tensor:
        loss = step(run, image, target)
        print(f"first step after {time.time() - begin:.2f}", flush=True)
        memory.train_step = step
        return loss

    memory.train_step = announced


if __name__ == "__main__":
    announce_first_step(float(sys.argv[1]))
    main(sys.argv[2:])
