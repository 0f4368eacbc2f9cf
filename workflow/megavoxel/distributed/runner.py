"""`torchrun` that says in its last line why a group ended: python -m megavoxel.distributed.runner OPTIONS."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from megavoxel.distributed.failure import first_failure
from megavoxel.errors import printable


def main(words: Sequence[str] | None = None) -> int:
    """Runs a group of processes; `words` are the options of `torchrun`. Returns 1 where one of them failed."""
    options = parse_args(sys.argv[1:] if words is None else words)
    try:
        run(options)
    except ChildFailedError as failed:
        rank, message = first_failure(failed)
        stage = options.training_script_args[0]
        print(printable(f"megavoxel {stage}: error: process {rank}: {message}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
