"""What jobs of a setting need by its plan, and what they ask for because of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from helpers import tiny_plan
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.needs import needs_of
from megavoxel.forecast.setting import forecast_setting
from megavoxel.planning.needs import JobNeeds, cpus, memory_mb, runtime_minutes
from megavoxel.planning.plan import load_plan, save_plan

WORKLOAD = Workload(training_cases=20, folds=5)
CPU = Device(name="cpu", kind="cpu", teraflops={"half": 0.01, "float32": 0.01}, cpus_per_job=2, runtime_minutes=240)
GPU = Device(name="gpu", kind="gpu", teraflops={"half": 1.0}, cpus_per_job=8, runtime_minutes=1440)


def needs(plan, device=CPU, test_cases=4):
    forecast = forecast_setting(plan, Parallel(), device, WORKLOAD)
    return needs_of(plan, forecast, WORKLOAD, test_cases=test_cases)


@pytest.mark.slow
def test_a_larger_setting_asks_for_more_memory_and_time():
    small = tiny_plan(training={"epochs": 200, "iterations_per_epoch": 250})
    large = replace(small, patch=tuple(2 * side for side in small.patch), batch=2 * small.batch)
    ours, theirs = (needs(plan).training for plan in (small, large))
    assert memory_mb(theirs, CPU, attempt=1) > memory_mb(ours, CPU, attempt=1)
    assert runtime_minutes(theirs, CPU, attempt=1) > runtime_minutes(ours, CPU, attempt=1)


def test_on_the_cpu_memory_is_twice_the_forecast_and_what_stands_beside_it():
    plan = tiny_plan(training={"workers": 0})
    forecast = forecast_setting(plan, Parallel(), CPU, WORKLOAD)
    assert needs(plan).training.memory_gib == pytest.approx(1 + 2 * forecast.training_gib, abs=0.01)


def test_on_a_gpu_cores_and_memory_go_with_the_loaders():
    few, many = (needs(tiny_plan(training={"workers": count}), GPU).training for count in (1, 20))
    assert (cpus(few, GPU), cpus(many, GPU)) == (2, 8)
    assert many.memory_gib - few.memory_gib == pytest.approx(19 * 0.5, rel=0.1)
    assert cpus(needs(tiny_plan()).training, CPU) == 2


def test_many_test_cases_take_the_networks_of_all_folds():
    few, many = (needs(tiny_plan(), test_cases=count).prediction.minutes for count in (0, 100))
    assert few == pytest.approx(4 * 0.5, abs=0.1)
    assert many == pytest.approx(100 * 0.5, rel=0.1)


def test_time_grows_with_attempts_up_to_the_limit_and_memory_without_one():
    job = JobNeeds(minutes=20.0, memory_gib=2.0, cpus=None)
    device = replace(CPU, runtime_minutes=200)
    assert [runtime_minutes(job, device, attempt=attempt) for attempt in (1, 2, 3)] == [70, 140, 200]
    assert [memory_mb(job, device, attempt=attempt) for attempt in (1, 2, 3)] == [2148, 4296, 6444]


def test_where_nothing_is_known_jobs_ask_for_what_the_device_says():
    unknown = needs(tiny_plan(), replace(CPU, teraflops={})).training
    assert runtime_minutes(unknown, CPU, attempt=3) == runtime_minutes(None, CPU, attempt=3) == 240
    assert memory_mb(None, CPU, attempt=2) == 2 * CPU.host_memory_mb
    assert cpus(None, GPU) == 8


def test_needs_are_kept_in_the_plan_and_no_part_of_its_hash(tmp_path):
    plan = tiny_plan()
    told = replace(plan, needs=needs(plan))
    save_plan(tmp_path / "plan.json", told)
    assert load_plan(tmp_path / "plan.json") == told
    assert told.hash == plan.hash
    save_plan(tmp_path / "plan.json", plan)
    assert json.loads((tmp_path / "plan.json").read_text())["needs"] is None
