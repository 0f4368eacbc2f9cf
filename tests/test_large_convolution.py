"""Convolutions in slabs give what PyTorch gives at once."""

from __future__ import annotations

import pytest
import torch

from megavoxel.network import large_convolution
from megavoxel.network.large_convolution import convolution_backward, convolved, gradients_of_convolution
from megavoxel.network.recomputation import memory_format_of

ALL = (True, True, True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=["first", "last"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (5, 3, 7)], ids=str)
def test_slabs_give_result_and_gradients_of_one_call(kernel, stride, memory_format, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 17, 9, 8, generator=generator, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight = torch.randn(4, 3, *kernel, generator=generator, dtype=torch.float64).contiguous(
        memory_format=memory_format
    )
    bias, padding = torch.randn(4, generator=generator, dtype=torch.float64), [extent // 2 for extent in kernel]
    whole = torch.nn.functional.conv3d(x, weight, bias, stride, padding)
    gradient = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    wanted = convolution_backward(gradient, x, weight, [4], stride, padding, [1, 1, 1], False, [0, 0, 0], 1, list(ALL))
    calls = []
    monkeypatch.setattr(large_convolution, "convolution", counted(large_convolution.convolution, calls))
    for largest in (x.numel(), 700, 1):
        monkeypatch.setattr(large_convolution, "LARGEST_CALL", largest)
        calls.clear()
        found = convolved(x, weight, bias, stride, padding)
        assert len(calls) > 1
        assert memory_format_of(found) == memory_format_of(whole)
        torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)
        parts = gradients_of_convolution(gradient, x, weight, stride, padding, ALL)
        for part, own in zip(parts, wanted, strict=True):
            torch.testing.assert_close(part, own, rtol=1e-12, atol=1e-12)


def counted(function, calls):
    def count(*arguments):
        calls.append(arguments[0].shape)
        return function(*arguments)

    return count


@pytest.mark.parametrize(("largest", "planes"), [(5 * 16 * 40, [40]), (5 * 16 * 40 - 1, [10] * 5)])
def test_only_a_call_that_would_be_too_large_is_divided(largest, planes, monkeypatch):
    x, weight = torch.zeros(1, 2, 40, 4, 4), torch.zeros(3, 2, 3, 3, 3)
    monkeypatch.setattr(large_convolution, "LARGEST_CALL", largest)
    calls = []
    monkeypatch.setattr(large_convolution, "convolution", counted(large_convolution.convolution, calls))
    assert convolved(x, weight, None, [1, 1, 1], [1, 1, 1]).shape == (1, 3, 40, 4, 4)
    # Slabs have a quarter of what is allowed: here eight planes, and the one beside them at either side.
    assert [shape[2] for shape in calls] == planes


def test_what_is_not_wanted_is_none():
    x, weight = torch.ones(1, 1, 4, 4, 4), torch.ones(1, 1, 3, 3, 3)
    found = gradients_of_convolution(torch.ones(1, 1, 4, 4, 4), x, weight, [1, 1, 1], [1, 1, 1], (False, True, False))
    assert found[0] is None
    assert found[2] is None
    assert found[1][0, 0, 1, 1, 1] == 64
