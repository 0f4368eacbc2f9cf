"""Time of loading in the forecast: by hand, what is said of it, and the processes that load."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forecast_plan import WORKLOAD, device, plan_of_some_size
from helpers import tiny_plan
from megavoxel.config.hardware import load_hardware
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Augmentation
from megavoxel.forecast.calibration import Measured, rates_of
from megavoxel.forecast.loading import Loading, loading_of, relative_cost, slow_loading
from megavoxel.forecast.needs import needs_of
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.step import StepCost
from megavoxel.network.work import ANY, Work
from megavoxel.planning.needs import cpus
from megavoxel.tasks.segmentation.data import VolumeData


def test_a_gpu_waits_for_the_slower_of_step_and_loading():
    loading = Loading(core_seconds=0.4, workers=2, cores=None)
    assert [loading.pace(step) for step in (0.1, 0.2, 0.3)] == [0.2, 0.2, 0.3]
    assert replace(loading, workers=0).pace(0.25) == 0.65


def test_on_a_cpu_loading_takes_the_time_of_a_core_of_the_step():
    loading = Loading(core_seconds=0.5, workers=2, cores=4)
    assert loading.pace(1.0) == 1.25
    assert replace(loading, workers=8).pace(1.0) == 1.125
    assert replace(loading, workers=0).pace(1.0) == 1.5


def test_a_slow_loader_is_told_of_with_the_cores_that_would_keep_up():
    told = slow_loading(Loading(core_seconds=0.4, workers=2, cores=None), 0.09)
    assert "the loader, not the GPU, sets the pace: 5 cores would keep up" in told
    assert slow_loading(Loading(core_seconds=0.4, workers=4, cores=None), 0.1) is None
    assert slow_loading(Loading(core_seconds=9.0, workers=1, cores=2), 0.1) is None


def test_seconds_of_loading_by_hand():
    """Two patches of a megavoxel, one channel, on each of two devices: 5 ms to read and 20 ms to augment each."""
    card = device(reading_milliseconds=5.0, augmentation_milliseconds=20.0, workers=3)
    plan = tiny_plan(patch=(100, 100, 100), batch=4, training={"workers": "auto"})
    loading = loading_of(plan, Parallel(data=2), card)
    assert loading == Loading(core_seconds=pytest.approx(2 * 0.025), workers=3, cores=None)
    on_device = replace(plan, augmentation=Augmentation(on_device=True), training=replace(plan.training, workers=1))
    assert loading_of(on_device, Parallel(space=(2, 1, 1)), card).core_seconds == pytest.approx(2 * 0.005)
    assert loading_of(on_device, Parallel(), card).workers == 1


def test_augmentation_costs_what_its_probabilities_and_channels_say():
    assert relative_cost(Augmentation()) == 1
    nothing = dict.fromkeys(("noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"), 0)
    assert relative_cost(Augmentation(rotation=0, scaling=0, **nothing)) == 0
    assert 1 < relative_cost(Augmentation(), channels=3) < 3
    assert relative_cost(Augmentation(), in_plane=True) < 0.5
    turned = relative_cost(Augmentation(rotation=1, scaling=0, **nothing))
    assert relative_cost(Augmentation(rotation=0, scaling=0, shear=1, **nothing)) == turned
    assert turned < relative_cost(Augmentation(rotation=0, scaling=0, elastic=1, **nothing)) < 1.2 * turned


def test_the_forecast_takes_the_loaders_time_and_says_so():
    plan = plan_of_some_size()
    quick, slow = (
        forecast_setting(plan, Parallel(), device(augmentation_milliseconds=time), WORKLOAD) for time in (0.0, 1e5)
    )
    assert quick.slow_loading is None
    assert "the loader, not the GPU, sets the pace" in slow.slow_loading
    assert slow.epoch_seconds > 10 * quick.epoch_seconds
    assert slow.training_hours == pytest.approx(plan.training.epochs * slow.epoch_seconds / 3600)


def test_cores_of_a_job_follow_the_workers_of_its_device():
    plan, card = plan_of_some_size(), device(workers=5, cpus_per_job=8)
    plan = replace(plan, training=replace(plan.training, workers="auto"))
    needs = needs_of(plan, forecast_setting(plan, Parallel(), card, WORKLOAD), WORKLOAD, test_cases=0)
    assert cpus(needs.training, card) == 6
    few = replace(plan, training=replace(plan.training, workers=2))
    needs = needs_of(few, forecast_setting(few, Parallel(), card, WORKLOAD), WORKLOAD, test_cases=0)
    assert cpus(needs.training, card) == 3


def test_the_plans_workers_count_before_those_of_the_device_and_change_no_state(repository):
    data = VolumeData(number=0, preprocessed="", training=(), validation=(), workers=6)
    plans = [tiny_plan(training={"workers": count}) for count in ("auto", 0, 3)]
    assert [data.loaders(plan) for plan in plans] == [6, 0, 3]
    assert len({data.key(plan) for plan in plans}) == 1
    devices = load_hardware(repository / "config/hardware.yaml")
    assert (devices["h100"].workers, devices["h200"].workers, devices["cpu"].workers) == (6, 6, 2)


def test_two_steps_tell_the_rate_of_convolutions_from_that_of_the_rest():
    def step(flops: int, touched: int, seconds: float) -> Measured:
        cost = StepCost(
            peak_bytes=0, resident_bytes=0, workspace_bytes=1, parameter_bytes=0,
            work=Work(flops={16: flops}, touched={ANY: touched}),
        )  # fmt: skip
        return Measured(seconds=seconds, peak_bytes=0, forecast=cost)

    # 100 operations and 10 bytes a second, and half a second more.
    assert rates_of(step(1000, 50, 15.5), step(100, 40, 5.5), 0.5) == pytest.approx((100, 10))
    # A thin step that takes no time contradicts that there are two rates.
    assert rates_of(step(1000, 50, 10.5), step(100, 40, 0.5), 0.5) == (100, None)
