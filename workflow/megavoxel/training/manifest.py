"""`manifest.json`: with what a run was made, so that it can be made again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import torch

import megavoxel
from megavoxel.containers.lock import running_image
from megavoxel.files import atomic_path, write_json
from megavoxel.network.segmentation import parameter_count
from megavoxel.network.weights import save_weights
from megavoxel.training.run import Run, RunData

# Written by `snakemake images`, so that building images is no change of the code.
UNCHANGED = ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)containers/*.lock")
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "blosc2", "pandas", "snakemake")


def write_outputs(folder: Path, run: Run, data: RunData, *, forecast_gib: float) -> None:
    """Writes history.csv, manifest.json and, last, model.pt of a finished run; arguments as of `build_manifest`."""
    with atomic_path(folder / "history.csv") as partial:
        pandas.DataFrame(run.history).to_csv(partial, index=False)
    write_json(folder / "manifest.json", build_manifest(run, data, forecast_gib=forecast_gib))
    save_weights(folder / "model.pt", run.network, plan_hash=run.plan.hash, precision=run.precision.name)


def build_manifest(run: Run, data: RunData, *, forecast_gib: float) -> dict[str, Any]:
    """Versions, seeds, checksums, hardware and cost of a run, and the date (UTC) on which its files were `written`.

    Args:
        forecast_gib: forecast of the peak memory that `training/memory.py` measures.
    """
    return {
        "study": run.plan.study,
        "setting": run.plan.setting,
        "fold": data.fold,
        "plan_hash": run.plan.hash,
        "run_key": data.key(run.plan),
        "seed": run.plan.seed,
        "written": datetime.now(UTC).date().isoformat(),
        "code": {"version": megavoxel.__version__, "commit": code_commit()},
        "container": running_image(),
        "versions": {"python": platform.python_version(), **package_versions()},
        **data.facts(run),
        "hardware": hardware(run.device),
        "device": str(run.device),
        "devices": run.group.size,
        "precision": {"name": run.precision.name, "reason": run.precision.reason},
        "kernels": run.kernels.plain(),
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
