"""Tensors that cross a stage's border: their gradients are the usual ones, and their memory is given up when used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megavoxel.network.blocks import InPlaceLeakyReLU
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.partition import Transfer
from megavoxel.training.pipeline import add_gradient, as_received, backward_root

WAY = Transfer(source=0, target=1, name="skip0")
VOXELS = 1000
BYTES = 4 * VOXELS


def received() -> Tensor:
    return torch.randn(1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(0))


def test_what_a_concatenation_has_copied_is_given_up():
    with MemoryTracker() as memory:
        gradients: dict[Transfer, Tensor] = {}
        tensor = as_received(torch.zeros(VOXELS), WAY, gradients)
        joined = torch.cat([tensor, tensor])
        del tensor
        assert memory.live == 2 * BYTES
        joined.backward(torch.ones(2 * VOXELS))
    assert gradients[WAY].equal(torch.full((VOXELS,), 2.0))


def test_what_a_block_needs_in_its_backward_pass_stays():
    gradients: dict[Transfer, Tensor] = {}
    whole = received()
    tensor = as_received(whole, WAY, gradients)
    tensor.square().sum().backward()
    torch.testing.assert_close(gradients[WAY], 2 * whole)


def test_without_gradients_a_tensor_enters_as_it_is():
    with torch.no_grad():
        tensor = torch.zeros(3)
        assert as_received(tensor, WAY, {}) is tensor


def test_what_was_sent_is_given_up_and_its_gradient_taken_when_the_backward_pass_begins():
    weight, asked = torch.ones(VOXELS, requires_grad=True), []

    def gradient() -> Tensor:
        asked.append(True)
        return torch.full((VOXELS,), 3.0)

    with MemoryTracker() as memory:
        root = backward_root(weight * 2, gradient)
        assert memory.live < BYTES
        assert not asked
        root.backward()
    assert weight.grad.equal(torch.full((VOXELS,), 6.0))


def test_a_skip_gets_the_gradients_of_both_its_uses():
    """That of the stage itself, and the one that came back; an activation that is a skip as well gets three."""
    weight = torch.ones(3, requires_grad=True)
    skip = weight * 2
    add_gradient(skip, lambda: torch.full((3,), 10.0))
    root = backward_root(skip, lambda: torch.full((3,), 100.0))
    torch.autograd.backward([root, skip.sum()])
    assert weight.grad.equal(torch.full((3,), 222.0))


def test_the_leaky_relu_is_pytorchs_and_keeps_one_tensor():
    image = received().requires_grad_()
    own, peer = InPlaceLeakyReLU(0.01), nn.LeakyReLU(0.01)
    norm = nn.InstanceNorm3d(1, affine=True)
    gradients = []
    for module in (own, peer):
        image.grad = None
        output = module(norm(image))
        output.backward(received())
        gradients.append((output, image.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    with MemoryTracker() as memory:
        output = own(norm(image))
        before = memory.live
        memory.reset_peak()
        output.backward(received())
    # The gradient that is given, that of the activation's input, and that of the norm's.
    assert memory.peak - before <= 3.1 * BYTES


def test_a_leaky_relu_in_place_of_what_somebody_needs_fails():
    image = received().requires_grad_()
    squared = image.square()
    needed = squared.sin()
    InPlaceLeakyReLU(0.01)(squared)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        needed.sum().backward()
