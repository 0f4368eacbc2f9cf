"""Snakemake on the workflow of the checkout, in another working directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from stage_server import programs

PHANTOM = {
    "name": "small-phantom",
    "source": {"phantom": {"training_cases": 4, "test_cases": 1, "shape": [16, 28, 28]}},
}
SMALL_STUDY = {
    "folds": 2,
    "defaults": {"patch": [8, 16, 16], "batch": 2, "network": {"base_features": 4, "levels": 3}},
    "settings": {"only": {}},
}
"""One setting, for runs to splits and fingerprint; without names of study and dataset."""


def snakemake(
    repository: Path, folder: Path, *arguments: str, program: Path | None = None
) -> subprocess.CompletedProcess:
    """Runs Snakemake on the checkout's workflow in another working directory; without a program, that of the server."""
    program = program or programs() / "snakemake"
    command = [str(program), "--snakefile", str(repository / "Snakefile"), "--directory", str(folder)]
    return subprocess.run(
        [*command, "--cores", "2", *arguments],
        capture_output=True, text=True, check=False, timeout=2700, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
