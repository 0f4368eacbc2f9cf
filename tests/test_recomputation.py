"""Tensors that are computed again: gradients are those of the plain network to the bit, and memory is saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from forecast_plan import plan_of_some_size
from helpers import RESIDUAL, woken
from megavoxel.config.setting import Parallel
from megavoxel.forecast.step import training_step
from megavoxel.network import recomputation
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.recomputation import computing_again, noted, remembered
from megavoxel.network.segmentation import SegmentationNetwork, computed_again, convolution_names
from megavoxel.planning.plan import NetworkPlan

VARIANTS = {
    "plain": {},
    "batch norm": {"norm": "batch"},
    "pooling": {"pooling": "max", "upsampling": "nearest"},
    "excitation": {"squeeze_excitation": 2},
    "three convolutions": {"convolutions_per_level": 3},
    "one convolution": {"convolutions_per_level": 1},
    "labels of a first stage": {"prior_channels": 2, "fusion": "post"},
    "coarse first level": {"strides": ((2, 2, 2), (2, 2, 2), (1, 2, 2))},
    "residual": RESIDUAL,
    "residual, batch norm, labels of a first stage": RESIDUAL | {"norm": "batch", "prior_channels": 2},
    "residual, excitation, coarse first level": RESIDUAL
    | {"squeeze_excitation": 2, "strides": ((1, 2, 2), (2, 2, 2), (1, 2, 2))},
}
LISTED = (
    "encoder0_convolution0", "encoder0_stem", "encoder1_block0_convolution1", "encoder1_block1_convolution0",
    "encoder1_block1_convolution1", "decoder1_convolution0",
)  # fmt: skip
"""Of the U-Net and of residual encoders."""
WAYS = ("norms", "blocks", LISTED)


def network_plan(**changes) -> NetworkPlan:
    keys = {
        "channels": 1, "classes": 3, "features": (4, 8, 8), "kernels": ((3, 3, 3),) * 3,
        "strides": ((1, 1, 1), (2, 2, 2), (1, 2, 2)),
    }  # fmt: skip
    return NetworkPlan(**{**keys, **changes})


def step(plan: NetworkPlan, checkpointing, precision: torch.dtype, samples: int = 2) -> list[torch.Tensor]:
    """Loss, gradients and running statistics of a step with channels last, as in training."""
    network = woken(SegmentationNetwork(plan, seed=2, checkpointing=checkpointing))
    network.to(memory_format=torch.channels_last_3d)
    image = torch.randn(samples, plan.input_channels, 9, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = network.train()(image)
    loss = sum(level.float().square().mean() for level in logits)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in network.parameters()), *network.buffers()]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradients_and_running_statistics_are_those_of_the_plain_network_to_the_bit(variant, precision):
    plan = network_plan(**VARIANTS[variant])
    ways = [way for way in WAYS if isinstance(way, str) or "one" not in variant]
    expected = step(plan, "none", precision)
    for way in ways:
        for plain, again in zip(expected, step(plan, way, precision), strict=True):
            assert torch.equal(plain, again), way


def test_a_single_sample_has_the_gradients_of_a_network_with_channels_first():
    network = SegmentationNetwork(network_plan(), seed=2)
    image = torch.randn(1, 1, 9, 16, 16, generator=torch.Generator().manual_seed(1))
    sum(level.square().mean() for level in network(image)).backward()
    expected = [parameter.grad for parameter in network.parameters()]
    for way in ("none", *WAYS):
        _, *found = step(network_plan(), way, torch.float32, samples=1)
        for plain, again in zip(expected, found, strict=True):
            torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["plain", "residual"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nothing_is_left_behind_a_step(variant, way):
    with MemoryTracker() as memory:
        network = SegmentationNetwork(network_plan(**VARIANTS[variant]), checkpointing=way).train()
        image, before = torch.randn(1, 1, 8, 16, 16), memory.live
        loss = sum(level.square().mean() for level in network(image))
        loss.backward()
        gradients = sum(parameter.grad.nbytes for parameter in network.parameters())
        assert memory.live - before - image.nbytes <= gradients + loss.nbytes
    assert not len(recomputation._RECIPES)


def test_a_second_backward_pass_gives_the_same_gradients():
    network = SegmentationNetwork(network_plan(), checkpointing="blocks").train()
    loss = sum(level.square().mean() for level in network(torch.randn(1, 1, 8, 16, 16)))
    weights = list(network.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, weights)))


def test_a_network_that_predicts_remembers_nothing():
    network = SegmentationNetwork(network_plan(), checkpointing="blocks").eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 8, 16, 16))
    assert not len(recomputation._RECIPES)
    assert logits[0].shape == (1, 3, 8, 16, 16)


def test_blocks_keep_one_convolution_per_level_and_side():
    program = SegmentationNetwork(network_plan(convolutions_per_level=3)).program
    kept = [name for name in convolution_names(program) if name not in computed_again(program, "blocks")]
    assert kept == [
        "encoder0_convolution2", "encoder1_convolution2", "encoder2_convolution2",
        "decoder1_convolution0", "decoder0_convolution0",
    ]  # fmt: skip


def test_a_remembered_tensor_is_made_once_for_functions_that_follow_one_another():
    calls = []

    def doubled(tensor):
        calls.append(tensor)
        return 2 * tensor

    start = torch.ones(4, requires_grad=True)
    with computing_again():
        twice = remembered(doubled, start)
        result = (twice.exp() + twice.square() * twice.sin()).sum()
    del twice
    calls.clear()
    result.backward()
    assert len(calls) == 1
    plain = torch.ones(4, requires_grad=True)
    (plain.mul(2).exp() + plain.mul(2).square() * plain.mul(2).sin()).sum().backward()
    assert torch.equal(start.grad, plain.grad)


def test_a_function_that_runs_again_is_given_what_it_noted():
    asked = []

    def plus_what_others_say(tensor):
        return tensor + noted(lambda: asked.append("?") or float(len(asked)))

    start = torch.ones(2, requires_grad=True)
    with computing_again():
        remembered(plus_what_others_say, start).square().sum().backward()
    assert asked == ["?"]
    assert start.grad.tolist() == [4.0, 4.0]
    assert plus_what_others_say(start).tolist() == [3.0, 3.0]


def nnunet(patch: tuple[int, ...], classes: int, levels: int = 6):
    """A setting with nnU-Net's network of full width, batch 2."""
    network = NetworkPlan(
        channels=1, classes=classes, features=tuple(min(320, 32 * 2**level) for level in range(levels)),
        kernels=((3, 3, 3),) * levels, strides=((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
    )  # fmt: skip
    plan = plan_of_some_size()
    labels = {f"label{number}": number for number in range(1, classes)}
    return replace(
        plan, patch=patch, batch=2, network=network, preprocessing=replace(plan.preprocessing, labels=labels)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "classes", "bound"), [((128, 128, 128), 4, 0.65), ((64, 384, 384), 16, 0.60)], ids=str
)
def test_the_peak_of_a_step_of_full_width(patch, classes, bound):
    costs = {
        way: training_step(
            nnunet(patch, classes), samples=2, parallel=Parallel(checkpointing=way), precision="bfloat16"
        )
        for way in ("none", "norms", "blocks")
    }
    assert costs["norms"].peak_bytes <= bound * costs["none"].peak_bytes
    assert costs["blocks"].peak_bytes < costs["norms"].peak_bytes


@pytest.mark.slow
def test_what_is_held_after_the_forward_pass():
    held = {}
    for way in ("none", "norms", "blocks"):
        with FakeTensorMode(), MemoryTracker() as memory:
            network = SegmentationNetwork(nnunet((128,) * 3, 4).network, checkpointing=way).train()
            image = torch.zeros(2, 1, 128, 128, 128)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(image)
            held[way] = memory.live
            del logits
    assert held["norms"] <= 0.56 * held["none"]
    assert held["blocks"] <= 0.36 * held["none"]
