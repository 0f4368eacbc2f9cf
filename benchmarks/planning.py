"""Seconds that `snakemake -n` takes to plan a large study: 12 settings, 5 folds, 360 cases, nothing made yet."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.measure import Row, smaller_is_better
from megavoxel.datasets.cases import Case, Cases, save_cases
from megavoxel.files import write_json

REPOSITORY = Path(__file__).parents[1]
BOUND_SECONDS = 10.0
REPEATS = 3


def run() -> list[Row]:
    """One row: the median of a few dry runs beside the bound that the project sets itself."""
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder))
        seconds = statistics.median(dry_run_seconds(Path(folder), study) for _ in range(REPEATS))
    title = "dry run of 12 settings x 5 folds x 360 cases"
    return [smaller_is_better(title, "own bound", seconds, BOUND_SECONDS, "s")]


def write_study(folder: Path) -> Path:
    """A study file with ensembles of neighbours, and the case list and fingerprint that would exist by then."""
    settings = {f"setting-{number}": {"patch": [16, 32, 16 * (number + 1)]} for number in range(12)}
    ensembles = {
        f"pair-{number}": {"members": [f"setting-{number}", f"setting-{number + 1}"]} for number in range(0, 12, 2)
    }
    study = {
        "study": "large",
        "dataset": "phantom",
        "folds": 5,
        "settings": settings,
        "ensembles": ensembles,
        "shards": 12,
    }
    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump(study))
    cases = tuple(
        Case(id=f"case_{n:03}", images=(f"imagesTr/{n}.nii.gz",), label=f"labelsTr/{n}.nii.gz") for n in range(360)
    )
    save_cases(
        folder / "results/large/cases.json",
        Cases(
            dataset="phantom", root="data/phantom", channels=("CT",), labels={"liver": 1},
            nsd_tolerance_mm={"liver": 2.0}, cases=cases,
        ),
    )  # fmt: skip
    write_json(folder / "results/large/fingerprint.json", {})
    return path


def dry_run_seconds(folder: Path, study: Path) -> float:
    """Wall time of one dry run in an otherwise empty working directory."""
    command = [
        Path(sys.executable).with_name("snakemake"),
        "--snakefile",
        REPOSITORY / "Snakefile",
        "--directory",
        folder,
    ]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--configfile", study, "-n", "-q"], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(done.stderr)
    return seconds
