"""The block program against networks written out by hand, and its checks."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megavoxel.config.setting import Network
from megavoxel.network.architectures import BLOCKS
from megavoxel.network.program import Block, Place, Program, RunState, head_name
from megavoxel.network.segmentation import SegmentationNetwork, parameter_count
from megavoxel.network.unet import unet_blocks
from megavoxel.planning.architectures import ARCHITECTURES
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import shape_of


def network_plan(**changes) -> NetworkPlan:
    keys = {
        "channels": 1,
        "classes": 3,
        "features": (4, 8, 8, 16),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
    }
    return NetworkPlan(**{**keys, **changes})


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, activation):
        return self.factor * activation


class Add(nn.Module):
    def forward(self, activation, skip):
        return activation + 10 * skip


def test_a_popped_stash_reaches_the_block_that_pops_it():
    program = Program(
        [
            Block("twice", Times(2), stash="kept"),
            Block("thrice", Times(3)),
            Block("add", Add(), pops=("kept",)),
            Block("head", Times(-1), emits="sum"),
        ]
    )
    state = program.run(RunState(activation=torch.tensor([1.0])))
    assert state.activation.item() == 6 + 20
    assert state.logits["sum"].item() == -26
    assert state.stashed == {}


@pytest.mark.parametrize(
    ("blocks", "fault"),
    [
        ([Block("a", nn.Identity()), Block("a", nn.Identity())], "two blocks are called 'a'"),
        ([Block("a", Add(), pops=("x",))], "pops 'x'"),
        ([Block("a", nn.Identity(), stash="x")], "never popped: x"),
        ([Block("a", nn.Identity(), stash="x"), Block("b", nn.Identity(), stash="x")], "still waiting"),
    ],
)
def test_a_program_that_cannot_run_is_refused(blocks, fault):
    with pytest.raises(ValueError, match=fault):
        Program(blocks)


def test_a_program_cut_in_two_computes_what_the_whole_computes():
    network = SegmentationNetwork(network_plan(), seed=3)
    image = torch.randn(2, 1, 8, 16, 16)
    whole = network.program(image)
    blocks = list(network.program)
    state = RunState(activation=image)
    for cut in range(1, len(blocks)):
        state = RunState(activation=image)
        first = blocks[:cut]
        crossing = {b.stash for b in first if b.stash} - {name for b in first for name in b.pops}
        Program(first, outputs=crossing).run(state)
        assert set(state.stashed) == crossing
        Program(blocks[cut:], inputs=crossing).run(state)
        for name, logits in whole.items():
            assert torch.equal(state.logits[name], logits)


class PlainUNet(nn.Module):
    """The same network written out, sharing the parameters of a program."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.parts = {block.name: block.module for block in program}

    def forward(self, image):
        part = self.parts
        first = part["encoder0_convolution1"](part["encoder0_convolution0"](image))
        second = part["encoder1_convolution1"](part["encoder1_convolution0"](first))
        third = part["encoder2_convolution1"](part["encoder2_convolution0"](second))
        bottom = part["encoder3_convolution1"](part["encoder3_convolution0"](third))
        up = torch.cat([part["decoder2_upsample"].upsample(bottom), third], 1)
        up = part["decoder2_convolution1"](part["decoder2_convolution0"](up))
        up = torch.cat([part["decoder1_upsample"].upsample(up), second], 1)
        up = part["decoder1_convolution1"](part["decoder1_convolution0"](up))
        deep = part["head1"](up)
        up = torch.cat([part["decoder0_upsample"].upsample(up), first], 1)
        return part["head0"](part["decoder0_convolution1"](part["decoder0_convolution0"](up))), deep


def test_the_program_equals_the_u_net_written_out():
    network = SegmentationNetwork(network_plan(), seed=1)
    image = torch.randn(2, 1, 8, 16, 16)
    full, deep = PlainUNet(network.program)(image)
    logits = network(image)
    assert torch.equal(logits[0], full)
    assert torch.equal(logits[1], deep)


