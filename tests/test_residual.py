"""The network with residual encoders: nnU-Net's own from its weights, how it starts, and that it can be cut."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import RESIDUAL, woken
from megavoxel.network.blocks import MeanOfCells, ResidualSum
from megavoxel.network.partition import cut_into_stages
from megavoxel.network.program import Block, Program, RunState
from megavoxel.network.segmentation import SegmentationNetwork, computed_again, convolution_names, parameter_count
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import residual_elements
from test_residual_plans import FLAT
from test_residual_plans import network_plan as full_width

ALL, PLANE, DEPTH = (2, 2, 2), (1, 2, 2), (2, 1, 1)
NETWORKS = {
    "three levels": {"features": (8, 16, 32), "strides": ((1, 1, 1), ALL, ALL), "size": (16, 16, 16)},
    "six levels, flat": {
        "features": (8, 16, 32, 64, 64, 64), "strides": FLAT, "size": (8, 64, 32),
        "kernels": ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 4),
    },
    "seven levels": {
        "features": (8, 16, 32, 32, 32, 32, 32), "size": (16, 32, 32),
        "strides": ((1, 1, 1), ALL, ALL, ALL, PLANE, DEPTH, (1, 1, 2)),
    },
}  # fmt: skip
"""Features end at a bound, as nnU-Net's do, so that some strides come without a change of the width."""


def network_plan(features, strides, kernels=None, **changes) -> NetworkPlan:
    levels = len(features)
    return NetworkPlan(
        channels=2, classes=3, architecture="residual", convolutions_per_level=1, features=features, strides=strides,
        kernels=kernels or ((3, 3, 3),) * levels, blocks=(1, 3, 4, 6, 6, 6, 6)[:levels], **changes,
    )  # fmt: skip


def made(name: str) -> tuple[SegmentationNetwork, Tensor]:
    """A network whose residual blocks add to their shortcuts, and an image.

    In float64: in float32, rounding moves activations over the kink of the leaky ReLU, and gradients with them.
    """
    keys = dict(NETWORKS[name])
    size = keys.pop("size")
    network = woken(SegmentationNetwork(network_plan(**keys), seed=1)).train()
    generator = torch.Generator().manual_seed(3)
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.2, generator=generator)
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return network.double(), image


def peer_name(name: str, plan: NetworkPlan) -> str:
    """nnU-Net's name of one of our parameters."""

    def part(match: str) -> str:
        return ("conv", "norm")[int(match)]

    def of_decoder(level: str) -> int:
        return len(plan.features) - 2 - int(level)

    rules = {
        r"encoder0_stem\.module\.(\d)": lambda m: f"encoder.stem.convs.0.{part(m[1])}",
        r"encoder(\d)_block(\d)_convolution1\.module\.shortcut\.(\d)\.(\d)": lambda m: (
            f"encoder.stages.{m[1]}.blocks.{m[2]}.skip.{m[3]}.{part(m[4])}"
        ),
        r"encoder(\d)_block(\d)_convolution(\d)\.module\.(\d)": lambda m: (
            f"encoder.stages.{m[1]}.blocks.{m[2]}.conv{int(m[3]) + 1}.{part(m[4])}"
        ),
        r"decoder(\d)_upsample\.module\.upsample": lambda m: f"decoder.transpconvs.{of_decoder(m[1])}",
        r"decoder(\d)_convolution0\.module\.(\d)": lambda m: f"decoder.stages.{of_decoder(m[1])}.convs.0.{part(m[2])}",
        r"head(\d)\.module": lambda m: f"decoder.seg_layers.{of_decoder(m[1])}",
    }
    own, kind = name.removeprefix("program.blocks.").rsplit(".", 1)
    (found,) = (rule(match) for pattern, rule in rules.items() if (match := re.fullmatch(pattern, own)))
    return f"{found}.{kind}"


