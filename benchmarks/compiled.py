"""A training step on this processor with norms compiled by `torch.compile`, against the plain one.

Seconds are those of steps in turns, after both have been warmed up; what the first step takes longer is a row of its
own, against a thousand plain steps. Memory is how far the peak of a fresh process rises over four steps, compiling
included.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.made import made_plan
from benchmarks.measure import Row, in_process, paired_seconds, peak_mib, smaller_is_better
from megavoxel.config.training import Training
from megavoxel.forecast.step import new_run
from megavoxel.network.host_memory import keep_freed_memory
from megavoxel.training.step import train_step

PATCH, BATCH, FEATURES = (40, 56, 40), 4, (32, 64, 128)
REPEATS = 5
PEER = "the plain step"


def run() -> list[Row]:
    """Rows for seconds, memory and the time of compiling, in float32 and bfloat16."""
    rows = []
    for precision in ("float32", "bfloat16"):
        title = f"compiled norms, {' x '.join(map(str, PATCH))} x {BATCH}, 3 levels, 32 features, {precision}"
        compiling, compiled, plain = in_process(seconds, precision)
        rows.append(smaller_is_better(f"{title}, seconds", PEER, compiled, plain, "s"))
        rows.append(smaller_is_better(f"{title}, compiling", "1000 plain steps", compiling, 1000 * plain, "s"))
        memory = [in_process(memory_of_steps, precision, is_compiled) for is_compiled in (True, False)]
        rows.append(smaller_is_better(f"{title}, peak memory", PEER, *memory, "MiB"))
    return rows


def stepper(precision: str, *, is_compiled: bool) -> Callable[[], object]:
    """A function that takes a step."""
    training, labels = Training(compile=is_compiled), {"organ": 1, "lesion": 2}
    plan = made_plan("compiled", patch=PATCH, labels=labels, features=FEATURES, batch=BATCH, training=training)
    run = new_run(plan, precision)
    run.network.to(memory_format=torch.channels_last_3d).train()
    image, target = torch.randn(BATCH, 1, *PATCH), torch.randint(0, plan.network.classes, (BATCH, *PATCH))
    return lambda: train_step(run, image, target)


def seconds(precision: str) -> tuple[float, float, float]:
    """What the first compiled step takes longer, and the seconds of later ones: compiled, plain."""
    keep_freed_memory()
    compiled, plain = (stepper(precision, is_compiled=way) for way in (True, False))
    begin = time.perf_counter()
    compiled()
    first = time.perf_counter() - begin
    later = paired_seconds(compiled, plain, repeats=REPEATS)
    return first - later[0], *later


def memory_of_steps(precision: str, is_compiled: bool) -> float:
    """MiB that a process grows by over four steps."""
    step, before = stepper(precision, is_compiled=is_compiled), peak_mib()
    for _ in range(4):
        step()
    return peak_mib() - before
