"""Which way of running a setting is chosen, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from forecast_plan import WORKLOAD, device, needs, plan_of_some_size
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.errors import UserError
from megavoxel.forecast.choice import choose
from megavoxel.forecast.pipeline import blocks_by_saving
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.step import gib


@pytest.fixture(scope="module")
def plan():
    return plan_of_some_size()


def slow_device(**keys) -> Device:
    """One on which the little plan takes hours, so that limits in whole minutes lie on either side."""
    return replace(device(**keys), teraflops={"float32": 1e-6, "half": 1e-6})


def test_what_fits_stays_plain(plan):
    choice = choose(plan, device(most_devices=8), WORKLOAD, fixed=None)
    assert choice.fits
    assert choice.forecast.parallel == Parallel()
    assert choice.reason == "plain training fits"
    assert choice.next_option == "parallel.accumulate: 2"


def test_accumulation_is_cheaper_than_checkpointing(plan):
    room = (needs(plan, accumulate=2) + needs(plan)) / 2
    choice = choose(plan, device(memory_gib=room), WORKLOAD, fixed=None)
    assert choice.forecast.parallel == Parallel(accumulate=2)
    assert choice.reason.startswith(f"accumulation over 2 parts: plain needs {gib(needs(plan))}")


def test_checkpointing_of_norms_where_one_sample_is_too_large(plan):
    least, single = needs(plan, accumulate=4, checkpointing="norms"), needs(plan, accumulate=4)
    choice = choose(plan, device(memory_gib=(least + single) / 2, most_devices=8), WORKLOAD, fixed=None)
    assert choice.forecast.parallel == Parallel(accumulate=4, checkpointing="norms")
    assert "accumulation over 4 parts needs" in choice.reason


def test_of_the_blocks_the_fewest_that_make_a_step_fit_are_computed_again(plan):
    names = blocks_by_saving(plan, Parallel(accumulate=4), "bfloat16")
    exact = {count: needs(plan, accumulate=4, checkpointing=tuple(names[:count])) for count in range(1, len(names))}
    room = next(low + 1e-6 for low, high in zip(list(exact.values())[1:], exact.values(), strict=False) if low < high)
    fewest = min(count for count, needed in exact.items() if needed <= room)
    for fixed in (None, Parallel(accumulate=4, checkpointing="auto")):
        choice = choose(plan, device(memory_gib=room), WORKLOAD, fixed=fixed)
        assert choice.fits
        assert choice.forecast.parallel == Parallel(accumulate=4, checkpointing=tuple(names[:fewest]))


@pytest.mark.parametrize("room", ["none", "norms", "blocks"])
def test_as_little_is_computed_again_as_fits(plan, room):
    fixed = Parallel(accumulate=4, checkpointing="auto")
    choice = choose(plan, device(memory_gib=needs(plan, accumulate=4, checkpointing=room)), WORKLOAD, fixed=fixed)
    assert choice.fits
    taken = choice.forecast.parallel.checkpointing
    assert taken == room if room != "blocks" else taken not in ("none", "norms")


def test_a_block_that_the_network_does_not_have_is_refused(plan):
    with pytest.raises(
        UserError, match=r"checkpointing: the network has no convolution 'encoder0_convolution9' \(did you"
    ):
        choose(plan, device(), WORKLOAD, fixed=Parallel(checkpointing=("encoder0_convolution9",)))


def test_a_pipeline_where_one_device_is_too_small_in_any_way(plan):
    whole = replace(plan, training=replace(plan.training, loss="dice_perimeter"))
    single = needs(whole, accumulate=4, checkpointing="blocks")
    stages = needs(whole, pipeline=4, accumulate=4)
    assert stages < single
    choice = choose(whole, device(memory_gib=(stages + single) / 2, most_devices=4), WORKLOAD, fixed=None)
    assert choice.fits
    assert choice.forecast.parallel.pipeline > 1


def test_tiles_where_one_device_is_too_small_in_any_way(plan):
    single = needs(plan, accumulate=4, checkpointing="blocks")
    tiles = needs(plan, space=(2, 1, 1), accumulate=4, checkpointing="norms")
    assert tiles < single
    choice = choose(plan, device(memory_gib=(tiles + single) / 2, most_devices=4), WORKLOAD, fixed=None)
    assert choice.fits
    assert choice.forecast.parallel.space == (2, 1, 1)
    assert choice.reason.startswith("2 × 1 × 1 tiles")


def test_more_devices_by_data_where_a_job_would_be_too_long(plan):
    alone = forecast_setting(plan, Parallel(), slow_device(), WORKLOAD).hours_per_fold
    limit = round(60 * alone * 0.7)
    choice = choose(plan, replace(slow_device(most_devices=4), runtime_minutes=limit), WORKLOAD, fixed=None)
    assert choice.forecast.parallel == Parallel(data=2)
    assert "plain takes" in choice.reason


def test_nothing_fits_says_by_how_much_and_what_would(plan):
    choice = choose(plan, device(memory_gib=0.01, most_devices=2), WORKLOAD, fixed=None)
    assert not choice.fits
    assert f"{gib(choice.forecast.peak_gib - 0.01)} more than gpu has (0.01 GiB)" in choice.reason
    assert "a patch of about" in choice.reason


def test_a_fixed_way_that_does_not_fit_names_one_that_does(plan):
    room = (needs(plan, accumulate=2) + needs(plan)) / 2
    choice = choose(plan, device(memory_gib=room), WORKLOAD, fixed=Parallel())
    assert not choice.fits
    assert choice.forecast.parallel == Parallel()
    assert "what would fit: accumulation over 2 parts" in choice.reason


def test_the_planner_finds_the_fewest_parts_at_any_memory(plan):
    exact = {parts: needs(plan, accumulate=parts) for parts in (1, 2, 4)}
    for room in (value + step for value in exact.values() for step in (1e-6, 1e-2)):
        choice = choose(plan, device(memory_gib=room), WORKLOAD, fixed=None)
        fewest = min(parts for parts, needed in exact.items() if needed <= room)
        assert choice.forecast.parallel == Parallel(accumulate=fewest), room


def test_more_devices_than_a_job_may_have_do_not_fit(plan):
    wide = Parallel(data=4)
    choice = choose(plan, device(most_devices=2), WORKLOAD, fixed=wide)
    assert not choice.fits
    assert choice.reason.startswith("4 devices by data takes 4 devices, a job on gpu has 2 at most")
    assert choose(plan, device(most_devices=4), WORKLOAD, fixed=wide).fits


def test_a_fixed_way_that_outlasts_a_job_says_so(plan):
    hours = forecast_setting(plan, Parallel(), slow_device(), WORKLOAD).hours_per_fold
    short = replace(slow_device(), runtime_minutes=round(30 * hours))
    choice = choose(plan, short, WORKLOAD, fixed=Parallel())
    assert choice.fits
    assert re.fullmatch(r"as the study says; longer than a job's .* h, so it will need several", choice.reason)


def test_plain_training_that_outlasts_a_job_and_has_no_quicker_way_says_so(plan):
    hours = forecast_setting(plan, Parallel(), slow_device(), WORKLOAD).hours_per_fold
    short = replace(slow_device(), runtime_minutes=round(30 * hours))
    choice = choose(plan, short, WORKLOAD, fixed=None)
    assert choice.forecast.parallel == Parallel()
    assert re.fullmatch(r"plain training fits; longer than a job's .* h, so it will need several", choice.reason)


def test_on_a_cpu_it_is_the_memory_of_a_job_that_counts(plan):
    cpu = Device(name="cpu", kind="cpu", overhead_gib=0.0, workspace=0.0, host_memory_mb=20)
    choice = choose(plan, cpu, WORKLOAD, fixed=Parallel())
    assert not choice.fits
    assert "more than host_memory_mb of cpu allows (0.02 GiB)" in choice.reason
    assert choose(plan, replace(cpu, host_memory_mb=4000), WORKLOAD, fixed=Parallel()).fits
    assert choose(plan, replace(cpu, memory_gib=4), WORKLOAD, fixed=Parallel()).fits
