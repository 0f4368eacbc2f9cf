"""Pipelines: memory of the fullest stage, bytes sent, bubble, and throughput beside one process and PyTorch's pipeline.

The network is the U-Net of Zhu et al. (MICCAI 2020, sections 2.2 and 3) with 32 filters, ten classes and RMSProp, batch
1. Its memory is forecast on fake tensors at 128³, and measured at 64³: what a process holds at its peak beyond what it
held with all libraries loaded, freed memory being returned at once. A smaller U-Net, cut in the same manner, gives the
throughput; there PyTorch's `PipelineStage` with `ScheduleGPipe` has the same stages, micro-batches and threads, and
carries skips through all stages between. All in float32, over gloo. `benchmarks/pipeline_worker.py` is what processes
do.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.made import call, made_plan
from benchmarks.measure import REPOSITORY, Row, larger_is_better, smaller_is_better
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Training
from megavoxel.forecast.pipeline import least_peak_cut, stage_costs
from megavoxel.forecast.step import CPU, training_step
from megavoxel.network.device import Precision
from megavoxel.network.partition import ACTIVATION, TensorSpec, Transfer, transfer_specs
from megavoxel.planning.plan import Plan, save_plan

PRECISION = "float32"
FEATURES = (32, 64, 128, 256, 512)
FORECAST_SIZE, MEASURED_SIZE = 128, 64
BOUNDS = {2: 0.62, 4: 0.40}
"""Memory of the fullest stage over that of one device, by the number of stages."""
MOST_SENT = 0.5
"""Bytes of skips, of those sent where every stage hands them on."""
TRACED = ((2, 4), (4, 4), (4, 8))
"""Stages and micro-batches whose schedule is traced."""
TRAINED = {"features": (16, 32, 64, 128), "size": 48, "batch": 4}
"""The network and batch whose throughput is measured, with two stages of one thread and four micro-batches."""
MIB, GIB = 2**20, 2**30


def run() -> list[Row]:
    """Rows of memory, bytes sent, bubble and throughput."""
    return [*memory_rows(), *traffic_rows(), *bubble_rows(), *throughput_rows()]


def unet(size: int, *, features: tuple[int, ...] = FEATURES, batch: int = 1) -> Plan:
    """A setting on one device that trains on cubes."""
    training = Training(optimizer="rmsprop", precision=PRECISION, batch_dice=False, learning_rate=1e-4)
    labels = {f"organ {value}": value for value in range(1, 10)}
    return made_plan("pipeline", patch=(size,) * 3, labels=labels, features=features, batch=batch, training=training)


@cache
def cut(size: int, stages: int, micro_batches: int = 1, **keys: Any) -> Plan:
    """The plan of `unet` over several devices, cut for the smallest peak."""
    plan = unet(size, **keys)
    parallel = Parallel(pipeline=stages, micro_batches=micro_batches)
    return replace(plan, parallel=parallel, stages=least_peak_cut(plan, parallel, PRECISION))


def memory_rows() -> list[Row]:
    """Forecast at the size of the paper, and measured by the memory of processes."""
    rows = []
    for stages, bound in BOUNDS.items():
        plan = cut(FORECAST_SIZE, stages)
        peaks = [cost.peak_bytes for cost in stage_costs(plan, plan.parallel, PRECISION, plan.stages)]
        rows.append(_memory_row("forecast", plan, _forecast_of_one(FORECAST_SIZE), peaks, bound))
    plan = cut(MEASURED_SIZE, 2)
    (one,), stages = (at_work("memory", chosen) for chosen in (unet(MEASURED_SIZE), plan))
    rows.append(_memory_row("measured", plan, one, stages, BOUNDS[2]))
    return rows


def traffic_rows() -> list[Row]:
    """Bytes sent at four stages: ours, and if every skip were handed on from stage to stage."""
    plan = cut(FORECAST_SIZE, 4)
    image = (plan.batch, plan.network.input_channels, *plan.patch)
    specs = transfer_specs(plan.network, plan.stages, image, Precision(name=PRECISION, reason=""), CPU)
    skips = {way: spec for way, spec in specs.items() if way.name != ACTIVATION}
    rows = []
    for what, chosen, bound in (("skips", skips, f", bound {MOST_SENT}"), ("activations and skips", specs, "")):
        direct, carried = (_sent(chosen, carried=carried) for carried in (False, True))
        title = f"bytes sent at 4 stages, {what}"
        print(f"{title}: {direct / carried:.2f} of those carried by neighbours{bound}", flush=True)
        rows.append(smaller_is_better(title, "skips handed on by every stage", direct / MIB, carried / MIB, "MiB"))
    return rows


def bubble_rows() -> list[Row]:
    """Idle share of the stages while every pass of a micro-batch through a stage takes the same time."""
    rows = []
    for stages, micro_batches in TRACED:
        plan = cut(16, stages, micro_batches, features=(4, 8, 8), batch=micro_batches)
        traces = at_work("trace", plan)
        bound = (stages - 1) / (micro_batches + stages - 1)
        for what, idle in (("order of the passes", idle_by_order(traces)), ("clock", idle_by_clock(traces))):
            title = f"bubble by the {what} in a trace, {stages} stages, {micro_batches} micro-batches"
            rows.append(smaller_is_better(title, "(K - 1) / (M + K - 1)", idle, bound, "idle share"))
    return rows


def throughput_rows() -> list[Row]:
    """Steps per second in turns, two processes of one thread against one of two, and against PyTorch's pipeline."""
    plan = cut(TRAINED["size"], 2, TRAINED["batch"], features=TRAINED["features"], batch=TRAINED["batch"])
    turns = at_work("throughput", plan)[0]
    rates = {who: TRAINED["batch"] / statistics.median(seconds) for who, seconds in turns.items()}
    title = f"pipeline, 2 stages of 1 thread, {TRAINED['batch']} micro-batches of {TRAINED['size']}³"
    peers = {"plain": "plain network, 2 threads", "pytorch": "torch PipelineStage, ScheduleGPipe"}
    return [larger_is_better(title, peer, rates["ours"], rates[who], "samples/s") for who, peer in peers.items()]