def test_max_pooling_batch_norm_nearest_voxels_and_channels_of_their_own_written_out():
    """The channels and operations of Wang et al. (2022), appendix, in small: five numbers down, four up."""
    plan = network_plan(
        features=(2, 4, 8, 8, 8), decoder_features=(2, 2, 4, 8), kernels=((3, 3, 3),) * 5, norm="batch", pooling="max",
        strides=((1, 1, 1), *((2, 2, 2),) * 4), upsampling="nearest", convolutions_per_level=1,
    )  # fmt: skip
    network = SegmentationNetwork(plan, seed=2)
    weights = network.state_dict()
    image = torch.randn(2, 1, 16, 32, 16)

    def convolved(x: torch.Tensor, name: str) -> torch.Tensor:
        prefix = next(
            key.removesuffix("0.weight")
            for key in weights
            if key.startswith(f"program.blocks.{name}.") and key.endswith("0.weight") and weights[key].dim() == 5
        )
        x = F.conv3d(x, weights[f"{prefix}0.weight"], weights[f"{prefix}0.bias"], padding=1)
        x = F.batch_norm(x, None, None, weights[f"{prefix}1.weight"], weights[f"{prefix}1.bias"], training=True)
        return F.leaky_relu(x, 0.01)

    skips = [convolved(image, "encoder0_convolution0")]
    for level in range(1, 5):
        skips.append(convolved(F.max_pool3d(skips[-1], 2), f"encoder{level}_convolution0"))
    x, logits = skips.pop(), {}
    for level in range(3, -1, -1):
        x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], dim=1)
        x = convolved(x, f"decoder{level}_convolution0")
        if level < 3:
            head = f"program.blocks.head{level}.module"
            logits[level] = F.conv3d(x, weights[f"{head}.weight"], weights[f"{head}.bias"])
    for ours, level in zip(network(image), range(3), strict=True):
        torch.testing.assert_close(ours, logits[level])
    assert not skips


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_a_first_level_that_is_coarser_than_the_image_written_out(upsampling):
    """The level's own part is the network without that stride, on an image that a convolution has made coarser."""
    strides = ((1, 2, 2), (2, 2, 2))
    plan = network_plan(
        features=(4, 8), kernels=((1, 3, 3), (3, 3, 3)), strides=strides, upsampling=upsampling, deep_supervision=False
    )
    network = SegmentationNetwork(plan, seed=6)
    part = {block.name: block.module for block in network.program}
    assert part["encoder0_convolution0"][0].stride == strides[0]
    image = torch.randn(2, 1, 4, 16, 8)
    first = part["encoder0_convolution1"](part["encoder0_convolution0"](image))
    assert first.shape[2:] == (4, 8, 4)
    second = part["encoder1_convolution1"](part["encoder1_convolution0"](first))
    up = torch.cat([part["decoder0_upsample"].upsample(second), first], 1)
    up = part["decoder0_convolution1"](part["decoder0_convolution0"](up))
    weights, head = network.state_dict(), "program.blocks.head0.module"
    if upsampling == "nearest":
        restored = F.interpolate(up, scale_factor=(1, 2, 2), mode="nearest")
    else:
        name = "program.blocks.full_upsample.module.0"
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        assert kernel.shape == (4, 2, 1, 2, 2)
        restored = F.leaky_relu(F.conv_transpose3d(up, kernel, bias, stride=(1, 2, 2)), 0.01)
    expected = F.conv3d(restored, weights[f"{head}.weight"], weights[f"{head}.bias"], padding=(0, 1, 1))
    (logits,) = network(image)
    assert logits.shape == (2, 3, 4, 16, 8)
    torch.testing.assert_close(logits, expected)


def test_deeper_heads_of_a_coarse_first_level_are_as_coarse_as_their_levels():
    network = SegmentationNetwork(network_plan(strides=((2, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2))), seed=4)
    image = torch.randn(1, 1, 7, 13, 18)
    full, deep = network(image)
    assert full.shape == (1, 3, 7, 13, 18)
    assert deep.shape == (1, 3, 4, 4, 5)
    assert network.shape.logits_strides[:2] == ((1, 1, 1), (2, 4, 4))


