"""Processes that pretend to have GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parents[1]


def environment(cache: Path, **variables: object) -> dict[str, str]:
    """The environment of a process that pretends; `variables` without `REHEARSAL_` are those of `pretended_cuda`."""
    paths = [HERE / "site", HERE, HERE.parent, TESTS, TESTS.parent / "workflow", os.environ.get("PYTHONPATH")]
    own = {f"REHEARSAL_{name}": str(value) for name, value in variables.items()}
    places = {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path), "REHEARSAL_CACHE": str(cache)}
    without_slurm = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return without_slurm | {"REHEARSAL": "1", "OMP_NUM_THREADS": "1"} | places | own


def told_by(script: str, folder: Path, cache: Path, *names: str, **variables: object) -> dict[str, dict]:
    """What a script of this folder prints of each thing that it does, by name."""
    done = subprocess.run(
        [sys.executable, HERE / script, folder, *names],
        env=environment(cache, **variables), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    return {line["name"]: line for line in lines}
