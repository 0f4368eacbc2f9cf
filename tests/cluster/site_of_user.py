"""A user's place on the cluster: a checkout of their own, a small study, and Snakemake as they start it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from slurm_cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
CHECKED_OUT = ("Snakefile", "workflow", "config", "profiles", "slurm", "envs")
BIN = Path(sys.executable).parent
DEVICE = {
    "kind": "gpu", "memory_gib": 4, "most_devices": 4, "devices_per_node": 2, "gpu_model": "pretended",
    "cpus_per_job": 1, "host_memory_mb": 2000, "runtime_minutes": 10,
}  # fmt: skip
DATASET = {
    "name": "small-phantom",
    "source": {"phantom": {"training_cases": 4, "test_cases": 1, "shape": [16, 28, 28]}},
}
TRAINING = {
    "epochs": 2, "iterations_per_epoch": 4, "validation_iterations": 1, "workers": 0, "precision": "float32",
    "checkpoint_minutes": 0,
}  # fmt: skip


def study(name: str, settings: dict, **training: object) -> dict:
    """A study of small phantoms with two folds."""
    defaults = {
        "patch": [8, 16, 16],
        "batch": 4,
        "network": {"base_features": 4, "levels": 3},
        "training": TRAINING | training,
    }
    return {
        "study": name,
        "dataset": "phantom.yaml",
        "hardware": "pretended",
        "folds": 2,
        "defaults": defaults,
        "settings": settings,
    }


def check_out(folder: Path, site: dict, device: dict | None = None) -> Path:
    """A checkout in `folder` with what a site adds to it: a device in config/hardware.yaml, and slurm/site.yaml."""
    for name in CHECKED_OUT:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name, **({"symlinks": True} if source.is_dir() else {}))
    hardware = folder / "config" / "hardware.yaml"
    devices = yaml.safe_load(hardware.read_text())
    devices["devices"]["pretended"] = DEVICE | (device or {})
    hardware.write_text(yaml.safe_dump(devices))
    (folder / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))
    (folder / "phantom.yaml").write_text(yaml.safe_dump(DATASET))
    return folder


def start_snakemake(cluster: Cluster, checkout: Path, definition: dict, *arguments: str) -> subprocess.Popen:
    """`snakemake --profile slurm` in a checkout; what it prints goes to NAME.log there."""
    file = checkout / f"{definition['study']}.yaml"
    file.write_text(yaml.safe_dump(definition, sort_keys=False))
    environment = os.environ | cluster.environment | {"OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{cluster.environment['PATH']}{os.pathsep}{BIN}"
    with (checkout / f"{definition['study']}.log").open("a") as log:
        return subprocess.Popen(
            [BIN / "snakemake", "--profile", "slurm", "--configfile", file.name, *arguments],
            cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def log_of(checkout: Path, definition: dict) -> str:
    """What Snakemake printed."""
    return (checkout / f"{definition['study']}.log").read_text()


def finish(process: subprocess.Popen, checkout: Path, definition: dict, *, minutes: float = 8) -> str:
    """Waits for Snakemake's success and returns what it printed."""
    try:
        status = process.wait(timeout=60 * minutes)
    finally:
        process.kill()
    text = log_of(checkout, definition)
    assert status == 0, text[-6000:]
    return text
