"""Seconds of planning: the dry run of a large study, and the plan of a study with the partitions of its networks."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import yaml

from benchmarks.made import call
from benchmarks.measure import REPOSITORY, Row, seconds_of, smaller_is_better
from megavoxel.datasets.cases import Case, Cases, save_cases
from megavoxel.files import write_json

BOUND_SECONDS, BOUND_PARTITIONS_SECONDS = 10.0, 300.0
REPEATS = 3
PARTITIONED = "zhu-2020-lamp-liver"
"""A study of 18 networks, each whole and cut for 2, 4 and 8 GPUs of two sizes."""


def run() -> list[Row]:
    """One row: the median seconds of `snakemake -n` for 12 settings, 5 folds and 360 cases, nothing made yet."""
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder))
        options = ["--snakefile", REPOSITORY / "Snakefile", "--directory", folder, "--configfile", study, "-n", "-q"]
        found = [seconds_of(lambda: call("snakemake", *options, folder=Path(folder))) for _ in range(REPEATS)]
    title = "dry run of 12 settings x 5 folds x 360 cases"
    return [smaller_is_better(title, "own bound", statistics.median(found), BOUND_SECONDS, "s")]


def partitions() -> list[Row]:
    """One row: seconds of `megavoxel estimate` on all cores for a study with pipelines."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["estimate", "--study", f"config/studies/{PARTITIONED}.yaml", "--output", f"{folder}/plan.tsv"]
        found = seconds_of(lambda: call("megavoxel", *words))
    title = f"plan of {PARTITIONED} with partitions"
    return [smaller_is_better(title, "own bound", found, BOUND_PARTITIONS_SECONDS, "s")]


def write_study(folder: Path) -> Path:
    """Writes a study file with ensembles of neighbours, and the case list and fingerprint that would exist by then."""
    settings = {f"setting-{number}": {"patch": [16, 32, 16 * (number + 1)]} for number in range(12)}
    ensembles = {
        f"pair-{number}": {"members": [f"setting-{number}", f"setting-{number + 1}"]} for number in range(0, 12, 2)
    }
    study = {
        "study": "large", "dataset": "phantom", "folds": 5, "settings": settings, "ensembles": ensembles, "shards": 12,
    }  # fmt: skip
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
