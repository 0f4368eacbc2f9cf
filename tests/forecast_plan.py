"""A setting and a device for tests of forecasts."""

from __future__ import annotations

from dataclasses import replace

from helpers import preprocessing_plan, tiny_plan
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.setting import forecast_setting
from megavoxel.planning.plan import NetworkPlan, Plan

WORKLOAD = Workload(training_cases=20, folds=5)


def device(**changes) -> Device:
    """A GPU without overheads on which a step of 10⁹ operations takes a millisecond."""
    keys = {
        "overhead_gib": 0.0,
        "workspace": 0.0,
        "connection_gib": 0.0,
        "reading_milliseconds": 0.0,
        "augmentation_milliseconds": 0.0,
        "teraflops": {"half": 1.0, "float32": 1.0},
        "memory_gib": 16,
    }
    return Device(name="gpu", kind="gpu", **{**keys, **changes})


def plan_of_some_size() -> Plan:
    """A step of which takes 100 MiB and more."""
    network = NetworkPlan(
        channels=1, classes=3, features=(16, 32), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2))
    )
    median = replace(preprocessing_plan(), median_shape=(48, 48, 48))
    return replace(tiny_plan(), patch=(48, 48, 48), batch=4, network=network, preprocessing=median)


def needs(plan: Plan, **parallel) -> float:
    """Peak memory in GiB of a way of running it."""
    return forecast_setting(plan, Parallel(**parallel), device(), WORKLOAD).peak_gib
