"""The expanded patch of the meU-net (Wang et al., MIDL 2022): gradients, memory, what is read, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from group_worker import CPU
from helpers import RESIDUAL, store_case, tiny_plan, woken
from megavoxel.config.setting import Expansion, Parallel, Setting
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Augmentation, Training
from megavoxel.errors import UserError
from megavoxel.forecast.step import training_step
from megavoxel.forecast.ways import check_parallel
from megavoxel.network import large_convolution
from megavoxel.network.blocks import MaxOfCells
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.extensions import expanded_patch, plan_expansion
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.training.loss import build_loss
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.patches import TRAINING, VALIDATION, PatchDataset
from megavoxel.training.run import Run
from megavoxel.training.step import parts_of, passes_of, train_step
from megavoxel.training.supervision import downsample_target

PAPER = NetworkPlan(
    channels=1, classes=3, features=(16, 32, 64, 128, 128), decoder_features=(16, 16, 32, 64),
    kernels=((3, 3, 3),) * 5, strides=((1, 1, 1), *((2, 2, 2),) * 4), norm="batch", pooling="max",
    upsampling="nearest", deep_supervision=False,
)  # fmt: skip
"""Channels and operations of Wang et al. (2022), appendix A.3."""


UNCHANGED = Augmentation(
    rotation=0, scaling=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma=0, gamma_inverted=0,
    mirror_axes=(),
)  # fmt: skip


def expanded_plan(**changes) -> Plan:
    plan = tiny_plan(training={"gradient_clip": 1e9, "batch_dice": False}, expanded_patch=(12, 16, 20))
    keys = {"deep_supervision": False, "expanded_head": True, **changes.pop("network", {})}
    return replace(plan, network=replace(plan.network, **keys), **changes)


def started(plan: Plan) -> Run:
    network = woken(SegmentationNetwork(plan.network, seed=3, checkpointing=plan.parallel.checkpointing)).train()
    return Run(
        plan=plan, device=CPU, precision=Precision(name="float32", reason="test"), network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )  # fmt: skip


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(plan.batch, plan.network.input_channels, *plan.sampled_patch, generator=generator)
    return image, torch.randint(0, 3, (plan.batch, *plan.sampled_patch), generator=generator)


def gradients_the_slow_way(plan: Plan, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both patches through the full network, each with a graph of its own; of the expanded one, what its loss gives the
    first level is dropped."""
    network, loss = woken(SegmentationNetwork(plan.network, seed=3)).train(), build_loss(plan.training)
    emitted = network.program(image)["level1"]
    loss(emitted.float(), downsample_target(target, network.shape.strides[1])).backward()
    for name, parameter in network.named_parameters():
        if name.startswith("program.blocks.encoder0"):
            assert parameter.grad.abs().max() > 0
            parameter.grad = None
    sides = zip(plan.expanded_patch, plan.patch, strict=True)
    centre = (..., *(slice((large - size) // 2, (large + size) // 2) for large, size in sides))
    loss(network.program(image[centre])["level0"].float(), target[centre]).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("network", [{}, {"pooling": "max"}, RESIDUAL], ids=["stride", "max", "residual"])
@pytest.mark.parametrize("order", ["sequential", "joint"])
@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_gradients_equal_those_of_both_patches_through_the_whole_network(norm, network, order, checkpointing):
    plan = expanded_plan(
        network=network | {"norm": norm}, expansion_order=order, parallel=Parallel(checkpointing=checkpointing)
    )
    run, (image, target) = started(plan), batch_of(plan)
    expected = gradients_the_slow_way(plan, image, target)
    train_step(run, image, target)
    for name, parameter in run.network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_large_convolutions_without_gradients_go_in_slabs_and_the_step_stays_the_same(norm, monkeypatch):
    plan = expanded_plan(network={"pooling": "max", "norm": norm})
    run, (image, target) = started(plan), batch_of(plan)
    expected = gradients_the_slow_way(plan, image, target)
    slabs = []
    plain = large_convolution.convolution
    monkeypatch.setattr(large_convolution, "LARGEST_CALL", 40_000)
    monkeypatch.setattr(
        large_convolution, "convolution", lambda x, *other: (slabs.append(x.shape), plain(x, *other))[1]
    )
    train_step(run, image, target)
    # Of the two convolutions of the first level alone: the expanded patch has 12 planes of 16 x 20 voxels.
    assert {shape[3:] for shape in slabs} == {(16, 20)}
    assert len(slabs) > 2
    for name, parameter in run.network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_prediction_in_slabs_gives_the_same_logits(monkeypatch):
    network = woken(SegmentationNetwork(tiny_plan().network, seed=3)).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        (expected,) = network(image)
        monkeypatch.setattr(large_convolution, "LARGEST_CALL", 20_000)
        (found,) = network(image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_max_pooling_under_autocast_has_the_numbers_of_its_input(kind):
    """As on a GPU: on a CPU, autocast would make a copy of it in float32, twice its size, which forecasts count."""
    pool, image = MaxOfCells((2, 1, 2)), torch.randn(2, 3, 4, 5, 6)
    given = image.to(kind).requires_grad_()
    with torch.autocast("cpu", dtype=kind):
        pooled = pool(given)
    pooled.sum().backward()
    assert pooled.dtype == given.grad.dtype == kind
    exact = image.to(kind).float().requires_grad_()
    expected = torch.nn.functional.max_pool3d(exact, (2, 1, 2))
    expected.sum().backward()
    assert torch.equal(pooled.float(), expected)
    assert torch.equal(given.grad.float(), exact.grad)


@pytest.mark.slow
def test_the_headline_cascade_of_the_paper_fits_its_own_gpu():
    """Wang et al. (2022), table 2: 280 voxels, read as 288, around 160, batch 4, in 15 GB of a P100 with 16 GB."""
    plan = tiny_plan(patch=(160,) * 3, batch=4, network=replace(PAPER, expanded_head=True), expanded_patch=(280,) * 3)
    plan = replace(plan, training=Training(optimizer="adam", batch_dice=True))
    cost = training_step(plan, samples=4, parallel=Parallel(checkpointing="blocks"), precision="float16")
    # What convolutions ask for beside tensors is of the size of the largest call with a gradient: 144³, 80 channels.
    assert cost.workspace_bytes == 4 * 4 * 144**3 * (64 + 16)
    assert cost.peak_bytes + cost.workspace_bytes < 15e9


def test_the_expanded_patch_gives_the_first_level_nothing():
    """With a target of which the standard patch's loss knows nothing, only shared levels and the new head move."""
    run = started(expanded_plan())
    image, _ = batch_of(run.plan)
    run.network.forward_expanded(image).square().mean().backward()
    moved = {name.split(".")[2] for name, parameter in run.network.named_parameters() if parameter.grad is not None}
    assert moved == {
        *(f"encoder{level}_convolution{index}" for level in (1, 2) for index in (0, 1)),
        "decoder1_upsample", "decoder1_convolution0", "decoder1_convolution1", "head1",
    }  # fmt: skip


def test_logits_of_the_expanded_patch_have_half_its_resolution_where_it_is_no_multiple_of_the_stride():
    plan = expanded_plan(expanded_patch=(10, 14, 18))
    logits = started(plan).network.forward_expanded(torch.randn(1, 1, 11, 15, 18))
    assert logits.shape == (1, 3, 6, 8, 9)


def test_a_deep_supervised_network_takes_an_expanded_patch_as_well():
    plan = expanded_plan(network={"deep_supervision": True, "features": (4, 8, 8, 8), "kernels": ((3, 3, 3),) * 4,
        "strides": ((1, 1, 1), (2, 2, 2), (1, 2, 2), (1, 1, 1))})  # fmt: skip
    run, (image, target) = started(plan), batch_of(plan)
    assert torch.isfinite(train_step(run, image, target))
    assert all(parameter.grad is not None for parameter in run.network.parameters())


def test_the_standard_patch_is_the_centre_of_the_expanded_one():
    plan = expanded_plan()
    image, target = batch_of(plan)
    large, small = passes_of(plan, parts_of(started(plan), image, target)[0])
    assert large.expanded
    assert not small.expanded
    assert torch.equal(small.image, image[:, :, 2:10, 2:14, 4:16])
    assert torch.equal(small.target, target[:, 2:10, 2:14, 4:16])


def test_context_is_read_around_the_patch_and_is_zero_beyond_the_image(tmp_path):
    """Of one seed, plain and expanded samples have the same centre; the case ends before the expanded patch does."""
    store_case(tmp_path, "a", seed=1)
    keys = {"augmentation": UNCHANGED}
    plain, large = (
        PatchDataset(plan, tmp_path, ["a"], fold=0, stream=TRAINING, count=8)
        for plan in (tiny_plan(**keys), expanded_plan(**keys, expanded_patch=(20, 16, 20)))
    )
    for number in range(8):
        (image, target), (around, labels) = plain[number], large[number]
        assert around.shape == (1, 20, 16, 20)
        assert torch.equal(around[:, 6:14, 2:14, 4:16], image)
        assert torch.equal(labels[6:14, 2:14, 4:16], target)
        # The case has 14 voxels along the first axis, so 20 of them reach beyond it.
        empty = (around == 0).all(dim=(0, 2, 3))
        assert empty.sum() == 6
        assert not labels[empty].any()


def test_validation_is_on_the_patch_alone(tmp_path):
    store_case(tmp_path, "a", seed=1)
    dataset = PatchDataset(expanded_plan(), tmp_path, ["a"], fold=0, stream=VALIDATION, count=1)
    assert dataset[0][0].shape == (1, 8, 12, 12)


@pytest.mark.parametrize(
    ("patch", "factor", "expected"),
    [
        ((160, 160, 160), (1.0, 1.0, 1.0), (160, 160, 160)),
        ((160, 160, 160), (1.25, 1.25, 1.25), (200, 200, 200)),
        ((160, 160, 160), (1.5, 1.5, 1.5), (240, 240, 240)),
        ((160, 160, 160), (1.75, 1.75, 1.75), (280, 280, 280)),
        ((20, 107, 64), (1.0, 1.5, 1.1), (20, 161, 70)),
    ],
)
def test_expanded_patches_of_the_paper_and_odd_ones(patch, factor, expected):
    assert expanded_patch(patch, factor) == expected


def test_an_expansion_beyond_the_image_is_refused():
    setting = Setting(name="meunet", expansion=Expansion(factor=(1.5, 1.5, 1.5)))
    with pytest.raises(UserError, match=r"setting meunet: expansion: along axis 0 .* 30 voxels, more than .*20 × 100"):
        plan_expansion(setting, (20, 32, 32), PAPER, (20.0, 100.0, 100.0))
    flat = replace(setting, expansion=Expansion(factor=(1.0, 1.5, 1.5)))
    large, network, notes = plan_expansion(flat, (20, 32, 32), PAPER, (16.0, 100.0, 100.0))
    assert large == (20, 48, 48)
    assert network.expanded_head
    assert "20 × 48 × 48" in notes[0]


def test_an_expanded_patch_may_round_the_image_up_to_the_stride():
    """Wang et al. (2022), table 1, expand 160 to 240 voxels on images of 536 x 235 x 235."""
    setting = Setting(name="meunet", expansion=Expansion(factor=(1.5, 1.5, 1.5)))
    assert plan_expansion(setting, (160, 160, 160), PAPER, (536.0, 235.0, 235.0))[0] == (240, 240, 240)
    with pytest.raises(UserError, match=r"along axis 1 the expanded patch has 240 voxels, more than .*224 × 224"):
        plan_expansion(setting, (160, 160, 160), PAPER, (536.0, 224.0, 224.0))


def test_an_expansion_of_a_network_without_a_second_decoder_level_is_refused():
    setting = Setting(name="flat", expansion=Expansion(factor=(1.5, 1.5, 1.5)))
    shallow = replace(PAPER, features=(16, 32), decoder_features=(16,), kernels=((3, 3, 3),) * 2,
        strides=PAPER.strides[:2])  # fmt: skip
    with pytest.raises(UserError, match=r"setting flat: expansion: .*3 levels"):
        plan_expansion(setting, (32, 32, 32), shallow, (100.0,) * 3)


def test_an_expanded_patch_does_not_go_through_a_pipeline():
    with pytest.raises(UserError, match=r"parallel\.pipeline: .*expanded patch"):
        check_parallel(expanded_plan(), Parallel(pipeline=2))


def test_one_factor_stands_for_all_axes():
    study = parse_study(
        {"study": "s", "dataset": "d", "settings": {"one": {"expansion": {"factor": 1.5}}}}, source="s.yaml"
    )
    assert study.settings[0].expansion == Expansion(factor=(1.5, 1.5, 1.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "batch", "checkpointing"),
    [(160, 4, "none"), (240, 4, "none"), (240, 1, "none"), (160, 4, "norms"), (160, 4, "blocks")],
)
def test_memory_beside_a_u_net_on_the_expanded_patch(size, batch, checkpointing):
    """Wang et al. (2022), table 1: 6 GB for 10.5, 13 for (estimated) 30, 4 for 8. Ours is to stay below 0.45 of it."""
    standard = 106 if size == 160 else 160
    training = Training(optimizer="adam", batch_dice=False)
    plain = replace(tiny_plan(patch=(size,) * 3, batch=batch, network=PAPER), training=training)
    expanded = replace(
        plain, patch=(standard,) * 3, expanded_patch=(size,) * 3, network=replace(PAPER, expanded_head=True)
    )
    keys = {"samples": batch, "parallel": Parallel(checkpointing=checkpointing), "precision": "bfloat16"}
    ratio = training_step(expanded, **keys).peak_bytes / training_step(plain, **keys).peak_bytes
    assert ratio < 0.45
    joint = training_step(replace(expanded, expansion_order="joint"), **keys)
    assert joint.peak_bytes > training_step(expanded, **keys).peak_bytes


def test_samples_are_functions_of_their_number_with_an_expanded_patch(tmp_path):
    store_case(tmp_path, "a", seed=1)
    dataset = PatchDataset(expanded_plan(), tmp_path, ["a"], fold=0, stream=TRAINING, count=4)
    again = PatchDataset(expanded_plan(), tmp_path, ["a"], fold=0, stream=TRAINING, count=4)
    for number in range(4):
        assert all(np.array_equal(a, b) for a, b in zip(dataset[number], again[number], strict=True))
