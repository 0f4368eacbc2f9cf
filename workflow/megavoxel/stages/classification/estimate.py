"""The forecast of a classification study."""

from __future__ import annotations

import argparse

from megavoxel.config.classification import ClassificationStudy
from megavoxel.config.dataset import Dataset
from megavoxel.config.hardware import Device
from megavoxel.errors import UserError


def run_estimate(arguments: argparse.Namespace, study: ClassificationStudy, device: Device, dataset: Dataset) -> None:
    """Prints the table and writes it."""
    from megavoxel.forecast.step import gib
    from megavoxel.tasks.classification.forecast import BLIND_SPOTS, forecast_study, save_table

    if dataset.classification is None:
        raise UserError(f"{study.name}: dataset {dataset.name} has no 'classification' in its file, the study needs it")
    rows = forecast_study(study, dataset.classification.classes, device, processes=arguments.processes)
    if arguments.output is not None:
        save_table(arguments.output, rows)
    memory = gib(device.limit_gib) if device.limit_gib else "no memory stated"
    print(f"{study.name} on {device.name} ({memory}); {dataset.classification.class_count} classes")
    print(rows.to_string(index=False, na_rep=""))
    print(BLIND_SPOTS)
