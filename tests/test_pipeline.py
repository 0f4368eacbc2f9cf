"""A pipeline trains what one process trains, over gloo."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import pipeline_worker
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group
from megavoxel.forecast.pipeline import stage_costs
from megavoxel.planning.plan import Plan
from pipeline_worker import BATCH, CUTS, FORETOLD, SEED, plan_of, steps_of
from stage_server import run_group
from training_jobs import check_that_all_end_with_one, check_that_it_goes_on, training_command

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of batch norm: those of a replica are of its own samples, and the first one's are kept."""
IN_PARTS = ("batch norm", "rmsprop", "bfloat16", "float16")
"""Ways in which a sample's gradient depends on those beside it, or is rounded differently with them."""
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
"""Of gradients up to 0.5: convolutions of other batches are other kernels, in float32."""
HALF_TOLERANCE = {"atol": 5e-4, "rtol": 1e-2}
"""A replica's loss is not halved before its backward pass, so that other numbers fall below the least of float16."""

pytestmark = pytest.mark.slow


@cache
def expected(way: str, parts: int) -> dict:
    """What a single process does; its batch norm sees a batch in as many parts as that of the pipeline.

    On one thread, like the processes of the pipeline: two add up in another order.
    """
    plan, threads = plan_of(way), torch.get_num_threads()
    if way in IN_PARTS:
        plan = replace(plan, parallel=Parallel(accumulate=parts))
    torch.set_num_threads(1)
    try:
        return steps_of(plan, Group())
    finally:
        torch.set_num_threads(threads)


def run_workers(folder: Path, *, stages: int, replicas: int = 1) -> list[dict]:
    run_group(pipeline_worker.__file__, folder, replicas, processes=stages * replicas)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(stages * replicas)]


def compare(found: list[dict], single: dict, name: str, skipped: tuple[str, ...] = ()) -> None:
    """Of what the stages of a pipeline hold with what one process does."""
    for ours in found:
        assert ours["loss"] == pytest.approx(single["loss"], abs=1e-5), name
    tolerance = HALF_TOLERANCE if name.startswith("float16") else TOLERANCE
    for key in ("gradients", "weights"):
        merged = {weight: tensor for ours in found for weight, tensor in ours[key].items()}
        assert merged.keys() == single[key].keys()
        for weight, tensor in merged.items():
            if weight.endswith(skipped):
                continue
            torch.testing.assert_close(
                tensor, single[key][weight], **tolerance, msg=lambda text, at=(name, key, weight): f"{at}: {text}"
            )


def compare_memory(peaks: list[int], way: str, micro_batches: int, name: str) -> None:
    """Of every stage, what its tensors took in the real step with what the forecast says."""
    plan = plan_of(way, stages=len(peaks), micro_batches=micro_batches)
    parallel = Parallel(pipeline=len(peaks), micro_batches=micro_batches, checkpointing=plan.parallel.checkpointing)
    costs = stage_costs(replace(plan, batch=BATCH), parallel, plan.training.precision, plan.stages)
    for found, cost in zip(peaks, costs, strict=True):
        assert found == pytest.approx(cost.peak_bytes, rel=0.05), name


@pytest.mark.parametrize(("stages", "replicas"), [(2, 1), (3, 1), (4, 1), (2, 2)])
def test_stages_take_the_steps_of_the_whole_network(tmp_path, stages, replicas):
    processes = run_workers(tmp_path, stages=stages, replicas=replicas)
    compared = 0
    for name in processes[0]:
        way, micro_batches = name.rsplit(", ", 1)
        parts = int(micro_batches) * replicas if way in IN_PARTS else 1
        single = expected(way, parts)
        skipped = (STATISTICS if replicas > 1 else ()) + (without_gradient(single) if way == "rmsprop" else ())
        for first in range(0, len(processes), stages):
            compare([found[name] for found in processes[first : first + stages]], single, name, skipped)
            compared += 1
        if replicas > 1:
            check_that_replicas_agree([found[name]["weights"] for found in processes], stages, name)
        if replicas == 1 and way in FORETOLD and micro_batches != "4":
            compare_memory([found[name]["peak"] for found in processes], way, int(micro_batches), name)
    assert compared == (50 if replicas == 1 else 66)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("way", ["instance norm", "dice and focal loss", "squeeze and excitation"])
def test_a_single_stage_takes_its_micro_batches_as_accumulated_parts(way, parts):
    """One stage is no pipeline: `accumulate` is what it has in place of `micro_batches`."""
    alone = steps_of(replace(plan_of(way), parallel=Parallel(accumulate=parts)), Group())
    compare([alone], expected(way, 1), f"{way}, {parts}")


def without_gradient(single: dict) -> tuple[str, ...]:
    """Biases in front of a norm: RMSProp makes steps of what rounding leaves of their gradients."""
    return tuple(name for name, found in single["gradients"].items() if found.abs().max() < 1e-6)


def check_that_replicas_agree(weights: list[dict], stages: int, name: str) -> None:
    """Running statistics as well, which a process has of its own samples."""
    for first, second in zip(weights[:stages], weights[stages:], strict=True):
        for weight, tensor in first.items():
            torch.testing.assert_close(tensor, second[weight], atol=0, rtol=0, msg=f"{name}, {weight}")


def cut(plan: Plan, stages: int, micro_batches: int = 1) -> Plan:
    return replace(plan, parallel=Parallel(pipeline=stages, micro_batches=micro_batches), stages=CUTS[stages])


def test_a_run_goes_on_with_another_number_of_stages(tmp_path):
    """Some epochs over two processes, some over three, the last over one, beside a run of one process."""
    ways = (({"pipeline": 2, "micro_batches": 2}, CUTS[2]), ({"pipeline": 3}, CUTS[3]), ({}, ()))
    plan = replace(plan_of("instance norm"), seed=SEED)
    plans = [replace(plan, parallel=Parallel(**keys), stages=stages) for keys, stages in ways]
    check_that_it_goes_on(tmp_path, plan, plans)


def test_the_forecast_is_the_tracked_peak_of_the_fullest_stage(tmp_path):
    plan = plan_of("instance norm")
    plan = replace(plan, patch=(16, 24, 24), training=replace(plan.training, epochs=1))
    command = [*training_command(tmp_path, cut(plan, 2, 2)), "--output", "out"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    memory = json.loads((tmp_path / "out" / "manifest.json").read_text())["peak_memory"]
    assert memory["gib"] == pytest.approx(memory["forecast_gib"], rel=0.05)


def test_a_stage_that_dies_ends_the_job(tmp_path):
    plan = cut(plan_of("instance norm"), 3)
    plan = replace(plan, training=replace(plan.training, epochs=10_000))
    check_that_all_end_with_one([*training_command(tmp_path, plan), "--output", "out"], tmp_path, processes=3)


def test_the_error_of_the_process_that_failed_stands_last(tmp_path):
    """The others lose it in the middle of a batch, and say so in a line."""
    (tmp_path / "sitecustomize.py").write_text(FAILS_IN_RANK_1)
    command = [*training_command(tmp_path, cut(plan_of("instance norm"), 3)), "--output", "out"]
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "megavoxel train: error: process 1: RuntimeError: the second stage is broken"
    assert done.stderr.count("Traceback (most recent call last)") == 1


FAILS_IN_RANK_1 = """
import os

if os.environ.get("RANK") == "1":
    import megavoxel.training.pipeline

    def fail(*_):
        raise RuntimeError("the second stage is broken")

    megavoxel.training.pipeline._arrived_state = fail
"""
