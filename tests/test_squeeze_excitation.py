"""SE-U-Net: the excitation by hand and against MONAI's, its place in the block program, cuts, memory and study key."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import ChannelSELayer

from helpers import tiny_plan
from megavoxel.config.setting import Network, Parallel
from megavoxel.config.study_file import parse_study
from megavoxel.errors import UserError
from megavoxel.forecast.pipeline import stage_costs
from megavoxel.forecast.step import training_step
from megavoxel.network.blocks import squeeze_excitation
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.program import RunState
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.unet import unet_blocks
from megavoxel.planning.plan import NetworkPlan, load_plan, save_plan
from megavoxel.planning.topology import convolution_elements, shape_of
from megavoxel.training.step import train_step
from test_expansion import batch_of, expanded_plan, gradients_the_slow_way, started
from test_forecast_memory import forecast_and_measured
from test_planner import planned
from test_program import network_plan

PLAIN = network_plan()
"""Four levels of 4, 8, 8 and 16 channels, deep supervision of the first two."""
EXCITED = replace(PLAIN, squeeze_excitation=4)
VARIANTS = [{}, {"norm": "batch", "pooling": "max"}, {"upsampling": "nearest", "convolutions_per_level": 1}]


def images() -> torch.Tensor:
    return torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))


def test_an_excitation_by_hand():
    """Two channels, one unit between the layers; what is one sample's counts for no other."""
    layer = squeeze_excitation(2, 2)
    inward, outward = layer.fc[0], layer.fc[2]
    with torch.no_grad():
        inward.weight.copy_(torch.tensor([[1.0, 2.0]]))
        outward.weight.copy_(torch.tensor([[0.0], [math.log(3)]]))
        inward.bias.zero_()
        outward.bias.zero_()
    # Means 3 and -1: 3 - 2 = 1 stays 1; sigmoid of 0 and of log 3. Means 0 and -50: -100 leaks as -1, so of -log 3.
    first = torch.tensor([[1.0, 2.0, 3.0, 6.0], [-1.0, -1.0, -2.0, 0.0]])
    second = torch.tensor([[4.0, -4.0, 1.0, -1.0], [-50.0, -50.0, -60.0, -40.0]])
    activation = torch.stack([first, second]).view(2, 2, 1, 2, 2)
    weights = torch.tensor([[1 / 2, 3 / 4], [1 / 2, 1 / 4]]).view(2, 2, 1, 1, 1)
    torch.testing.assert_close(layer(activation), weights * activation)


