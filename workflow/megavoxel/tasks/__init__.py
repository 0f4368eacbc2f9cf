"""Tasks: what the stages do differently for segmentation and for classification, as two records of functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from megavoxel.errors import UserError
from megavoxel.files import read_json


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the stages ask of a task; each function is imported when it is called, so that only training loads PyTorch.

    Where a function takes `arguments`, they are those of the stage's command line.
    """

    name: str
    """`segmentation` or `classification`, as a study file has it."""
    unit: str
    """What one sample of a dataset is called: `case` or `image`."""
    labels_scans: bool
    """Whether its networks give label maps of new scans, so that they can be exported."""
    check: Callable[..., Any]
    """Looks at every case: of the dataset's folder, its `Dataset` and a number of processes; gives the cases, a list of
    `Finding`, and lines about a sound dataset."""
    split: Callable[..., Any]
    """Folds of the cases in a file: of path, number of folds, seed and a file of ready-made folds or None."""
    plan: Callable[..., Any]
    """The plan of a setting and what is to be printed of it: of arguments. Writes plan.json."""
    data: Callable[..., Any]
    """The plan of a run, and the `RunData` that it trains on: of arguments."""
    check_fits: Callable[..., Any]
    """Refuses a run that does not fit the device at hand: of plan, data, device and what the hardware file says of it;
    gives a `Foretold`."""
    train: Callable[..., Any]
    """Trains: of plan, data, folder of states, device, group and lock; gives the `Run`."""
    predict: Callable[..., None]
    """Predicts the cases of a study, or images, that arguments name."""
    score: Callable[..., None]
    """Scores the predictions of a part of a study: of arguments."""
    forecast: Callable[..., None]
    """Prints and writes the forecast of a study: of arguments, study, device and dataset."""


@dataclass(frozen=True)
class ImportedLate:
    """A function that imports another one when it is called, and calls it."""

    module: str
    """Module of the other function, below `megavoxel`."""
    name: str
    """Name of the other function."""

    @property
    def function(self) -> Callable[..., Any]:
        """The other function; its module is imported."""
        return getattr(import_module(f"megavoxel.{self.module}"), self.name)

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        """What the other function returns."""
        return self.function(*arguments, **keys)


SEGMENTATION = Task(
    name="segmentation",
    unit="case",
    labels_scans=True,
    check=ImportedLate("tasks.segmentation.check", "check"),
    split=ImportedLate("tasks.segmentation.plan", "split"),
    plan=ImportedLate("tasks.segmentation.plan", "plan"),
    data=ImportedLate("tasks.segmentation.data", "data_of"),
    check_fits=ImportedLate("tasks.segmentation.forecast", "check_fits_here"),
    train=ImportedLate("tasks.segmentation.training", "train"),
    predict=ImportedLate("tasks.segmentation.predict", "predict"),
    score=ImportedLate("tasks.segmentation.score", "score"),
    forecast=ImportedLate("tasks.segmentation.forecast", "forecast"),
)
CLASSIFICATION = Task(
    name="classification",
    unit="image",
    labels_scans=False,
    check=ImportedLate("tasks.classification.check", "check"),
    split=ImportedLate("tasks.classification.splits", "split"),
    plan=ImportedLate("tasks.classification.plan", "plan"),
    data=ImportedLate("tasks.classification.data", "data_of"),
    check_fits=ImportedLate("tasks.classification.forecast", "check_fits_here"),
    train=ImportedLate("tasks.classification.training", "train"),
    predict=ImportedLate("tasks.classification.predict", "predict"),
    score=ImportedLate("tasks.classification.scores", "score"),
    forecast=ImportedLate("tasks.classification.forecast", "forecast"),
)
TASKS = {task.name: task for task in (SEGMENTATION, CLASSIFICATION)}


def task_of(path: Path, *, what: str) -> Task:
    """The task that a `cases.json` or `plan.json` is of.

    Raises:
        UserError: the file is missing, no JSON, or names a task that there is not.
    """
    content = read_json(path, what=what)
    name = content.get("task", SEGMENTATION.name) if isinstance(content, dict) else SEGMENTATION.name
    if name not in TASKS:
        raise UserError(f"{path}: task: found {name!r}, allowed: {', '.join(TASKS)}")
    return TASKS[name]