def written_out(plan: NetworkPlan, weights: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Logits of all heads but the lowest, the finest first, of nnU-Net's network from weights by its names."""

    def convolved(x: Tensor, name: str, stride: tuple[int, ...] = (1, 1, 1)) -> Tensor:
        weight, bias = weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias")
        x = F.conv3d(x, weight, bias, stride, padding=tuple(extent // 2 for extent in weight.shape[2:]))
        return F.instance_norm(x, weight=weights[f"{name}.norm.weight"], bias=weights[f"{name}.norm.bias"], eps=1e-5)

    x, skips, logits = F.leaky_relu(convolved(image, "encoder.stem.convs.0"), 0.01), [], []
    for level, stride in enumerate(plan.strides):
        for block in range(plan.blocks[level]):
            name, step = f"encoder.stages.{level}.blocks.{block}", stride if block == 0 else (1, 1, 1)
            shortcut, skip = x, f"{name}.skip.{int(max(step) > 1)}"
            if max(step) > 1:
                shortcut = F.avg_pool3d(shortcut, step, step)
            if f"{skip}.conv.weight" in weights:
                shortcut = convolved(shortcut, skip)
            x = F.leaky_relu(convolved(x, f"{name}.conv1", step), 0.01)
            x = F.leaky_relu(convolved(x, f"{name}.conv2") + shortcut, 0.01)
        skips.append(x)
    for number, level in enumerate(range(len(skips) - 2, -1, -1)):
        name, step = f"decoder.transpconvs.{number}", plan.strides[level + 1]
        x = F.conv_transpose3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], step)
        x = F.leaky_relu(convolved(torch.cat([x, skips[level]], 1), f"decoder.stages.{number}.convs.0"), 0.01)
        head = f"decoder.seg_layers.{number}"
        if f"{head}.weight" in weights:
            logits.insert(0, F.conv3d(x, weights[f"{head}.weight"], weights[f"{head}.bias"]))
    return logits


def check_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Of parameters, in proportion to the largest gradient."""
    largest = max(float(parameter.grad.abs().max()) for parameter in wanted.values())
    for name, parameter in wanted.items():
        assert float((found[name].grad - parameter.grad).abs().max()) <= 1e-10 * largest, name


def total(logits: list[Tensor]) -> Tensor:
    """A loss in which no head is like another."""
    return sum(level.square().mean() * (number + 1) + level.mean() for number, level in enumerate(logits))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_the_network_written_out(name):
    network, image = made(name)
    plan = network.plan
    own = dict(network.named_parameters())
    theirs = {peer_name(key, plan): tensor.detach().clone().requires_grad_() for key, tensor in own.items()}
    found, wanted = network(image), written_out(plan, theirs, image)
    assert len(found) == len(wanted) == len(plan.features) - 2
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-10)
    total(found).backward()
    total(wanted).backward()
    check_gradients(own, {key: theirs[peer_name(key, plan)] for key in own})


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_nnunet_with_its_weights_by_name(name):
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="it is installed with nnU-Net, a peer"
    )
    network, image = made(name)
    plan, own = network.plan, dict(network.named_parameters())
    levels = len(plan.features)
    peer = unet.ResidualEncoderUNet(
        2, levels, plan.features, torch.nn.Conv3d, plan.kernels, plan.strides, plan.blocks[:levels], 3,
        (1,) * (levels - 1), conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )  # fmt: skip
    peer.double().load_state_dict({peer_name(key, plan): tensor for key, tensor in own.items()}, strict=False)
    theirs = dict(peer.named_parameters())
    found, wanted = network(image), peer(image)[: levels - 2]  # the lowest decoder level has no head here
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-10)
    total(found).backward()
    total(wanted).backward()
    check_gradients(own, {key: theirs[peer_name(key, plan)] for key in own})


@pytest.mark.parametrize(("levels", "strides", "parameters"), [(6, None, 102_349_612), (7, None, 141_889_775),
                                                               (6, FLAT, 101_271_788)])  # fmt: skip
def test_a_network_of_full_width_has_the_parameters_of_nnunets(levels, strides, parameters):
    """Without the head of the lowest decoder level, which has 963."""
    plan = full_width(levels, strides)
    if strides:
        plan = replace(plan, kernels=((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 4))
    with FakeTensorMode():
        assert parameter_count(SegmentationNetwork(plan)) == parameters


def test_every_block_begins_as_its_shortcut():
    network = SegmentationNetwork(network_plan((8, 16, 32), ((1, 1, 1), ALL, ALL)))
    ends = [module for module in network.modules() if isinstance(module, ResidualSum)]
    assert len(ends) == 1 + 3 + 4
    for end in ends:
        assert not end[1].weight.any()
        assert not end[1].bias.any()
    given = torch.randn(1, 8, 4, 6, 8)
    end = ends[1]  # the first of the second level: half the voxels, twice the width
    assert isinstance(end.shortcut[0], MeanOfCells)
    norm = end.shortcut[1][1]
    assert torch.equal(norm.weight, torch.ones(16))
    assert torch.equal(norm.bias, torch.zeros(16))
    expected = F.leaky_relu(F.instance_norm(F.conv3d(F.avg_pool3d(given, 2), end.shortcut[1][0].weight)), 0.01)
    torch.testing.assert_close(end(torch.randn(1, 16, 2, 3, 4), given), expected)


def test_the_cost_is_what_the_convolutions_put_out_where_every_stride_changes_the_width():
    plan = replace(full_width(4, deep_supervision=False), features=(4, 6, 8, 10), decoder_features=(3, 5, 7))
    elements = []
    network = SegmentationNetwork(plan)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.register_forward_hook(lambda _module, _input, output: elements.append(output.numel()))
    with torch.no_grad():
        network(torch.zeros(1, 1, 16, 16, 32))
    assert residual_elements(plan, (16, 16, 32)) == sum(elements)


@pytest.mark.parametrize("step", [(2, 2, 2), (1, 2, 2), (3, 1, 1)], ids=str)
def test_the_mean_of_cells_is_average_pooling_in_the_precision_of_its_input(step):
    x = torch.randn(2, 3, 6, 4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found, wanted = MeanOfCells(step)(x), F.avg_pool3d(x, step)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad((mean * wanted.detach()).sum(), x)[0] for mean in (found, wanted)))
    torch.testing.assert_close(MeanOfCells(step)(x.bfloat16()).float(), wanted, atol=0.01, rtol=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert MeanOfCells(step)(x.bfloat16()).dtype == torch.bfloat16


def test_a_program_cut_anywhere_has_the_logits_and_gradients_of_the_whole():
    network = woken(SegmentationNetwork(replace(full_width(3), **RESIDUAL, squeeze_excitation=2), seed=3))
    image = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    weights = list(network.parameters())
    wanted = network.program(image)
    gradients = torch.autograd.grad(total(list(wanted.values())), weights)
    names = [block.name for block in network.program]
    assert names[:5] == [
        "encoder0_stem", "encoder0_block0_convolution0", "encoder0_block0_convolution1", "encoder0_excitation",
        "encoder1_block0_convolution0",
    ]  # fmt: skip
    for cut in range(1, len(names)):
        state = RunState(activation=image)
        for stage in cut_into_stages(network.program, [0, cut]):
            state = stage.part_of(network.program).run(state)
        assert all(torch.equal(state.logits[name], logits) for name, logits in wanted.items()), names[cut]
        found = torch.autograd.grad(total(list(state.logits.values())), weights)
        assert all(map(torch.equal, found, gradients)), names[cut]


def test_a_cut_between_residual_blocks_sends_the_activation_once():
    program = SegmentationNetwork(replace(full_width(3), **RESIDUAL)).program
    names = [block.name for block in program]

    def sent(name: str) -> list[str]:
        first, _ = cut_into_stages(program, [0, names.index(name)])
        return [transfer.name for transfer in first.sends]

    assert sent("encoder1_block1_convolution0") == ["", "skip0"]
    assert sent("encoder1_block1_convolution1") == ["", "shortcut1_1", "skip0"]


def test_what_a_block_keeps_is_its_input():
    class Plus(torch.nn.Module):
        def forward(self, activation: Tensor, other: Tensor | float = 1.0) -> Tensor:
            return activation + other

    program = Program([Block("one", Plus(), keeps="given"), Block("sum", Plus(), pops=("given",), emits="sum")])
    assert program(torch.tensor([3.0]))["sum"].item() == 4 + 3
    with pytest.raises(ValueError, match="never popped: given"):
        Program([Block("one", Plus(), keeps="given")])
    with pytest.raises(ValueError, match="still waiting"):
        Program([Block("one", Plus(), keeps="given"), Block("two", Plus(), keeps="given")])


def test_blocks_keep_the_last_convolution_of_each_residual_block():
    program = SegmentationNetwork(replace(full_width(3), **RESIDUAL)).program
    kept = [name for name in convolution_names(program) if name not in computed_again(program, "blocks")]
    assert kept == [
        "encoder0_block0_convolution1", "encoder1_block0_convolution1", "encoder1_block1_convolution1",
        "encoder2_block0_convolution1", "encoder2_block1_convolution1", "decoder1_convolution0",
        "decoder0_convolution0",
    ]  # fmt: skip


def test_labels_of_a_first_stage_join_the_image_or_every_decoder_level():
    for fusion, entering in (("pre", 3), ("post", 1)):
        plan = replace(full_width(3), **RESIDUAL, prior_channels=2, fusion=fusion)
        network = SegmentationNetwork(plan)
        part = {block.name: block.module for block in network.program}
        assert part["encoder0_stem"][0].in_channels == entering
        joined = plan.features[0] * 2 + (2 if fusion == "post" else 0)
        assert part["decoder0_convolution0"][0].in_channels == joined
        assert network(torch.randn(1, 3, 4, 8, 8))[0].shape == (1, 3, 4, 8, 8)
