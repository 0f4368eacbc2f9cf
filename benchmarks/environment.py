"""Where benchmarks ran: the header of every table."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PEERS = ("torch", "monai", "nnunetv2", "batchgeneratorsv2", "scipy", "numpy", "snakemake")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> str:
    """Processor, cores and versions, in three lines."""
    features = ", ".join(name for name in CPU_FEATURES if name in _flags()) or "no vector extensions known"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("python", *PEERS))
    return f"processor: {_model()} ({features})\ncores: {len(os.sched_getaffinity(0))}\nversions: {versions}"


def peer(package: str) -> str:
    """A package with its version, for the column `peer`."""
    return f"{package} {_version(package)}"


def _version(package: str) -> str:
    if package == "python":
        return platform.python_version()
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _model() -> str:
    return _cpu_line("model name") or platform.machine()


def _flags() -> set[str]:
    return set(_cpu_line("flags").split())


def _cpu_line(key: str) -> str:
    """A value of the first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
