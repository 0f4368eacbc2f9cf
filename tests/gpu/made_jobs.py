"""Stages that tests on GPUs run, in this process, on three made cases."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch

from helpers import store_case
from megavoxel.cli import main
from megavoxel.files import write_json
from megavoxel.planning.plan import Plan, save_plan
from megavoxel.training.patches import PatchDataset


class Failed(Exception):
    """A stage that ended with an error: what it said last."""


def stage(*words: object) -> str:
    """What a stage prints.

    Raises:
        Failed: it ends with an error.
    """
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main([str(word) for word in words])
    if code:
        raise Failed(told.getvalue().strip().splitlines()[-1])
    return told.getvalue()


def made(folder: Path, plan: Plan) -> Path:
    """A folder with a plan, three cases and their folds."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        store_case(folder / "cases", f"case{number}", seed=number)
    save_plan(folder / "plan.json", plan)
    split = {"training": ["case0", "case1"], "validation": ["case2"]}
    write_json(folder / "splits.json", {"folds": [split], "test": ["case2"]})
    return folder


def train(folder: Path, device: str, *, state: str | None = None) -> dict[str, torch.Tensor]:
    """The weights that training gives."""
    stage("train", *samples_of(folder), "--fold", 0, "--state", folder / (state or f"state-{device}"), "--output",
          folder / device, "--device", device)  # fmt: skip
    return torch.load(folder / device / "model.pt", weights_only=True)["weights"]


def samples_of(folder: Path) -> list[object]:
    """Options that name a plan and its cases."""
    return ["--plan", folder / "plan.json", "--preprocessed", folder / "cases", "--splits", folder / "splits.json"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextlib.contextmanager
def told_to_end(*, after_samples: int) -> Iterator[None]:
    """Has this process told to end by Slurm's early warning when so many samples were read."""
    read, count = PatchDataset.__getitem__, iter(range(1, 10**6))

    def counted(self: PatchDataset, number: int) -> object:
        if next(count) == after_samples:
            os.kill(os.getpid(), signal.SIGUSR1)
        return read(self, number)

    PatchDataset.__getitem__ = counted
    try:
        yield
    finally:
        PatchDataset.__getitem__ = read


def failure(work: Callable[[], object]) -> str:
    """What a stage says that fails."""
    try:
        work()
    except Failed as told:
        return str(told)
    return "it did not fail"


def predict(folder: Path, device: str, name: str, weights: list[Path]) -> np.ndarray:
    """The label map of a test case."""
    stage("predict", *samples_of(folder), "--split", "test", "--weights", *weights, "--output", folder / name,
          "--device", device)  # fmt: skip
    return np.asarray(nibabel.load(folder / name / "case2.nii.gz").dataobj)
