"""Snakemake on the workflow of the checkout, in another working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BINARIES = Path(sys.executable).parent
PHANTOM = {
    "name": "small-phantom",
    "source": {"phantom": {"training_cases": 4, "test_cases": 1, "shape": [16, 28, 28]}},
}


def snakemake(
    repository: Path, folder: Path, *arguments: str, programs: Path = BINARIES
) -> subprocess.CompletedProcess:
    """Runs the `snakemake` of a folder of programs, with the `megavoxel` beside it."""
    command = [str(programs / "snakemake"), "--snakefile", str(repository / "Snakefile"), "--directory", str(folder)]
    return subprocess.run(
        [*command, "--cores", "2", *arguments],
        capture_output=True, text=True, check=False, timeout=2700, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