def at_work(what: str, plan: Plan) -> list[Any]:
    """Results of `benchmarks/pipeline_worker.py` in each of the plan's processes."""
    with tempfile.TemporaryDirectory() as folder:
        save_plan(Path(folder) / "plan.json", plan)
        count = plan.parallel.devices
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        # PyTorch's pipeline as a peer is that of the tests.
        paths = [str(REPOSITORY), str(REPOSITORY / "workflow"), str(REPOSITORY / "tests")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        call("python", *words, "-m", "benchmarks.pipeline_worker", what, folder, environment=environment)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


def idle_by_order(traces: list[list[dict]]) -> float:
    """Idle share if every pass took one unit: each stage keeps the order of its trace, and waits for what it needs.

    Args:
        traces: per stage, its passes in the order in which they began; each with `name`, `begin` and `end`.
    """
    finished: dict[tuple[int, str], int] = {}
    waiting = [[one["name"] for one in trace] for trace in traces]
    clocks = [0] * len(traces)
    while any(waiting):
        before = len(finished)
        for stage, names in enumerate(waiting):
            if not names:
                continue
            source = stage + (-1 if names[0].endswith("forward") else 1)
            needed = (source, names[0])
            if 0 <= source < len(traces) and needed not in finished:
                continue
            clocks[stage] = finished[stage, names[0]] = max(clocks[stage], finished.get(needed, 0)) + 1
            names.pop(0)
        if len(finished) == before:
            raise RuntimeError("a stage waits for a pass that the trace does not have")
    return 1 - len(finished) / (max(clocks) * len(traces))


def idle_by_clock(traces: list[list[dict]]) -> float:
    """Idle share between the first begin and the last end of any pass; waiting inside a pass is idle."""
    passes = [one for trace in traces for one in trace]
    span = max(one["end"] for one in passes) - min(one["begin"] for one in passes)
    return 1 - sum(one["busy"] for one in passes) / (span * len(traces))


def _sent(specs: dict[Transfer, TensorSpec], *, carried: bool) -> int:
    """Bytes there and, as gradients, back."""
    return sum(
        spec.nbytes * (2 if spec.needs_gradient else 1) * (way.target - way.source if carried else 1)
        for way, spec in specs.items()
    )


def _memory_row(how: str, plan: Plan, one: float, stages: list[float], bound: float) -> Row:
    share = max(stages) / one
    print(f"{how}: stages from blocks {plan.stages}, {[f'{peak / one:.3f}' for peak in stages]}", flush=True)
    title = f"{how} memory of the fullest of {len(stages)} stages, {plan.patch[0]}³"
    print(f"{title}: {share:.3f} of one device's, bound {bound}", flush=True)
    return smaller_is_better(title, "one device", max(stages) / GIB, one / GIB, "GiB")


def _forecast_of_one(size: int) -> int:
    return training_step(unet(size), samples=1, parallel=Parallel(), precision=PRECISION).peak_bytes
