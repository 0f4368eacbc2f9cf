"""Which tile a process holds, what it sends to its neighbours, and what a forecast makes of it, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from forecast_plan import WORKLOAD, device, plan_of_some_size
from megavoxel.config.setting import Parallel, Setting
from megavoxel.distributed.exchange import SilentExchange
from megavoxel.distributed.spatial import in_tiles
from megavoxel.errors import UserError
from megavoxel.forecast.choice import choose
from megavoxel.forecast.duration import Speed, step_seconds
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.step import gib
from megavoxel.forecast.table import spread
from megavoxel.forecast.ways import check_parallel, tilings
from megavoxel.network.device import smallest_extent
from megavoxel.planning.tiling import even_tiling


def test_tiles_are_whole_cells_and_the_last_ends_with_the_patch():
    # Five cells along z, of which the last has four of its eight voxels; two along y; one along x.
    tilings = [even_tiling((36, 16, 8), (8, 8, 8), (2, 2, 1), rank) for rank in range(4)]
    assert tilings[0].borders == ((0, 2, 5), (0, 1, 2), (0, 1))
    assert [one.tile for one in tilings] == [
        (slice(0, 16), slice(0, 8), slice(0, 8)),
        (slice(0, 16), slice(8, 16), slice(0, 8)),
        (slice(16, 36), slice(0, 8), slice(0, 8)),
        (slice(16, 36), slice(8, 16), slice(0, 8)),
    ]
    assert tilings[0].shares == (0.2, 0.2, 0.3, 0.3)
    assert tilings[0].smallest == (2, 1, 1)
    assert tilings[0].largest == 2
    assert tilings[3].shape_of(2) == (20, 8, 8)
    assert tilings[0].voxels((1, 1, 1)) == 36 * 16 * 8
    assert tilings[0].voxels((8, 8, 8)) == 5 * 2 * 1


def test_neighbours_share_a_face_an_edge_or_a_corner():
    tiling = even_tiling((16, 16, 24), (8, 8, 8), (2, 2, 3), rank=1)
    assert tiling.place_of(1) == (0, 0, 1)
    assert tiling.neighbours == {
        (0, 0, -1): 0, (0, 0, 1): 2, (0, 1, -1): 3, (0, 1, 0): 4, (0, 1, 1): 5,
        (1, 0, -1): 6, (1, 0, 0): 7, (1, 0, 1): 8, (1, 1, -1): 9, (1, 1, 0): 10, (1, 1, 1): 11,
    }  # fmt: skip


def test_fewer_cells_than_tiles_are_no_tiling():
    with pytest.raises(ValueError, match="cells cannot be divided"):
        even_tiling((16, 16, 16), (8, 8, 8), (3, 1, 1))


@pytest.mark.parametrize(
    ("kernel", "stride", "rank", "forward", "backward"),
    [
        # A face of 6 x 4 voxels of 2 channels there; its gradient back.
        ((3, 3, 3), 1, 0, 6 * 4 * 2, 6 * 4 * 2),
        # Two voxels deep.
        ((5, 3, 3), 1, 0, 2 * 6 * 4 * 2, 2 * 6 * 4 * 2),
        # With a stride of 2 only the tile behind needs something, and only it has a gradient to send back.
        ((3, 3, 3), 2, 0, 6 * 4 * 2, 0),
        ((3, 3, 3), 2, 1, 0, 6 * 4 * 2),
        ((1, 3, 3), 1, 0, 0, 0),
    ],
)
def test_what_a_convolution_sends_by_hand(kernel, stride, rank, forward, backward):
    exchange = SilentExchange(even_tiling((16, 6, 4), (2, 2, 2), (2, 1, 1), rank))
    layer = in_tiles(nn.Sequential(nn.Conv3d(2, 3, kernel, stride, tuple(size // 2 for size in kernel))), exchange)
    result = layer(torch.ones(1, 2, 8, 6, 4, requires_grad=True))
    assert exchange.sent_bytes == 4 * forward
    result.sum().backward()
    assert exchange.sent_bytes == 4 * (forward + backward)


def test_a_tile_of_a_corner_sends_faces_edges_and_a_corner():
    exchange = SilentExchange(even_tiling((8, 8, 8), (4, 4, 4), (2, 2, 2)))
    layer = in_tiles(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)), exchange)
    layer(torch.ones(1, 1, 4, 4, 4))
    assert exchange.sent_bytes == 4 * (3 * 16 + 3 * 4 + 1)


def test_seconds_of_a_step_in_tiles_by_hand():
    speed = Speed(flops_per_second=100.0, seconds_per_pass=1.0, bytes_per_second=10.0)
    # 4 s of operations, 1 s for the pass; 3/4 of 20 bytes of gradients twice and 50 bytes of pieces: 8 s.
    assert step_seconds(speed, Parallel(space=(2, 2, 1)), [400], 20, 50) == 4 + 1 + 8


def test_a_forecast_is_of_the_largest_tile():
    plan = replace(plan_of_some_size(), patch=(50, 48, 48), batch=1)
    whole, tiles = (
        forecast_setting(plan, Parallel(space=space), device(), WORKLOAD) for space in ((1, 1, 1), (4, 1, 1))
    )
    # 25 cells of two voxels: 6, 6, 6 and 7.
    assert 7 / 25 < tiles.certain_gib / whole.certain_gib < 8 / 25
    assert tiles.flops == pytest.approx(whole.flops, rel=0.03)
    assert tiles.exchanged_gib > whole.exchanged_gib == 0


def test_tilings_halve_the_longest_side_while_there_are_cells():
    plan = replace(plan_of_some_size(), patch=(4, 24, 48))
    assert tilings(plan, 16) == [(1, 1, 2), (1, 2, 2), (1, 2, 4), (1, 4, 4)]
    assert tilings(replace(plan, patch=(2, 2, 4)), 16) == [(1, 1, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expanded_patch": (96, 96, 96)}, "tiles of a patch are no tiles of the expanded patch"),
        ({"loss": "dice_perimeter"}, "loss dice_perimeter looks at the neighbours of each voxel"),
        (
            {"kernels": ((3, 3, 3), (11, 3, 3))},
            "at level 1 of the network the thinnest tile of a patch has 4 voxels along z",
        ),
    ],
)
def test_what_tiles_cannot_do_is_refused(changes, message):
    plan = plan_of_some_size()
    if "kernels" in changes:
        plan = replace(plan, network=replace(plan.network, **changes))
    elif "loss" in changes:
        plan = replace(plan, training=replace(plan.training, **changes))
    else:
        plan = replace(plan, **changes)
    with pytest.raises(UserError, match=rf"setting tiny: parallel.space: .*{message}"):
        check_parallel(plan, Parallel(space=(6, 1, 1)))


def test_tiles_on_several_nodes_are_said_with_what_they_send():
    setting = Setting(name="tiny", parallel=Parallel(space=(2, 2, 1)))
    on_two, on_one = (device(most_devices=4, devices_per_node=count) for count in (2, 4))
    noted, choice = spread(plan_of_some_size(), setting, on_two, WORKLOAD)
    sent = gib(choice.forecast.exchanged_gib)
    assert any(f"4 tiles of a patch lie on 2 nodes, and each device sends {sent}" in note for note in noted.notes)
    assert not any("nodes" in note for note in spread(plan_of_some_size(), setting, on_one, WORKLOAD)[0].notes)


def test_the_smallest_level_is_that_of_the_thinnest_tile():
    plan = replace(plan_of_some_size(), patch=(20, 24, 24))
    assert smallest_extent(plan) == 10
    assert smallest_extent(replace(plan, parallel=Parallel(space=(3, 1, 1)))) == 3


def test_a_way_in_tiles_that_does_not_fit_says_what_would():
    plan = plan_of_some_size()
    choice = choose(plan, device(memory_gib=0.01, most_devices=2), WORKLOAD, fixed=Parallel(space=(2, 1, 1)))
    assert not choice.fits
    assert "as 2 × 1 × 1 tiles" in choice.reason
