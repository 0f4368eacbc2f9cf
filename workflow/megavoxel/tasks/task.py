"""The record of functions that makes up a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


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
