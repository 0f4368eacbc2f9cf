"""`manifest.json` of a classifier: with what a run was made, so that it can be made again."""

from __future__ import annotations

import platform
from typing import Any

import torch

import megavoxel
from megavoxel.containers.lock import running_image
from megavoxel.network.segmentation import parameter_count
from megavoxel.tasks.classification.loop import ClassifierFold
from megavoxel.tasks.classification.step import ClassifierRun
from megavoxel.training.manifest import code_commit, hardware, package_versions

RANDOM = "none: all weights began at random"


def build_manifest(run: ClassifierRun, fold: ClassifierFold, *, forecast_gib: float) -> dict[str, Any]:
    """Versions, seeds, images, shares, hardware and cost of a run.

    Args:
        run: a finished run.
        fold: what it was trained on.
        forecast_gib: forecast of the peak memory of a step.
    """
    plan = run.plan
    return {
        "study": plan.study,
        "setting": plan.setting,
        "fold": fold.number,
        "plan_hash": plan.hash,
        "run_key": fold.key(plan),
        "seed": plan.seed,
        "code": {"version": megavoxel.__version__, "commit": code_commit()},
        "container": running_image(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "published_weights": {"sha256": fold.weights_data} if fold.weights else RANDOM,
        "data": {
            "dataset": plan.dataset,
            "checksums_sha256": fold.data,
            "partition": plan.data_partition if plan.workers > 1 else "one worker",
            "shares": _shares(run, fold),
            "validation": [case.id for case in fold.validation],
        },
        "hardware": hardware(run.device),
        "device": str(run.device),
        "devices": run.group.size,
        "precision": {"name": run.precision.name, "reason": run.precision.reason},
        "threads": torch.get_num_threads(),
        "parameters": parameter_count(run.network),
        "epochs": run.epoch,
        "steps_per_epoch": fold.shares.steps_per_epoch(plan.batch),
        "seconds": sum(row["seconds"] for row in run.history),
        "peak_memory_mib": max(row["peak_memory_mib"] for row in run.history),
        "peak_memory": {**(run.peak_memory or {}), "forecast_gib": forecast_gib},
    }


def _shares(run: ClassifierRun, fold: ClassifierFold) -> list[list[str]]:
    """Ids of the training images of each worker; one list where they share all of them."""
    shares = fold.shares.shares if run.plan.data_partition == "private" else fold.shares.shares[:1]
    return [[fold.training[number].id for number in own] for own in shares]
