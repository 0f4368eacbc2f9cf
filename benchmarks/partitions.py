"""Seconds that the plan of a study with pipelines takes, the partitions of all its networks included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, smaller_is_better

REPOSITORY = Path(__file__).parents[1]
STUDY = "zhu-2020-lamp-liver"
BOUND_SECONDS = 300.0


def run() -> list[Row]:
    """One row: 18 networks, each whole and cut for 2, 4 and 8 GPUs of two sizes, beside the project's own bound."""
    title = f"plan of {STUDY} with partitions"
    return [smaller_is_better(title, "own bound", planning_seconds(STUDY), BOUND_SECONDS, "s")]


def planning_seconds(study: str) -> float:
    """Wall time of `megavoxel estimate` on all cores."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "megavoxel", "estimate", "--study", f"config/studies/{study}.yaml"]
        begin = time.perf_counter()
        subprocess.run([*command, "--output", f"{folder}/plan.tsv"], cwd=REPOSITORY, check=True, capture_output=True)
        return time.perf_counter() - begin
