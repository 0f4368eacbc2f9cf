"""Peak memory of a training step with an expanded patch, over that of a U-Net whose patch is the expanded one.

The settings are those of config/studies/wang-2022-meunet-microct.yaml. The sizes of the paper are forecast on fake
tensors; a smaller one, with the same network, is forecast and measured as well: the same step on real tensors, whose
storages are counted from the first to the last. `theirs` is the U-Net, and a ratio of 2.22 is the bound of 0.45.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.made import plan_of_study
from benchmarks.measure import Row, in_process, smaller_is_better
from megavoxel.config.setting import Parallel
from megavoxel.forecast.step import new_run, training_step
from megavoxel.planning.plan import Plan
from megavoxel.training.memory import tracked_step

STUDY = "wang-2022-meunet-microct"
PAIRS = (("unet-160", "meunet-160"), ("unet-240", "meunet-240"), ("unet-half-240", "meunet-half-240"))
"""A U-Net and a meU-net whose expanded patch is that of the U-Net."""
MEASURED = (((64,) * 3, (96,) * 3, 4), ((96,) * 3, (144,) * 3, 1))
"""Patch, expanded patch and batch of steps that fit a workstation."""
PRECISION = "bfloat16"
GIB = 2**30


def run() -> list[Row]:
    """One row per size of the paper, and two per measured one."""
    rows = []
    for plain, expanded in PAIRS:
        plans = plan_of(plain), plan_of(expanded)
        rows.append(row("forecast", *plans, *map(forecast, plans)))
    for patch, larger, batch in MEASURED:
        plans = smaller("unet-240", larger, None, batch), smaller("meunet-240", patch, larger, batch)
        rows.append(row("forecast", *plans, *map(forecast, plans)))
        rows.append(row("measured", *plans, *(in_process(measured, plan) for plan in plans)))
    return rows


def plan_of(setting: str) -> Plan:
    """The plan of a setting of the study, on one device and without checkpointing."""
    return replace(plan_of_study(STUDY, setting), parallel=Parallel())


def smaller(setting: str, patch: tuple[int, ...], expanded: tuple[int, ...] | None, batch: int) -> Plan:
    """The plan of a setting with another patch and batch."""
    return replace(plan_of(setting), patch=patch, expanded_patch=expanded, batch=batch)


def forecast(plan: Plan) -> int:
    """Peak bytes of a step on fake tensors."""
    return training_step(plan, samples=plan.batch, parallel=plan.parallel, precision=PRECISION).peak_bytes


def measured(plan: Plan) -> int:
    """Peak bytes of a step on real tensors."""
    run = new_run(plan, PRECISION)
    image = torch.randn(plan.batch, plan.network.input_channels, *plan.sampled_patch)
    target = torch.randint(0, plan.network.classes, (plan.batch, *plan.sampled_patch))
    return tracked_step(run, image, target)[1]


def row(how: str, plain: Plan, expanded: Plan, theirs: int, ours: int) -> Row:
    """A row of the table; the share of the U-Net's memory is printed."""
    size = " x ".join(map(str, plain.patch))
    patch = f"patch {expanded.patch[0]}³ expanded to {size} x {plain.batch}"
    title = f"{how} peak memory of a step, {patch}, {PRECISION}"
    print(f"{title}: {ours / theirs:.2f} of the U-Net's", flush=True)
    return smaller_is_better(title, "U-Net on the expanded patch", ours / GIB, theirs / GIB, "GiB")