@pytest.mark.parametrize(("channels", "reduction", "units"), [(32, 16, 2), (24, 16, 1), (4, 16, 1), (8, 1, 8)])
def test_an_excitation_is_that_of_monai_with_at_least_one_unit(channels, reduction, units):
    ours = squeeze_excitation(channels, reduction)
    theirs = ChannelSELayer(3, channels, r=channels // units, acti_type_1=("leakyrelu", {"negative_slope": 0.01}))
    theirs.load_state_dict(ours.state_dict())
    activation = torch.randn(2, channels, 3, 4, 5)
    assert ours.fc[0].out_features == units
    torch.testing.assert_close(ours(activation), theirs(activation))


def test_autocast_keeps_the_precision_and_the_layout_and_makes_no_copy():
    """On a CPU, MONAI's pooling would be given a float32 copy of the whole level."""
    layer = squeeze_excitation(8, 4)
    activation = torch.randn(2, 8, 16, 16, 16).to(torch.bfloat16, memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16), MemoryTracker() as memory:
        excited = layer(activation)
    assert excited.dtype == torch.bfloat16
    assert excited.is_contiguous(memory_format=torch.channels_last_3d)
    assert memory.peak == pytest.approx(excited.nbytes, rel=0.01)


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_level_ends_with_one_excitation(changes):
    names = [block.name for block in unet_blocks(replace(EXCITED, **changes))]
    levels = [f"encoder{level}" for level in range(4)] + [f"decoder{level}" for level in (2, 1, 0)]
    assert [name for name in names if "excitation" in name] == [f"{level}_excitation" for level in levels]
    for level in levels:
        assert [name for name in names if name.startswith(level)][-1] == f"{level}_excitation"
    assert not any("excitation" in block.name for block in unet_blocks(replace(PLAIN, **changes)))


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_skip_that_is_popped_and_what_a_head_sees_are_excited(changes):
    network = SegmentationNetwork(replace(EXCITED, **changes), seed=1)
    made, taken = {}, {}
    for block in network.program:
        block.register_forward_hook(lambda block, _, output: made.update({block.name: output}))
        block.register_forward_pre_hook(lambda block, given: taken.update({block.name: given}))
    network(images())
    for level in range(3):
        assert taken[f"decoder{level}_upsample"][1] is made[f"encoder{level}_excitation"]
    for level in range(2):
        assert taken[f"head{level}"][0] is made[f"decoder{level}_excitation"]


def test_the_network_with_a_first_stage_equals_the_se_u_net_written_out():
    plan = replace(tiny_plan().network, squeeze_excitation=2, prior_channels=4)
    network = SegmentationNetwork(plan, seed=1)
    part = {block.name: block.module for block in network.program}

    def level(name: str, x: torch.Tensor) -> torch.Tensor:
        x = part[f"{name}_convolution1"](part[f"{name}_convolution0"](x))
        excitation = part[f"{name}_excitation"].fc
        hidden = F.leaky_relu(F.linear(x.mean(dim=(2, 3, 4)), excitation[0].weight, excitation[0].bias), 0.01)
        return x * torch.sigmoid(F.linear(hidden, excitation[2].weight, excitation[2].bias))[:, :, None, None, None]

    image, prior = torch.randn(2, 1, 8, 12, 12), (torch.rand(2, 4, 8, 12, 12) > 0.5).float()
    halved = F.interpolate(prior, size=(4, 6, 6), mode="nearest-exact")
    first = level("encoder0", image)
    second = level("encoder1", first)
    up = part["decoder1_upsample"].upsample(level("encoder2", second))
    up = part["decoder0_upsample"].upsample(level("decoder1", torch.cat([up, second, halved], dim=1)))
    expected = part["head0"](level("decoder0", torch.cat([up, first, prior], dim=1)))
    torch.testing.assert_close(network(torch.cat([image, prior], dim=1))[0], expected)


def through_two_devices(network: SegmentationNetwork, image: torch.Tensor, cut: int) -> dict[str, torch.Tensor]:
    """Logits of a program cut in two, whose parts share no graph; gradients are sent back over the cut."""
    state = network.program.run(RunState(activation=image), stop=cut)
    leaving = {"": state.activation, **state.stashed}
    arriving = {name: tensor.detach().requires_grad_() for name, tensor in leaving.items()}
    before = [logits.square().mean() for logits in state.logits.values()]
    stashed = {name: tensor for name, tensor in arriving.items() if name}
    behind = network.program.run(RunState(activation=arriving[""], stashed=stashed), start=cut)
    sum(logits.square().mean() for logits in behind.logits.values()).backward()
    gradients = [tensor.grad for tensor in arriving.values()]
    torch.autograd.backward([*leaving.values(), *before], [*gradients, *(torch.ones(()) for _ in before)])
    return {**state.logits, **behind.logits}


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS)
def test_a_cut_between_any_two_blocks_changes_neither_logits_nor_gradients(changes):
    network = SegmentationNetwork(replace(EXCITED, **changes), seed=3)
    image = images()
    whole = network.program(image)
    sum(logits.square().mean() for logits in whole.values()).backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    for cut in range(1, len(network.program)):
        network.zero_grad(set_to_none=True)
        parts = through_two_devices(network, image, cut)
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[name], logits) for name, logits in whole.items())
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], msg=f"cut {cut}: {name}")


@pytest.mark.parametrize("changes", VARIANTS)
def test_checkpointing_changes_neither_loss_nor_gradients(changes):
    gradients = []
    for checkpointing in ("none", "norms", "blocks"):
        network = SegmentationNetwork(replace(EXCITED, **changes), seed=2, checkpointing=checkpointing)
        loss = sum(logits.square().mean() for logits in network(images()))
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in network.parameters())])
        assert all(
            parameter.grad.abs().max() > 0 for name, parameter in network.named_parameters() if "excitation" in name
        )
    for plain, *others in zip(*gradients, strict=True):
        assert all(torch.equal(plain, again) for again in others)


@pytest.mark.parametrize("changes", VARIANTS)
def test_with_all_weights_one_it_is_the_plain_u_net(changes):
    """Its other parameters are those of the plain network, by name and shape."""
    excited = SegmentationNetwork(replace(EXCITED, **changes), seed=4)
    plain = SegmentationNetwork(replace(PLAIN, **changes), seed=5)
    plain.load_state_dict({name: value for name, value in excited.state_dict().items() if "excitation" not in name})
    expected = plain(images())
    assert not torch.allclose(excited(images())[0], expected[0], atol=1e-3)
    with torch.no_grad():
        for block in excited.program:
            if block.name.endswith("excitation"):
                block.module.fc[2].weight.zero_()
                block.module.fc[2].bias.fill_(30.0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(excited(images()), expected, strict=True))


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_the_expanded_patch_has_the_first_excitation_without_gradients(changes, checkpointing):
    keys = {"network": {"squeeze_excitation": 2, **changes}, "parallel": Parallel(checkpointing=checkpointing)}
    run = started(expanded_plan(**keys))
    image, target = batch_of(run.plan)
    expected = gradients_the_slow_way(run.plan, image, target)
    train_step(run, image, target)
    for name, parameter in run.network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)
    run = started(expanded_plan(**keys))
    run.network.forward_expanded(image).square().mean().backward()
    moved = {name.split(".")[2] for name, parameter in run.network.named_parameters() if parameter.grad is not None}
    assert {name for name in moved if name.endswith("excitation")} == {
        "encoder1_excitation", "encoder2_excitation", "decoder1_excitation",
    }  # fmt: skip


