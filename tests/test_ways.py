"""Which ways of running a setting can be, and what comes next where one is too large."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import yaml

from forecast_plan import device, plan_of_some_size
from megavoxel.config.setting import Parallel
from megavoxel.errors import UserError
from megavoxel.forecast.choice import next_option
from megavoxel.forecast.ways import LESS_AND_LESS, check_parallel


@pytest.fixture(scope="module")
def plan():
    return plan_of_some_size()


def ways_that_run(plan) -> list[Parallel]:
    """Ways of all kinds that the plan can be run in."""
    spaces = ((1, 1, 1), (2, 1, 1), (2, 2, 2))
    numbers = itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8), LESS_AND_LESS, spaces)
    keys = ("data", "accumulate", "micro_batches", "pipeline", "checkpointing", "space")
    ways = [Parallel(**dict(zip(keys, values, strict=True))) for values in numbers]
    return [way for way in ways if can_be(plan, way)]


def can_be(plan, parallel: Parallel) -> bool:
    try:
        check_parallel(plan, parallel)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("expanded", [None, (64, 64, 64)])
def test_every_next_option_can_be_run_on_the_devices_of_a_job(plan, batch_dice, expanded):
    training = replace(plan.training, batch_dice=batch_dice)
    setting = replace(plan, training=training, expanded_patch=expanded)
    ways, options = ways_that_run(setting), set()
    for way, most in itertools.product(ways, (1, 6)):
        option = next_option(setting, way, device(most_devices=most))
        options.add(option.partition(":")[0])
        if option != "a smaller patch":
            key, value = option.removeprefix("parallel.").split(": ")
            read = yaml.safe_load(value)
            changed = replace(way, **{key: tuple(read) if isinstance(read, list) else read})
            assert can_be(setting, changed), (way, option)
            assert changed.devices <= max(most, way.devices), (way, option)
    assert {"parallel.accumulate", "parallel.checkpointing", "a smaller patch"} <= options
    assert ("parallel.pipeline" in options) == (expanded is None)
    assert ("parallel.space" in options) == (expanded is None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"accumulate": 3}, r"batch 4 cannot be cut into data 1 × accumulate 3 .* divides 4"),
        ({"micro_batches": 2}, "only a pipeline has them"),
        ({"pipeline": 99}, "the network has 8 blocks"),
        (
            {"space": (1, 99, 1)},
            r"space: 99 tiles along y, but a patch of .* voxels has \d+ cells .* along y: 1 to \d+",
        ),
        ({"space": (2, 1, 1), "pipeline": 2}, r"space: the stages of a pipeline hold whole patches; set pipeline to 1"),
    ],
)
def test_a_way_that_cannot_be_is_refused(plan, keys, message):
    with pytest.raises(UserError, match=rf"setting tiny: parallel.*{message}"):
        check_parallel(plan, Parallel(**keys))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((512, 512, 1), r"space: 2 tiles along x, but an inference.window of 512 × 512 × 1 voxels has 1 cell of the"),
        ((8, 8, 1), None),
        ("whole", None),
    ],
)
def test_windows_that_go_over_tiles_have_cells_for_all_of_them(plan, window, message):
    """A window of a tile's voxels or fewer goes over one device, whatever its shape."""
    setting, parallel = replace(plan, inference=replace(plan.inference, window=window)), Parallel(space=(1, 1, 2))
    if message is None:
        check_parallel(setting, parallel)
        return
    with pytest.raises(UserError, match=rf"setting tiny: parallel.{message}"):
        check_parallel(setting, parallel)


def test_accumulated_parts_of_a_batch_dice_in_a_pipeline_are_refused(plan):
    whole = replace(plan, training=replace(plan.training, batch_dice=True))
    check_parallel(whole, Parallel(accumulate=2, data=2))
    check_parallel(whole, Parallel(pipeline=2, micro_batches=2))
    with pytest.raises(UserError, match="batch_dice needs the sums of the whole batch"):
        check_parallel(whole, Parallel(pipeline=2, accumulate=2))