def test_the_network_equals_monais_dynunet_given_its_weights():
    """MONAI's DynUNet is the same architecture: with our weights copied in order, its logits are ours."""
    monai_nets = pytest.importorskip("monai.networks.nets")
    # DynUNet gives the first decoder level the second level's kernel, so all kernels are equal here.
    plan = network_plan(deep_supervision=False, kernels=((3, 3, 3),) * 4)
    ours = SegmentationNetwork(plan, seed=5).eval()
    theirs = monai_nets.DynUNet(
        3, 1, 3, plan.kernels, plan.strides, plan.strides[1:], plan.features,
        norm_name=("INSTANCE", {"affine": True}), act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        trans_bias=True,
    ).eval()  # fmt: skip
    convolutions = {
        f"encoder{0}": theirs.input_block,
        "encoder1": theirs.downsamples[0],
        "encoder2": theirs.downsamples[1],
        "encoder3": theirs.bottleneck,
        "decoder2": theirs.upsamples[0].conv_block,
        "decoder1": theirs.upsamples[1].conv_block,
        "decoder0": theirs.upsamples[2].conv_block,
    }
    part = {block.name: block.module for block in ours.program}
    with torch.no_grad():
        for name, block in convolutions.items():
            for index, (conv, norm) in enumerate(((block.conv1, block.norm1), (block.conv2, block.norm2))):
                mine = part[f"{name}_convolution{index}"]
                conv.conv.weight.copy_(mine[0].weight)
                mine[0].bias.zero_()  # DynUNet's convolutions have none; the normalisation takes it away anyway
                norm.load_state_dict(mine[1].state_dict())
        for index, level in enumerate((2, 1, 0)):
            theirs.upsamples[index].transp_conv.conv.load_state_dict(
                part[f"decoder{level}_upsample"].upsample.state_dict()
            )
        theirs.output_block.conv.conv.load_state_dict(part["head0"].state_dict())
        image = torch.randn(1, 1, 8, 16, 16)
        torch.testing.assert_close(ours(image)[0], theirs(image), atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_neither_loss_nor_gradients():
    image = torch.randn(1, 1, 8, 16, 16)
    gradients = []
    for checkpointing in ("none", "norms", "blocks"):
        network = SegmentationNetwork(network_plan(), seed=2, checkpointing=checkpointing)
        loss = sum(logits.square().mean() for logits in network(image))
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in network.parameters())])
    for plain, *others in zip(*gradients, strict=True):
        assert all(torch.equal(plain, again) for again in others)


def test_an_image_that_is_no_multiple_of_the_stride_is_padded_at_its_end_and_cropped_back():
    network = SegmentationNetwork(network_plan(), seed=4)
    image = torch.randn(1, 1, 7, 13, 18)
    logits = network(image)
    assert logits[0].shape == (1, 3, 7, 13, 18)
    assert logits[1].shape == (1, 3, 7, 7, 9)
    padded = network(F.pad(image, (0, 6, 0, 3, 0, 1)))
    assert torch.equal(logits[0], padded[0][:, :, :7, :13, :18])


def test_evaluation_gives_the_full_resolution_only():
    network = SegmentationNetwork(network_plan(), seed=4).eval()
    assert len(network(torch.zeros(1, 1, 4, 8, 8))) == 1


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second = (SegmentationNetwork(network_plan(), seed=9) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_strides_multiply_and_parameters_are_counted():
    plan = network_plan(
        features=(2, 4), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (1, 2, 2)), deep_supervision=False
    )
    assert shape_of(plan).strides == ((1, 1, 1), (1, 2, 2))
    assert [block.name for block in unet_blocks(plan)][-1] == "head0"
    # convolutions 1-2 2-2 2-4 4-4 4-2 2-2 (27 weights each) with biases and two norm parameters per channel,
    # transposed 4-2 (4 weights), head 2-3
    weights = 27 * (2 + 4 + 8 + 16 + 8 + 4) + 4 * 8 + 6
    others = 3 * (2 + 2 + 4 + 4 + 2 + 2) + 2 + 3
    assert parameter_count(SegmentationNetwork(plan)) == weights + others
    assert head_name(0) == "level0"


def test_every_architecture_that_a_study_can_name_has_blocks_and_a_half_for_the_planner():
    named = get_args(get_type_hints(Network)["architecture"])
    assert set(named) == set(BLOCKS) == set(ARCHITECTURES)


def test_a_block_says_what_it_is():
    places = {block.name: block.place for block in unet_blocks(network_plan(pooling="max", squeeze_excitation=2))}
    assert places["encoder1_pooling"] == Place(side="encoder", level=1, kind="pooling")
    assert places["encoder1_convolution0"] == Place(side="encoder", level=1, kind="convolution")
    assert places["encoder1_excitation"] == Place(side="encoder", level=1, kind="excitation")
    assert places["decoder1_upsample"] == Place(side="decoder", level=1, kind="upsampling")
    assert places["decoder1_convolution1"] == Place(side="decoder", level=1, kind="convolution")
    assert places["head1"] == Place(side="head", level=1, kind="logits")
    assert None not in places.values()
