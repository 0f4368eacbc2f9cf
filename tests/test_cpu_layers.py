"""The layers with which a CPU predicts: the plain network's logits, whatever the network."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from helpers import tiny_plan
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.cpu_layers import laid, predict_on_cpu
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import NetworkPlan

CPU = torch.device("cpu")
NETWORK = NetworkPlan(
    channels=1, classes=3, features=(8, 12, 16), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
)  # fmt: skip
SHAPE = (10, 24, 20)
KINDS = {
    "plain": {},
    "two channels": {"channels": 2},
    "excitation": {"squeeze_excitation": 2},
    "nearest and pooling": {"upsampling": "nearest", "pooling": "max"},
    "batch norm": {"norm": "batch"},
    "residual": {"architecture": "residual", "convolutions_per_level": 1, "blocks": (1, 2, 2)},
    "coarser than the image": {"strides": ((1, 2, 2), (1, 2, 2), (2, 2, 2)), "features": (4, 8, 8)},
    "labels of a first stage": {"prior_channels": 2},
    "one level": {"features": (6,), "kernels": ((3, 3, 3),), "strides": ((1, 1, 1),)},
}


def networks(dtype: torch.dtype = torch.float32, **changes) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """The plain network, and the same for prediction; norms with weights that are not 1 and 0."""
    plain = SegmentationNetwork(replace(NETWORK, **changes), seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in [*plain.named_parameters(), *plain.named_buffers()]:
            if value.ndim == 1:
                value.copy_(torch.rand(value.shape, generator=generator) + ("weight" in name or "var" in name))
    fast = copy.deepcopy(plain)
    predict_on_cpu(fast, dtype)
    return plain, fast


def image_for(network: SegmentationNetwork, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 + torch.randn(count, network.plan.input_channels, *SHAPE, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
@torch.inference_mode()
def test_logits_are_those_of_the_plain_network(kind, count):
    plain, fast = networks(**KINDS[kind])
    image = image_for(plain, count)
    expected, found = plain(image)[0], fast(image)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_that_of_the_plain_network(kind):
    plain, fast = networks(torch.bfloat16, **KINDS[kind])
    image = image_for(plain)
    exact = plain(image)[0]
    with Precision(name="bfloat16", reason="test").autocast(CPU):
        own, other = ((network(image)[0].float() - exact).square().mean().sqrt() for network in (fast, plain))
    assert own < 1.1 * other


@torch.inference_mode()
def test_a_norm_of_values_far_from_zero_keeps_as_many_digits_as_that_of_the_plain_network():
    plain, fast = networks()
    for network in (plain, fast):
        next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d)).bias.fill_(100.0)
    image = image_for(plain)
    exact = copy.deepcopy(plain).double()(image.double())[0]
    own, other = ((network(image)[0] - exact).square().mean().sqrt() for network in (fast, plain))
    assert own < 2 * other


def test_weights_stay_as_they_are():
    plain, fast = networks(torch.bfloat16)
    with torch.inference_mode(), Precision(name="bfloat16", reason="test").autocast(CPU):
        fast(image_for(fast))
    for name, value in plain.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=0, atol=0)


def test_a_single_channel_is_laid_last_by_its_strides_too():
    tensor = torch.arange(24.0).view(1, 1, 2, 3, 4)
    found = laid(tensor, torch.float32)
    assert found.stride(1) == 1
    assert torch.equal(found, tensor)
    assert laid(found, torch.float32) is found


def test_a_network_that_works_tile_by_tile_keeps_its_layers():
    plan = tiny_plan()
    turned = replace(plan, inference=replace(plan.inference, tiles=(1, 1, 2)))
    made = [CasePredictor(one, [SegmentationNetwork(plan.network)], "float32", CPU) for one in (plan, turned)]
    assert [predictor.has_cpu_layers for predictor in made] == [True, False]


def test_a_key_keeps_the_plain_layers_whose_logits_are_the_same_but_for_rounding():
    plan = tiny_plan()
    plain = replace(plan, inference=replace(plan.inference, cpu_layers=False))
    made = [CasePredictor(one, [SegmentationNetwork(plan.network)], "float32", CPU) for one in (plan, plain)]
    assert [predictor.has_cpu_layers for predictor in made] == [True, False]
    image = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(4)).numpy()
    fast, slow = (torch.cat([torch.as_tensor(slab.logits) for slab in one.slabs(image)], dim=1) for one in made)
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)
