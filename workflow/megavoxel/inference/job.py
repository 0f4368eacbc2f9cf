"""The networks of a prediction's job: in this process, or one stage of them in each of several."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from megavoxel.distributed.group import is_member, joined_group, local_device
from megavoxel.distributed.launch import start_group
from megavoxel.errors import UserError
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.staged import dismiss, serve
from megavoxel.network.device import choose_device, set_threads
from megavoxel.network.host_memory import return_large_tensors
from megavoxel.planning.plan import Plan
from megavoxel.planning.window import predicting_devices

PATIENCE = timedelta(hours=2)
"""How long the later stages wait for a window, while the first process reads and writes images."""


@contextmanager
def predictor_of_job(
    plan: Plan, weights: Sequence[Path], stage: str, arguments: argparse.Namespace
) -> Iterator[CasePredictor | None]:
    """The predictor; None in processes that hold a later stage, which have served it when they get here.

    A plan whose windows go through a pipeline has this process replaced by `torchrun` first.

    Args:
        plan: the setting.
        weights: `model.pt` of one or several folds.
        stage: name of the subcommand.
        arguments: its options, with `device` and `threads`.

    Raises:
        UserError: there are fewer devices than stages, or the weights are missing, damaged or of another plan.
    """
    count = predicting_devices(plan)
    if count > 1 and not is_member():
        start_group(stage, arguments, processes=count, setting=plan.setting)
    set_threads(arguments.threads)
    device = choose_device(local_device(arguments.device))
    if device.type == "cpu":
        return_large_tensors()
    if count == 1:
        yield CasePredictor(plan, weights, device)
        return
    with joined_group(device, PATIENCE) as group:
        if group.size != count:
            raise UserError(
                f"setting {plan.setting}: the plan predicts through a pipeline of {count} processes, {group.size} were "
                f"started; start 'megavoxel {stage}' once, it starts the others itself"
            )
        predictor = CasePredictor(plan, weights, device, group)
        if not group.leads:
            serve(predictor.networks, group)
            yield None
            return
        yield predictor
        dismiss(group)