def lamp_plan(squeeze: int | None, *, size: int = 32):
    """LAMP's five levels, in small."""
    network = NetworkPlan(
        channels=1, classes=3, features=(8, 16, 32, 64, 128), kernels=((3, 3, 3),) * 5,
        strides=((1, 1, 1), *((2, 2, 2),) * 4), norm="batch", deep_supervision=False, squeeze_excitation=squeeze,
    )  # fmt: skip
    return replace(tiny_plan(training={"batch_dice": False}), patch=(size,) * 3, batch=2, network=network)


def excitation_parameters(features: tuple[int, ...], reduction: int) -> int:
    units = [max(1, channels // reduction) for channels in features]
    return sum(2 * width * channels + width + channels for channels, width in zip(features, units, strict=True))


@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_the_forecast_counts_the_excitations(checkpointing):
    keys = {"samples": 2, "parallel": Parallel(checkpointing=checkpointing), "precision": "float32"}
    plain, excited = (training_step(lamp_plan(squeeze), **keys) for squeeze in (None, 16))
    # Each level keeps one tensor more for the backward pass, unless it is computed again; that of the first level has
    # 2 samples, 8 channels, 32³.
    assert (excited.peak_bytes - plain.peak_bytes > 4 * 2 * 8 * 32**3) == (checkpointing == "none")
    features = (8, 16, 32, 64, 128, 64, 32, 16, 8)
    assert excited.parameter_bytes - plain.parameter_bytes == 4 * excitation_parameters(features, 16)
    assert excited.flops == plain.flops  # of convolutions


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_the_forecast_peak_is_what_pytorch_allocates(checkpointing):
    plan = replace(lamp_plan(16, size=48), parallel=Parallel(checkpointing=checkpointing))
    forecast, _, measured = forecast_and_measured(plan, "float32")
    assert forecast / measured == pytest.approx(1, abs=0.05)
    forecast, workspace, measured = forecast_and_measured(plan, "bfloat16")
    assert forecast < 1.05 * measured
    assert forecast + workspace > 0.95 * measured


@pytest.mark.slow
def test_stages_of_a_pipeline_share_its_weights():
    ways = (Parallel(pipeline=count, micro_batches=2, checkpointing="blocks") for count in (1, 4))
    (whole,), parts = (stage_costs(lamp_plan(16), way, "bfloat16") for way in ways)
    assert sum(part.parameter_bytes for part in parts) == whole.parameter_bytes
    assert max(part.peak_bytes for part in parts) < whole.peak_bytes


def test_the_planners_measure_of_cost_does_not_see_them():
    assert convolution_elements(EXCITED, (8, 16, 16)) == convolution_elements(PLAIN, (8, 16, 16))


@pytest.mark.parametrize("base", [32, 64, 128])
@pytest.mark.parametrize("squeeze", [None, 16])
def test_the_networks_of_lamp(base, squeeze):
    """Zhu et al. (MICCAI 2020), sections 2.2 and 3: five encoder levels with doubled filters, four decoder levels."""
    doubled = tuple(base * 2**level for level in range(5))
    for keys in ({"base_features": base, "max_features": 16 * base, "levels": 5}, {"features": doubled}):
        network = Network(**keys, squeeze_excitation=squeeze)
        plan = planned((1.0, 1.0, 1.0), (100, 100, 100), network=network, patch=(64, 64, 64), batch=16).network
        assert plan.features == doubled
        assert shape_of(plan).decoder_and_bottleneck == doubled
        assert plan.strides == ((1, 1, 1), *((2, 2, 2),) * 4)
        assert plan.squeeze_excitation == squeeze
        names = [block.name for block in unet_blocks(replace(plan, features=(2,) * 5))]
        assert sum(name.endswith("excitation") for name in names) == (9 if squeeze else 0)


def test_a_plan_says_whether_there_is_one_and_its_hash_follows(tmp_path):
    plain = tiny_plan()
    excited = replace(plain, network=replace(plain.network, squeeze_excitation=16))
    for plan, keys in ((plain, {"squeeze_excitation": None}), (excited, {"squeeze_excitation": 16})):
        save_plan(tmp_path / "plan.json", plan)
        written = json.loads((tmp_path / "plan.json").read_text())["network"]
        assert {key: value for key, value in written.items() if key == "squeeze_excitation"} == keys
        assert load_plan(tmp_path / "plan.json") == plan
    assert excited.hash != plain.hash


def study(network: dict) -> dict:
    return {"study": "s", "dataset": "d", "settings": {"a": {"network": network}}}


def test_the_study_key_is_the_reduction_ratio():
    assert parse_study(study({"squeeze_excitation": 16}), source="x").settings[0].network.squeeze_excitation == 16
    assert parse_study(study({}), source="x").settings[0].network.squeeze_excitation is None


@pytest.mark.parametrize("value", [0, -2, 1.5, "16", True, 5000])
def test_a_ratio_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"x: settings\.a\.network\.squeeze_excitation: .*(1 to 4096|minimum|maximum)"):
        parse_study(study({"squeeze_excitation": value}), source="x")
