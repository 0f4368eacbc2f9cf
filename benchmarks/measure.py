"""Rows of measurements, times and peak memory of two ways of doing the same thing, and a description of the machine."""

from __future__ import annotations

import csv
import datetime
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from megavoxel.network.host_memory import peak_resident_bytes

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
"""Measurements as CSV; README.md there explains them."""
COLUMNS = ("benchmark", "peer", "ours", "theirs", "ratio", "unit", "date", "machine", "commit", "note")
PACKAGES = ("torch", "monai", "nnunetv2", "batchgeneratorsv2", "scipy", "numpy", "snakemake")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, beside what it is compared with."""

    benchmark: str
    """The measured quantity and its conditions."""
    peer: str
    """The source of `theirs`: a package with its version, or `own bound`, which the project sets itself."""
    ours: float
    theirs: float
    ratio: float
    """Above 1: ours is better."""
    unit: str
    """Unit of `ours` and `theirs`."""

    def plain(self) -> dict[str, Any]:
        """The row by column, rounded to four digits."""
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def smaller_is_better(benchmark: str, peer: str, ours: float, theirs: float, unit: str) -> Row:
    """A row of a cost: seconds, bytes, an error."""
    return Row(benchmark=benchmark, peer=peer, ours=ours, theirs=theirs, ratio=theirs / ours, unit=unit)


def larger_is_better(benchmark: str, peer: str, ours: float, theirs: float, unit: str) -> Row:
    """A row of a gain: throughput, accuracy."""
    return Row(benchmark=benchmark, peer=peer, ours=ours, theirs=theirs, ratio=ours / theirs, unit=unit)


def paired_seconds(ours: Callable[[], Any], theirs: Callable[[], Any], *, repeats: int) -> tuple[float, float]:
    """Median seconds of each, called in turns, so that other work on the machine slows both alike.

    The first call of each is not counted.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for call, measured in zip((ours, theirs), seconds, strict=True):
            gc.collect()
            found = seconds_of(call)
            if repeat:
                measured.append(found)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work` in a fresh process, which has memory, threads and imports of its own.

    Raises:
        RuntimeError: the process failed; its message is on standard error.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{work.__qualname__} ended with exit status {process.exitcode}") from None
    process.join()
    return result


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB."""
    return peak_resident_bytes() / 2**20


def _send(sender, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(work(*arguments))
    sender.close()


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> None:
    """Writes rows to a CSV file, in place of its older rows with the same values in the columns `key`."""
    older = []
    if path.is_file():
        with path.open(newline="") as file:
            older = list(csv.DictReader(file))
    measured = {tuple(str(row[column]) for column in key) for row in rows}
    kept = [row for row in older if tuple(row[column] for column in key) not in measured]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def describe() -> str:
    """Processor, cores and versions, in three lines."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("python", *PACKAGES))
    return f"processor: {_model()} ({_features()})\ncores: {_cores()}\nversions: {versions}"


def machine() -> str:
    """Cores and processor, for the column `machine`."""
    return f"{_cores()} cores of {_model()} ({_features()})"


def today() -> str:
    """The day in UTC, for the column `date`."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def commit() -> str:
    """The commit of the checkout, seven digits, for the column `commit`; empty without git."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short=7", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _model() -> str:
    return _cpu_line("model name") or platform.machine()


def _features() -> str:
    flags = _cpu_line("flags").split()
    return ", ".join(name for name in CPU_FEATURES if name in flags) or "no vector extensions known"


def _cpu_line(key: str) -> str:
    """A value of the first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
