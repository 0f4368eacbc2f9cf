"""The networks of the stages that predict, `predict` and `time`; memory that runs out is explained."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megavoxel.distributed.group import local_device
from megavoxel.forecast.fit import advice_for_prediction
from megavoxel.forecast.out_of_memory import explained_out_of_memory
from megavoxel.inference.job import predictor_of_job
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.device import choose_device
from megavoxel.planning.plan import Plan


@contextmanager
def explained_predictor(
    plan: Plan, weights: Sequence[Path], stage: str, arguments: argparse.Namespace
) -> Iterator[CasePredictor | None]:
    """`predictor_of_job`, for as long as which an error of memory says what was foretold and what would help.

    Raises:
        UserError: memory ran out, or as `predictor_of_job` says.
    """

    def advice() -> str:
        return advice_for_prediction(plan, len(weights), choose_device(local_device(arguments.device)))

    with explained_out_of_memory(plan.setting, advice), predictor_of_job(plan, weights, stage, arguments) as predictor:
        yield predictor
