"""`manifest.json`: with what a run was made, so that it can be made again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import megavoxel
from megavoxel.config.records import to_plain
from megavoxel.containers.lock import running_image
from megavoxel.network.segmentation import parameter_count
from megavoxel.training.absent import cases_without_annotation, labels_never_seen
from megavoxel.training.loop import Fold
from megavoxel.training.run import Run

# Written by `snakemake images`, so that building images is no change of the code.
UNCHANGED = ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)containers/images.lock")
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "blosc2", "pandas", "snakemake")


def build_manifest(run: Run, fold: Fold, *, forecast_gib: float) -> dict[str, Any]:
    """Versions, seeds, checksums, hardware and cost of a run.

    Args:
        run: a finished run.
        fold: what it was trained on.
        forecast_gib: forecast of the peak memory that `training/memory.py` measures.
    """
    return {
        "study": run.plan.study,
        "setting": run.plan.setting,
        "fold": fold.number,
        "plan_hash": run.plan.hash,
        "run_key": fold.key(run.plan),
        "seed": run.plan.seed,
        "code": {"version": megavoxel.__version__, "commit": code_commit()},
        "container": running_image(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "data": {
            "dataset": run.plan.dataset,
            "checksums_sha256": fold.data,
            "start": {"setting": run.plan.start, "weights_sha256": fold.start_data} if run.plan.start else None,
            "training": list(fold.training),
            "validation": list(fold.validation),
            "labels_never_seen": labels_never_seen(run.plan, fold.preprocessed, fold.training),
            "cases_without_annotation": cases_without_annotation(run.plan, fold.training),
        },
        "hardware": hardware(run.device),
        "device": str(run.device),
        "devices": run.group.size,
        "parallel": to_plain(run.plan.parallel),
        "precision": {"name": run.precision.name, "reason": run.precision.reason},
        "threads": torch.get_num_threads(),
        "parameters": parameter_count(run.network),
        "epochs": run.epoch,
        "seconds": sum(row["seconds"] for row in run.history),
        "peak_memory_mib": max(row["peak_memory_mib"] for row in run.history),
        "peak_memory": {**(run.peak_memory or {}), "forecast_gib": forecast_gib},
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that shape results."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor, its cores, and the GPU if one was used; no host name."""
    facts: dict[str, Any] = {"processor": _processor(), "cores": len(os.sched_getaffinity(0))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


@cache
def code_commit() -> str | None:
    """The commit of this package's source tree; see `commit_of`."""
    return commit_of(Path(megavoxel.__file__).parent)


def commit_of(folder: Path) -> str | None:
    """The commit that a folder is of, with `+changes` where it is not as committed; None outside of a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, *UNCHANGED) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
