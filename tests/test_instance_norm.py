"""Instance norm with channels last: values and gradients are PyTorch's own, and the layout stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megavoxel.network.blocks import InstanceNorm
from megavoxel.network.recomputation import has_channels_last

SHAPES = ((2, 4, 3, 5, 6), (1, 3, 4, 2, 7), (3, 32, 6, 8, 8))
LAST = torch.channels_last_3d


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 1


def passed(norm: nn.Module, image: Tensor, slope: Tensor) -> list[Tensor]:
    """Result and gradients of the image, the scales and the offsets."""
    leaf = image.detach().requires_grad_()
    result = norm(leaf)
    result.backward(slope)
    return [result.detach(), leaf.grad, norm.weight.grad, norm.bias.grad]


def both(shape: tuple[int, ...], kind: torch.dtype, layout: torch.memory_format = LAST) -> zip:
    """What ours gives with channels last, beside what PyTorch's gives in float64 with channels first."""
    own, plain = InstanceNorm(shape[1], affine=True), nn.InstanceNorm3d(shape[1], affine=True).double()
    with torch.no_grad():
        for norm in (own, plain):
            norm.weight.copy_(torch.linspace(0.5, 2, shape[1]))
            norm.bias.copy_(torch.linspace(-1, 1, shape[1]))
    if kind == torch.float64:
        own.double()
    image, slope = drawn(shape, 0).to(kind), drawn(shape, 1).to(kind)
    found = passed(own, image.contiguous(memory_format=LAST), slope.contiguous(memory_format=layout))
    assert has_channels_last(found[0])
    assert has_channels_last(found[1])
    assert found[0].dtype == kind
    return zip(found, passed(plain, image.double(), slope.double()), strict=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_values_and_gradients_are_those_of_channels_first(shape, kind, bound):
    for found, expected in both(shape, kind):
        assert (found.double() - expected).abs().max() <= bound * expected.abs().max()


def test_a_gradient_with_channels_first_is_taken_as_well():
    for found, expected in both(SHAPES[0], torch.float32, torch.contiguous_format):
        assert (found.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_channels_first_stay_first_and_are_pytorchs_to_the_bit():
    image = drawn(SHAPES[0], 0)
    result = InstanceNorm(4, affine=True)(image)
    assert result.is_contiguous()
    assert torch.equal(result, nn.InstanceNorm3d(4, affine=True)(image))


def test_one_voxel_is_refused_as_by_pytorch():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        InstanceNorm(4, affine=True)(torch.ones(2, 4, 1, 1, 1).contiguous(memory_format=LAST))
