"""What benchmarks share: a row of the table, and times and peak memory of two ways of doing the same thing."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

from megavoxel.network.host_memory import peak_resident_bytes

COLUMNS = ("benchmark", "peer", "ours", "theirs", "ratio", "unit")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `benchmarks/latest.csv`."""

    benchmark: str
    peer: str
    """Who `theirs` is: a package with its version, or what the project asks of itself."""
    ours: float
    theirs: float
    ratio: float
    """Above 1: ours is better."""
    unit: str

    def plain(self) -> dict[str, Any]:
        """The row by column, rounded to four digits."""
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def smaller_is_better(benchmark: str, peer: str, ours: float, theirs: float, unit: str) -> Row:
    """A row of costs: seconds, bytes, errors."""
    return Row(benchmark=benchmark, peer=peer, ours=ours, theirs=theirs, ratio=theirs / ours, unit=unit)


def larger_is_better(benchmark: str, peer: str, ours: float, theirs: float, unit: str) -> Row:
    """A row of gains: throughput, accuracy."""
    return Row(benchmark=benchmark, peer=peer, ours=ours, theirs=theirs, ratio=ours / theirs, unit=unit)


def paired_seconds(ours: Callable[[], Any], theirs: Callable[[], Any], *, repeats: int) -> tuple[float, float]:
    """Median seconds of each, called in turns after one call of each that does not count.

    Other work on the machine then meets both alike.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for call, measured in zip((ours, theirs), seconds, strict=True):
            gc.collect()
            begin = time.perf_counter()
            call()
            if repeat:
                measured.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work` in a fresh process: its memory, threads and imports are its own.

    Raises:
        RuntimeError: the process failed; its own message is on the error stream.
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
