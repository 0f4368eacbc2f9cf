"""A dataset file that `megavoxel init` writes in the working directory, and the cases that follow from it."""

from __future__ import annotations

from pathlib import Path

from megavoxel.cli import main
from megavoxel.datasets.cases import Cases, load_cases


def init(folder: Path, *options: str) -> int:
    return main(["init", str(folder), "--name", "new", "--processes", "1", *options])


def checked(work: Path) -> Cases:
    """The cases that `fetch` and `check` make of the dataset file as it was written."""
    dataset = ["--dataset", "config/datasets/new.yaml"]
    assert main(["fetch", *dataset, "--output", "data/new"]) == 0
    assert main(["check", *dataset, "--data", "data/new", "--checks", "checks.csv", "--output", "cases.json"]) == 0
    return load_cases(work / "cases.json")
