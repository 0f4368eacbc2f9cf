"""One process that works out the tiles of a window in turn predicts what it predicts from the whole window."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from forecast_plan import WORKLOAD, device
from megavoxel.config.setting import Inference, Parallel
from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.forecast.needs import needs_of
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.ways import check_parallel
from megavoxel.forecast.window import window_costs
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.turns import TilesInTurn
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import cells_of
from megavoxel.planning.topology import shape_of
from space_prediction_worker import (
    CASES,
    CPU,
    LARGER,
    OF_MANY_TILES,
    image_of,
    logits_of,
    network_of,
    plan_of,
    slabs_of,
    window_of,
)

PRECISION = Precision(name="float32", reason="test")


def in_turn(plan: Plan, tiles: tuple[int, ...]) -> Plan:
    return replace(plan, inference=replace(plan.inference, tiles=tiles))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "tiles"), [*((way, (1, 1, 2)) for way in LARGER), *((way, (2, 2, 1)) for way in OF_MANY_TILES)], ids=str
)
@torch.inference_mode()
def test_tiles_in_turn_give_the_logits_of_the_whole_window(way, tiles):
    plan = in_turn(plan_of(way), tiles)
    network = network_of(plan).double().eval()
    network = TilesInTurn(
        network, plan=plan, device=CPU, precision=PRECISION, memory_format=torch.contiguous_format
    )  # fmt: skip
    found, wanted = network(window_of(way))[0], logits_of(way, (1, 1, 1), Group())
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_cases_are_labelled_in_turn_as_they_are_at_once(case):
    way, inference, folds, shape = CASES[case]
    plan = replace(plan_of(way), inference=replace(inference, tiles=(1, 2, 2)))
    predictor = CasePredictor(plan, [network_of(plan, seed) for seed in range(folds)], "float32", CPU)
    image = image_of(plan, shape).float().numpy()
    found = torch.cat([slab.logits.clone() for slab in predictor.slabs(image)], dim=1)
    wanted = slabs_of(case, (1, 1, 1), Group())
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5
    assert torch.equal(found.argmax(dim=0), wanted.argmax(dim=0))


def test_memory_is_what_is_foretold_of_the_device_and_of_the_host():
    """On a CPU, which is both: a tile's input is there once, and not once more on a device."""
    plan = in_turn(plan_of("plain"), (2, 1, 2))
    plan = replace(plan, network=replace(plan.network, features=(16, 20, 24)))
    (cost,) = window_costs(plan, (32, 48, 48), networks=1, precision="float32")
    (whole,) = window_costs(in_turn(plan, (1, 1, 1)), (32, 48, 48), networks=1, precision="float32")
    network = TilesInTurn(
        network_of(plan).eval(), plan=plan, device=CPU, precision=PRECISION, memory_format=torch.contiguous_format
    )
    with torch.no_grad(), MemoryTracker() as memory:
        memory.include(network.network.state_dict().values())
        network(torch.zeros(1, 1, 32, 48, 48))
    assert cost.host_bytes < memory.peak <= cost.host_bytes + cost.peak_bytes
    # Image, input and output of the last level's first convolution.
    assert cost.host_bytes == 4 * 32 * 48 * 48 * (1 + 32 + 16)
    assert cost.peak_bytes < 0.35 * whole.peak_bytes
    assert whole.flops < cost.flops < 2.1 * whole.flops  # pieces of neighbours are a part of it


def test_a_moment_of_any_size_is_foretold_without_memory():
    with FakeTensorMode():
        mean, variance = torch.batch_norm_update_stats(torch.zeros(1, 32, 4096, 4096, 4096), None, None, 0.0)
    assert mean.shape == variance.shape == (32,)


def test_a_window_may_have_more_tiles_than_a_patch_has_room_for():
    plan = plan_of("plain")
    patch_cells = cells_of(plan.patch, shape_of(plan.network).divisor)
    tiles = (1, 1, patch_cells[2] + 1)
    window = (*plan.patch[:2], 2 * plan.patch[2])
    image = image_of(plan, window).float().numpy()
    labels = []
    for inference in (Inference(window=window), Inference(window=window, tiles=tiles)):
        cut = replace(plan, inference=inference)
        check_parallel(cut, Parallel())
        predictor = CasePredictor(cut, [network_of(plan)], "float32", CPU)
        labels.append(torch.cat([slab.logits.argmax(dim=0) for slab in predictor.slabs(image)]))
    assert torch.equal(*labels)


@pytest.mark.parametrize(
    ("inference", "parallel", "message"),
    [
        (Inference(tiles=(1, 1, 9)), Parallel(), r"9 tiles along x, but a patch of 16 × 24 × 16 voxels has 4 cells"),
        (
            Inference(tiles=(2, 1, 1), window=(4, 48, 48)),
            Parallel(),
            r"2 tiles along z, but an inference.window of 4 × 48 × 48 voxels has 1 cell",
        ),
        (Inference(tiles=(2, 1, 1), window="whole"), Parallel(pipeline=2), "windows go over the 2 devices that hold"),
        (Inference(tiles=(2, 1, 1)), Parallel(space=(1, 1, 2)), "windows go over the 2 devices that hold a patch"),
    ],
)
def test_tiles_in_turn_that_cannot_be_are_refused(inference, parallel, message):
    plan = replace(plan_of("plain"), inference=inference)
    with pytest.raises(UserError, match=f"setting tiny: inference.tiles: {message}"):
        check_parallel(plan, parallel)
    with pytest.raises(UserError, match=message):  # the plan of a model from elsewhere
        CasePredictor(replace(plan, parallel=parallel), [network_of(plan)], "float32", CPU)


def test_activations_on_the_host_count_for_the_memory_of_a_job():
    plan = replace(plan_of("plain"), inference=Inference(window="whole", mirror=False))
    turned = in_turn(plan, (2, 1, 1))
    at_once, in_turns = (forecast_setting(one, Parallel(), device(), WORKLOAD) for one in (plan, turned))
    assert at_once.prediction_host_gib == 0
    assert at_once.prediction_gib > in_turns.prediction_gib
    assert in_turns.prediction_hours > at_once.prediction_hours
    given = [needs_of(plan, one, WORKLOAD, test_cases=1).prediction.memory_gib for one in (at_once, in_turns)]
    assert given[1] - given[0] == pytest.approx(in_turns.prediction_host_gib, abs=0.011)
    processor = replace(device(), kind="cpu")
    assert forecast_setting(turned, Parallel(), processor, WORKLOAD).prediction_host_gib == 0
