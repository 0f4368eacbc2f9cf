"""Tiles of a patch: memory of the fullest process, what it sends, throughput, and the largest volume that trains.

The network is nnU-Net's at full width, with four classes and batch 1. Its memory is forecast on fake tensors, and at
64³ measured: what a process holds at its peak beyond what it held with all libraries loaded. Throughput is that of two
processes with one thread each beside one process with two, in turns (`benchmarks/pipeline_worker.py`).
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import pandas

from benchmarks.made import made_plan
from benchmarks.measure import REPOSITORY, RESULTS, Row, commit, larger_is_better, machine, smaller_is_better, today
from benchmarks.pipeline import at_work
from megavoxel.config.hardware import Device, load_device
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Training
from megavoxel.forecast.setting import peak_gib
from megavoxel.forecast.step import training_step
from megavoxel.planning.plan import Plan
from megavoxel.planning.topology import build_topology

MIB, GIB = 2**20, 2**30
SPACES = ((2, 1, 1), (2, 2, 1), (2, 2, 2))
FORECAST = ((128, "float32", "none"), (128, "bfloat16", "norms"), (256, "bfloat16", "none"), (256, "bfloat16", "norms"))
"""Side of the patch, precision and checkpointing."""
LEVELS = 6
"""Levels of the networks whose memory is compared."""
TIMED = (64, 128, 128)
MEASURED = 96
DEVICES = ("a10", "h200")
"""Devices whose largest volume is looked for."""
LARGEST = 1536
"""Voxels along a side beyond which nothing is looked for."""
NOTE = (
    "nnU-Net's network at full width for a cube of cubic voxels, four classes, batch 1, bfloat16, SGD; forecast of the "
    "real step with overhead and workspace of config/hardware.yaml, of which the workspace is assumed; ours with "
    "checkpointing of blocks, nnU-Net's without, with our loss"
)
STEP = 64
"""Voxels by which sides are told apart."""


def run() -> list[Row]:
    """Rows of memory, bytes and throughput; writes the table of the largest volumes."""
    rows = [*forecast_rows(), *measured_rows(), *throughput_rows()]
    origin = {"date": today(), "machine": machine(), "commit": commit(), "note": NOTE}
    largest_volumes().assign(**origin).to_csv(RESULTS / "studies" / "largest-volume.csv", index=False)
    return rows


def unet(patch: tuple[int, ...], *, levels: int | None = None, precision: str = "float32") -> Plan:
    """A setting with nnU-Net's network for a patch of cubic voxels, batch 1; `levels` None: as many as nnU-Net has."""
    levels = levels or build_topology((1.0, 1.0, 1.0), patch).levels
    features = tuple(min(320, 32 * 2**level) for level in range(levels))
    labels = {f"label{number}": number for number in range(1, 4)}
    plan = made_plan("tiles", patch=patch, labels=labels, features=features, batch=1)
    return replace(plan, training=Training(precision=precision, batch_dice=False))


def peak_and_sent(plan: Plan, parallel: Parallel, precision: str) -> tuple[float, float]:
    """Tensors of a step at their peak in GiB, and bytes sent in MiB, of the process with the largest tile."""
    cost = training_step(plan, samples=1, parallel=parallel, precision=precision)
    return cost.peak_bytes / GIB, cost.exchanged_bytes / MIB


def forecast_rows() -> list[Row]:
    """Everything that the fullest process holds, weights and momentum too, beside one process that keeps all."""
    rows = []
    for side, precision, checkpointing in FORECAST:
        plan = unet((side,) * 3, levels=LEVELS)
        one, _ = peak_and_sent(plan, Parallel(), precision)
        for space in SPACES:
            ours, sent = peak_and_sent(plan, Parallel(space=space, checkpointing=checkpointing), precision)
            title = f"forecast memory of the fullest of {_count(space)} tiles, {side}³, {LEVELS} levels, {precision}"
            title += f", checkpointing of {checkpointing}" if checkpointing != "none" else ""
            print(f"{title}: {ours / one:.3f} of one process, which keeps all; sends {sent:.1f} MiB a step", flush=True)
            rows.append(smaller_is_better(title, "one process", ours, one, "GiB"))
    return rows


def measured_rows() -> list[Row]:
    """Memory that processes were measured to hold, without checkpointing."""
    plan = unet((MEASURED,) * 3)
    (one,) = at_work("memory", plan)
    rows = []
    for space in SPACES[:2]:
        tiles = at_work("memory", replace(plan, parallel=Parallel(space=space)))
        title = f"measured memory of the fullest of {_count(space)} tiles, {MEASURED}³, float32"
        rows.append(smaller_is_better(title, "one process", max(tiles) / GIB, one / GIB, "GiB"))
    return rows


def throughput_rows() -> list[Row]:
    """Steps per second in turns: two tiles of one thread each beside one process of two threads."""
    rows = []
    for precision in ("float32", "bfloat16"):
        plan = replace(unet(TIMED, precision=precision), parallel=Parallel(space=(1, 2, 1)))
        turns = at_work("tiles", plan)[0]
        rates = {who: 1 / statistics.median(seconds) for who, seconds in turns.items()}
        title = f"2 tiles of 1 thread each, {' x '.join(map(str, TIMED))}, {precision}"
        rows.append(larger_is_better(title, "one process, 2 threads", rates["tiles"], rates["plain"], "steps/s"))
    return rows


def largest_volumes() -> pandas.DataFrame:
    """The largest cube that trains in bfloat16, by forecast: in a step that keeps all, and in tiles on more devices."""
    ways = [("nnU-Net's step on one device", Parallel())]
    for power, title in enumerate(("one device", "two devices", "four devices", "eight devices")):
        space = tuple(2 if axis < power else 1 for axis in range(3))
        ways.append((f"ours on {title}", Parallel(space=space, checkpointing="blocks")))
    rows = [{"way": title, **{name: largest_side(_device(name), way) for name in DEVICES}} for title, way in ways]
    return pandas.DataFrame(rows)


def largest_side(device: Device, parallel: Parallel) -> int:
    """Voxels along a side of the largest cube whose step fits a device, with its overhead and workspace."""
    sides = list(range(STEP, LARGEST + 1, STEP))
    low, high = 0, len(sides)
    while low < high:
        middle = (low + high) // 2
        if fits(device, sides[middle], parallel):
            low = middle + 1
        else:
            high = middle
    return sides[low - 1] if low else 0


def fits(device: Device, side: int, parallel: Parallel) -> bool:
    """Whether a step with a cube fits."""
    cost = training_step(unet((side,) * 3), samples=1, parallel=parallel, precision="bfloat16")
    needed = peak_gib(cost, device)
    print(f"{device.name}, {side}³, {parallel.space}, {parallel.checkpointing}: {needed:.1f} GiB", flush=True)
    return needed <= device.memory_gib


def _device(name: str) -> Device:
    return load_device(REPOSITORY / "config" / "hardware.yaml", name, source="benchmarks/tiles.py")


def _count(space: tuple[int, ...]) -> int:
    return space[0] * space[1] * space[2]
