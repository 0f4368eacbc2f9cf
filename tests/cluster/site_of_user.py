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
CHECKED_OUT = (
    "Snakefile", "workflow", "config", "profiles", "slurm", "envs", "containers",
    "requirements.lock", "requirements-hashed.lock", "pyproject.toml", "README.md", "LICENSE",
)  # fmt: skip
# What a user made in the checkout that these tests run from.
NOT_CHECKED_OUT = shutil.ignore_patterns("images", "wheels", "site.yaml", "__pycache__")
BIN = Path(sys.executable).parent
DEVICE = {
    "kind": "gpu", "memory_gib": 4, "most_devices": 4, "devices_per_node": 2, "gpu_model": "pretended",
    "cpus_per_job": 1, "runtime_minutes": 10,
}  # fmt: skip
DATASET = {
    "name": "small-phantom",
    "source": {"phantom": {"training_cases": 4, "test_cases": 1, "shape": [16, 28, 28]}},
}
TRAINING = {
    "epochs": 2, "iterations_per_epoch": 4, "validation_iterations": 1, "workers": 0, "precision": "float32",
    "checkpoint_minutes": 0,
}  # fmt: skip


def study(name: str, settings: dict, *, hardware: str = "pretended", **training: object) -> dict:
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
        "hardware": hardware,
        "device": "cpu",  # the GPUs that these jobs are granted are pretended
        "folds": 2,
        "defaults": defaults,
        "settings": settings,
    }


def check_out(folder: Path, site: dict) -> Path:
    """A checkout in `folder` with what a site adds to it: devices in config/hardware.yaml, and slurm/site.yaml."""
    for name in CHECKED_OUT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=NOT_CHECKED_OUT)
        else:
            shutil.copy(source, folder / name)
    hardware = folder / "config" / "hardware.yaml"
    devices = yaml.safe_load(hardware.read_text())
    devices["devices"]["pretended"] = DEVICE
    hardware.write_text(yaml.safe_dump(devices))
    take_site(folder, site)
    (folder / "phantom.yaml").write_text(yaml.safe_dump(DATASET))
    return folder


def take_site(checkout: Path, site: dict) -> None:
    """Lays a site's file over the cluster profile."""
    (checkout / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))


def start_snakemake(
    cluster: Cluster,
    checkout: Path,
    definition: dict,
    *arguments: str,
    name: str | None = None,
    environment: dict[str, str] | None = None,
    umask: int = -1,
) -> subprocess.Popen:
    """`snakemake --profile slurm` in a checkout; what it prints goes to NAME.log there, by default the study's name."""
    name = name or definition["study"]
    file = checkout / f"{name}.yaml"
    file.write_text(yaml.safe_dump(definition, sort_keys=False))
    places = [cluster.environment["PATH"], (environment or {}).get("PATH"), str(BIN)]
    environment = os.environ | (environment or {}) | cluster.environment | {"OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join(filter(None, places))
    with (checkout / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [BIN / "snakemake", *arguments, "--profile", "slurm", "--configfile", file.name],
            cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            umask=umask,
        )  # fmt: skip


def finish(process: subprocess.Popen, log: Path, *, minutes: float = 20) -> str:
    """Waits for Snakemake's success and returns what it printed to `log`."""
    try:
        status = process.wait(timeout=60 * minutes)
    finally:
        process.kill()
    text = log.read_text()
    assert status == 0, text[-6000:]
    return text
