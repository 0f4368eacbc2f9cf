"""Forecasts of a segmentation study, and of a run on the device at hand."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch

from megavoxel.config.dataset import Dataset
from megavoxel.config.hardware import Device
from megavoxel.config.study import Study
from megavoxel.config.study_file import with_memory
from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.memory import Foretold, advice_for_training, check_fits, device_at_hand
from megavoxel.forecast.setting import counted_gib, step_costs
from megavoxel.forecast.step import gib
from megavoxel.forecast.table import (
    BLIND_SPOTS,
    WHAT_IT_LEAVES_OUT,
    describe,
    partition_table,
    plan_study,
    save_table,
    shown,
    table,
)
from megavoxel.network.device import choose_precision
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.fingerprint import load_fingerprint
from megavoxel.planning.plan import Plan
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.training.run import Run


def forecast(arguments: argparse.Namespace, study: Study, device: Device, dataset: Dataset) -> None:
    """Prints the forecast of a study and writes it where `--output` says.

    Raises:
        UserError: cases are given without a fingerprint, or the other way round; the dataset file declares too little.
    """
    if (arguments.cases is None) != (arguments.fingerprint is None):
        raise UserError("--cases and --fingerprint: give both or neither")
    if arguments.cases is None:
        cases, fingerprint = declared_dataset(dataset)
    else:
        cases, fingerprint = load_cases(arguments.cases), load_fingerprint(arguments.fingerprint)
    study = with_memory(study, device.memory_gib)
    planned = plan_study(study, cases, fingerprint, device, processes=arguments.processes)
    rows = table(planned)
    cuts = partition_table([partition for setting in planned for partition in setting.partitions])
    if arguments.output is not None:
        save_table(arguments.output, rows)
        if study.partitions:
            save_table(arguments.output.with_name("partitions.tsv"), cuts)
    memory = gib(device.limit_gib) if device.limit_gib else "no memory stated"
    print(f"{study.name} on {device.name} ({memory}); {len(cases.of_split('training'))} training cases")
    print(shown(rows))
    if arguments.explain:
        print("\n".join(map(describe, planned)))
    if study.partitions:
        print("pipelines: tensors of each stage in GiB, fullest over mean, peak with overheads, memories that will do")
        print(cuts.drop(columns="first_blocks").to_string(index=False))
    print(BLIND_SPOTS if arguments.explain else WHAT_IT_LEAVES_OUT)


def check_fits_here(plan: Plan, data: VolumeData, device: torch.device, described: Device | None) -> Foretold:
    """Holds training, in the precision that it will choose, against the device at hand; see `check_fits`.

    Args:
        described: what the hardware file says of it; None: it has the overheads of an uncalibrated one.
    """
    found = device_at_hand(device, plan.parallel.devices, described=described)
    training = replace(plan.training, precision=choose_precision(plan, device).name)
    workload = Workload(training_cases=len(data.training) + len(data.validation), folds=data.folds)
    forecast = check_fits(replace(plan, training=training), found, workload)
    return Foretold(advice=lambda: advice_for_training(plan, forecast), peak_gib=partial(forecast_gib, device=found))


def forecast_gib(run: Run, device: Device | None = None) -> float:
    """Forecast of the peak memory of a run as PyTorch counts it, in the precision that the run took.

    Args:
        device: that it ran on; None: tensors alone are counted.
    """
    plan = run.plan
    costs = [cost for phase in plan.by_phase() for cost in step_costs(phase, plan.parallel, run.precision.name)]
    return max(counted_gib(cost, device) for cost in costs)
