"""What operations compute, read and write, and what of it a processor does for channels that fill no instruction."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.hardware import load_hardware
from megavoxel.forecast.duration import speed_of
from megavoxel.forecast.step import StepCost
from megavoxel.network.blocks import InstanceNorm
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.work import ANY, Work

LAST = torch.channels_last_3d


def work_of(made: int, given: int = 32) -> Work:
    """A 3 x 3 x 3 convolution of two samples of 4³ voxels with channels last, its norm, and their backward passes."""
    with FakeTensorMode(), MemoryTracker() as memory:
        image = torch.zeros(2, given, 4, 4, 4, requires_grad=True).contiguous(memory_format=LAST)
        weight = torch.zeros(made, given, 3, 3, 3, requires_grad=True).contiguous(memory_format=LAST)
        convolved = torch.nn.functional.conv3d(image, weight, padding=1)
        InstanceNorm(made, affine=True)(convolved).sum().backward()
    return memory.work


def test_convolutions_are_counted_by_the_channels_that_they_make():
    one = 2 * 27 * 2 * 64 * 32 * 24
    # Forward and the gradient of the weights make 24 channels, the gradient of the image its own 32.
    assert work_of(24).flops == {24: 2 * one, 32: one}
    assert work_of(24).flops_in_groups(1) == 3 * one
    assert work_of(24).flops_in_groups(16) == pytest.approx(2 * one * 32 / 24 + one)
    assert work_of(24).flops_in_groups(8) == 3 * one


def test_of_norms_left_over_channels_take_the_time_of_two_groups():
    activation = 4 * 2 * 64 * 24
    # Forward: the activation in and out; backward: two in, one out; and a few numbers per channel.
    assert work_of(24).touched[24] == pytest.approx(5 * activation, rel=0.06)
    assert Work(touched={24: 24, ANY: 7}).touched_in_groups(16) == 16 + 2 * 16 + 7
    assert Work(touched={32: 32, 8: 8}).touched_in_groups(16) == 32 + 2 * 16


def test_memory_that_is_only_taken_and_questions_of_a_tensor_are_not_work():
    with FakeTensorMode(), MemoryTracker() as memory:
        made = torch.empty_like(torch.empty(8, 8))
        assert made.device.type == "cpu"
        made.add_(1)
    assert memory.work.touched == {ANY: 2 * 8 * 8 * 4}


def test_amounts_of_work_add_up_and_repeat():
    one = Work(flops={16: 3, 24: 1}, touched={ANY: 5})
    assert one + one == 2 * one
    assert 3 * one - one == one * 2
    assert round(one * 0.4) == Work(flops={16: 1, 24: 0}, touched={ANY: 2})


def test_a_processors_time_goes_by_whole_groups_of_channels(repository):
    devices = load_hardware(repository / "config/hardware.yaml")
    own, even = (
        StepCost(peak_bytes=0, resident_bytes=0, workspace_bytes=0, parameter_bytes=0, work=Work(flops={made: 960.0}))
        for made in (24, 32)
    )
    ratios = {name: speed_of(devices[name], "bfloat16") for name in ("cpu", "h100")}
    assert {name: speed.operations(own) / speed.operations(even) for name, speed in ratios.items()} == {
        "cpu": pytest.approx(4 / 3), "h100": 1.0,
    }  # fmt: skip
