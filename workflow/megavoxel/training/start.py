"""Weights of a file that training begins with: which file it is for a fold, and what of it fits the network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from megavoxel.config.setting import StartFile
from megavoxel.network.donors import Donor, read_donor
from megavoxel.network.fitting import Fitted, fit
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan


def fitted_start(plan: Plan, path: Path) -> tuple[Donor, Fitted]:
    """The network in a file, and what a plan's network takes over from it.

    Args:
        plan: with a file as its `start`.
        path: the file of weights, for one fold.

    Raises:
        UserError: as `read_donor` and `fit`.
    """
    donor, where = read_donor(path), f"setting {plan.setting}: start"
    with torch.device("meta"):
        network = SegmentationNetwork(plan.network)
    return donor, fit(network.state_dict(), donor, plan.start.parts, where=where)


def require_fitting_start(plan: Plan, folds: Iterable[int | str], *, is_there: bool = True) -> None:
    """Refuses, while a study is planned, files of weights with which the training of some fold could not begin.

    Args:
        is_there: whether a file that is missing is refused as well.

    Raises:
        UserError: as `fitted_start`.
    """
    if isinstance(plan.start, StartFile):
        for path in dict.fromkeys(map(plan.start.of_fold, folds)):
            if is_there or path.is_file():
                fitted_start(plan, path)
