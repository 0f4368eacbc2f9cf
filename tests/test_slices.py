"""Networks that see single slices, nnU-Net's 2D configuration: plans, network, and what a study may say of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import preprocessing_plan, properties, tiny_plan, woken
from megavoxel.config.setting import Network, Parallel, Preprocessing, Setting
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Augmentation
from megavoxel.errors import UserError
from megavoxel.forecast.step import cost_of_step, new_run, training_step
from megavoxel.inference.logits import header_of
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.patch import prediction_window
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.slices import plan_augmentation
from megavoxel.preprocessing.case import preprocess_image, preprocess_labels
from megavoxel.preprocessing.store import save_case
from megavoxel.training.patches import TRAINING, PatchDataset
from megavoxel.volumes.grid import Geometry
from test_residual import peer_name
from test_residual_plans import GOLDEN, planned

SLICES = json.loads((Path(__file__).parent / "slice_plans.json").read_text())["plans"]


def planned_slices(spacing, shape, cases: int = 10, labels: int = 2, **keys) -> Plan:
    """The plan of slices for equal cases of (z, y, x)."""
    preprocessing = Preprocessing(dimensions=2, **keys.pop("preprocessing", {}))
    return planned(spacing, shape, cases, labels, Setting(name="s", preprocessing=preprocessing, **keys))


@pytest.mark.parametrize("architecture", ["unet", "residual"])
def test_plans_of_slices_are_those_of_nnunet(architecture):
    golden = [plan for plan in SLICES if plan["architecture"] == architecture]
    assert len(golden) == {"unet": 28, "residual": 100}[architecture]
    for wanted in golden:
        dataset = GOLDEN["datasets"][wanted["data"]]
        network = Network(architecture=architecture, preset=wanted["preset"])
        plan = planned_slices(**dataset, network=network, memory_gib=float(wanted["memory_gib"]))
        own, shape = plan.preprocessing, plan.network
        assert {plan.patch[0], *(sizes[0] for sizes in (*shape.strides, *shape.kernels))} == {1}
        assert own.spacing == tuple(dataset["spacing"][axis] for axis in wanted["transpose"])
        assert plan.training.batch_dice
        found = {
            "transpose": own.transpose, "patch": plan.patch[1:], "batch": plan.batch, "features": shape.features,
            "strides": [stride[1:] for stride in shape.strides], "kernels": [kernel[1:] for kernel in shape.kernels],
        }  # fmt: skip
        if architecture == "residual":
            found["blocks"] = shape.blocks
        else:
            assert set(wanted["blocks"]) == {shape.convolutions_per_level}
        assert json.loads(json.dumps(found)) == {key: wanted[key] for key in found}, wanted


def test_what_the_study_fixes_of_slices_is_kept():
    plan = planned_slices((4, 1, 1), (30, 256, 256), patch=(1, 64, 64), batch=3, network=Network(levels=3))
    assert (plan.patch, plan.batch) == ((1, 64, 64), 3)
    assert plan.network.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert plan.network.kernels == ((1, 3, 3),) * 3
    strides = ((1, 1, 1), (1, 2, 1))
    fixed = planned_slices((4, 1, 1), (30, 256, 256), patch=(1, 64, 64), network=Network(strides=strides))
    assert fixed.network.strides == strides
    narrow = planned_slices((4, 1, 1), (30, 256, 256), network=Network(max_features=96))
    assert narrow.network.features == (32, 64, 96, 96, 96, 96, 96)


@pytest.mark.parametrize(
    ("patch", "keys", "degrees"), [
        ((1, 96, 64), {}, 180),  # 1.5, not above it
        ((1, 97, 64), {}, 15),
        ((1, 97, 64), {"rotation_degrees": 30.0}, 30),
    ],
)  # fmt: skip
def test_slices_turn_as_in_nnunet(patch, keys, degrees):
    plan = planned_slices((4, 1, 1), (30, 256, 256), patch=patch, augmentation=Augmentation(**keys))
    assert plan.augmentation.rotation_degrees == degrees
    assert plan.augmentation.mirror_axes == (1, 2)
    assert f"augmentation: slices are turned by up to {degrees}°, and mirrored along axis 1 and 2" in plan.notes


def test_a_whole_slice_is_as_large_as_the_largest_case_in_plane():
    plan = planned_slices((4, 1, 1), (30, 50, 70), patch="whole")
    assert plan.patch == (1, 50, 70)
    assert plan.preprocessing.largest_shape == (30, 50, 70)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"preprocessing": {"dimensions": 4}}, "preprocessing.dimensions: 4 is not allowed"),
        ({"preprocessing": {"dimensions": 2, "resolution": "low"}}, "preprocessing.resolution: 'dimensions' is 2"),
        ({"patch": [8, 64, 64]}, r"patch: \[8, 64, 64\]: with 'preprocessing.dimensions: 2'"),
        ({"network": {"for_patch": [8, 64, 64]}}, r"network.for_patch: \[8, 64, 64\]"),
        ({"network": {"strides": [[1, 1, 1], [2, 2, 2]]}}, r"network.strides: \[2, 2, 2\]"),
        ({"network": {"kernels": [[3, 3, 3]]}}, r"network.kernels: \[3, 3, 3\]"),
        ({"inference": {"window": [4, 64, 64]}}, r"inference.window: \[4, 64, 64\]"),
        ({"inference": {"tiles": [2, 1, 1]}}, r"inference.tiles: \[2, 1, 1\]"),
        ({"parallel": {"space": [2, 1, 1]}}, r"parallel.space: \[2, 1, 1\]"),
        ({"expansion": {"factor": 2}}, "expansion.factor"),
        ({"augmentation": {"in_plane": False}}, "augmentation.in_plane: with 'preprocessing.dimensions: 2'"),
        ({"phases": [{"patch": [4, 32, 32]}, {}]}, r"phases: \[4, 32, 32\]"),
    ],
)  # fmt: skip
def test_what_contradicts_slices_is_refused_in_one_line(keys, fault):
    settings = {"a": {"preprocessing": {"dimensions": 2}, **keys}}
    study = {"study": "s", "dataset": "phantom", "folds": 2, "seed": 1, "baseline": "a", "settings": settings}
    with pytest.raises(UserError, match=f"settings.a.{fault}") as caught:
        parse_study(study, source="study.yaml")
    assert "\n" not in str(caught.value)


def test_a_second_stage_sees_volumes():
    settings = {"first": {"preprocessing": {"dimensions": 2}}, "second": {"stage1": ["first"]}}
    study = {"study": "s", "dataset": "phantom", "folds": 2, "seed": 1, "baseline": "first", "settings": settings}
    assert parse_study(study, source="study.yaml").setting("second").stage1 == ("first",)
    settings["second"]["preprocessing"] = {"dimensions": 2}
    with pytest.raises(UserError, match=r"settings\.second\.stage1: a second stage sees volumes"):
        parse_study(study, source="study.yaml")


FLAT = {
    "channels": 2, "classes": 3, "features": (4, 8, 8, 8), "kernels": ((1, 3, 3),) * 4,
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 1), (1, 2, 2)),
}  # fmt: skip
FLAT_NETWORKS = {
    "unet": NetworkPlan(**FLAT),
    "residual": NetworkPlan(**FLAT, architecture="residual", blocks=(1, 3, 4, 6), convolutions_per_level=1),
}


def name_in_nnunet(name: str, plan: NetworkPlan) -> str:
    """nnU-Net's name of one of our parameters."""
    own = re.fullmatch(r"program\.blocks\.(en|de)coder(\d)_convolution(\d)\.module\.(\d)\.(\w+)", name)
    if own is None:
        return peer_name(name, plan)
    side, level, number, part, kind = own.groups()
    stage = f"encoder.stages.{level}.0" if side == "en" else f"decoder.stages.{len(plan.features) - 2 - int(level)}"
    return f"{stage}.convs.{number}.{('conv', 'norm')[int(part)]}.{kind}"


def of_a_plane(plan: NetworkPlan) -> tuple[SegmentationNetwork, dict[str, Tensor], Tensor]:
    """A network of slices, its weights under nnU-Net's names and without the first axis, and two images (y, x)."""
    network = woken(SegmentationNetwork(plan, seed=1)).double().train()
    weights = {
        name_in_nnunet(key, plan): tensor.detach().squeeze(2) if tensor.ndim == 5 else tensor.detach()
        for key, tensor in network.named_parameters()
    }
    return network, weights, torch.randn(2, 2, 32, 24, generator=torch.Generator().manual_seed(2)).double()


def plane_by_plane(plan: NetworkPlan, weights: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Logits of all heads but the lowest, the finest first, by convolutions of PyTorch in two dimensions."""

    def convolved(x: Tensor, name: str, stride: tuple[int, ...] = (1, 1)) -> Tensor:
        weight, bias = weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias")
        x = F.conv2d(x, weight, bias, stride, padding=tuple(extent // 2 for extent in weight.shape[2:]))
        return F.instance_norm(x, weight=weights[f"{name}.norm.weight"], bias=weights[f"{name}.norm.bias"], eps=1e-5)

    def residual(x: Tensor, name: str, stride: tuple[int, ...]) -> Tensor:
        strided = max(stride) > 1
        shortcut, skip = F.avg_pool2d(x, stride, stride) if strided else x, f"{name}.skip.{int(strided)}"
        if f"{skip}.conv.weight" in weights:
            shortcut = convolved(shortcut, skip)
        x = F.leaky_relu(convolved(x, f"{name}.conv1", stride), 0.01)
        return F.leaky_relu(convolved(x, f"{name}.conv2") + shortcut, 0.01)

    skips, logits, x = [], [], image
    if plan.blocks:
        x = F.leaky_relu(convolved(x, "encoder.stem.convs.0"), 0.01)
    for level, (_, *stride) in enumerate(plan.strides):
        for unit in range(plan.blocks[level] if plan.blocks else plan.convolutions_per_level):
            step = stride if unit == 0 else (1, 1)
            if plan.blocks:
                x = residual(x, f"encoder.stages.{level}.blocks.{unit}", step)
            else:
                x = F.leaky_relu(convolved(x, f"encoder.stages.{level}.0.convs.{unit}", step), 0.01)
        skips.append(x)
    for number, level in enumerate(range(len(skips) - 2, -1, -1)):
        name, (_, *step) = f"decoder.transpconvs.{number}", plan.strides[level + 1]
        x = F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], step)
        x = torch.cat([x, skips[level]], 1)
        for unit in range(plan.convolutions_per_level):
            x = F.leaky_relu(convolved(x, f"decoder.stages.{number}.convs.{unit}"), 0.01)
        head = f"decoder.seg_layers.{number}"
        if f"{head}.weight" in weights:
            logits.insert(0, F.conv2d(x, weights[f"{head}.weight"], weights[f"{head}.bias"]))
    return logits


@pytest.mark.parametrize("architecture", FLAT_NETWORKS)
def test_a_network_of_slices_is_one_of_two_dimensions(architecture):
    plan = FLAT_NETWORKS[architecture]
    network, weights, image = of_a_plane(plan)
    found, wanted = network(image[:, :, None]), plane_by_plane(plan, weights, image)
    assert len(found) == len(wanted) == 2
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.squeeze(2), other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", FLAT_NETWORKS)
def test_a_network_of_slices_is_nnunets_with_its_weights_by_name(architecture):
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="it is installed with nnU-Net, a peer"
    )
    plan = FLAT_NETWORKS[architecture]
    network, weights, image = of_a_plane(plan)
    kind = unet.ResidualEncoderUNet if plan.blocks else unet.PlainConvUNet
    peer = kind(
        2, 4, plan.features, torch.nn.Conv2d, [kernel[1:] for kernel in plan.kernels],
        [stride[1:] for stride in plan.strides], plan.blocks or (2,) * 4, 3, (plan.convolutions_per_level,) * 3,
        conv_bias=True, norm_op=torch.nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    ).double()  # fmt: skip
    unknown = peer.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown
    for ours, other in zip(network(image[:, :, None]), peer(image)[:2], strict=True):
        torch.testing.assert_close(ours.squeeze(2), other, rtol=1e-10, atol=1e-10)


def slices_plan(**changes) -> Plan:
    """A small plan of slices of 12 × 16 voxels."""
    augmentation, _ = plan_augmentation(Augmentation(), (1, 12, 16), 2)
    strides = ((1, 1, 1), (1, 2, 2), (1, 1, 2))
    network = NetworkPlan(channels=1, classes=3, features=(4, 8, 8), kernels=((1, 3, 3),) * 3, strides=strides)
    plan = tiny_plan(patch=(1, 12, 16), preprocessing=preprocessing_plan(dimensions=2), network=network)
    return replace(plan, augmentation=augmentation, **changes)


def test_cases_keep_their_spacing_across_slices():
    rules = preprocessing_plan(dimensions=2, spacing=(5.0, 1.0, 2.0), transpose=(1, 0, 2), image_order=1)
    grid = Geometry(shape=(6, 10, 8), affine=np.diag([1.0, 3.0, 2.0, 1.0]))  # (z, y, x): 8 of 2 mm, 10 of 3, 6 of 1
    image = np.random.default_rng(0).normal(size=(1, 8, 10, 6)).astype(np.float32)
    array, found = preprocess_image(image, grid, rules, "c", None)
    assert found.spacing == (3.0, 2.0, 1.0)
    assert array.shape == (1, 10, 16, 3)  # 8 slices of 2 mm become 16 rows of 1 mm, 6 columns of 1 mm 3 of 2 mm
    alone = [preprocess_image(image[:, :, [y]], replace(grid, shape=(6, 1, 8)), rules, "c", None)[0] for y in range(10)]
    # Each slice is resampled by itself; only the z-score is that of the whole image.
    assert [part.shape for part in alone] == [(1, 1, 16, 3)] * 10
    scaled = [np.corrcoef(part.ravel(), array[:, [y]].ravel())[0, 1] for y, part in enumerate(alone)]
    assert min(scaled) > 0.999999
    labels = np.broadcast_to(np.array([0, 1, 3, 1, 0, 3, 0, 1, 0, 3])[:, None], (8, 10, 6)).astype(np.uint8)
    classes = preprocess_labels(labels, found, rules)
    assert [sorted(set(part.ravel())) for part in classes] == [[c] for c in (0, 1, 2, 1, 0, 2, 0, 1, 0, 2)]
    assert header_of(found, rules).spacing == (3.0, 1.0, 2.0)


def test_augmented_patches_are_of_one_slice(tmp_path):
    plan = slices_plan()
    strong = replace(
        plan.augmentation, rotation=1.0, scaling=1.0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0,
        gamma=0, gamma_inverted=0,
    )  # fmt: skip
    plan = replace(plan, augmentation=strong)
    image = np.broadcast_to(np.arange(1, 10, dtype=np.float32)[:, None, None], (9, 20, 24))
    classes = np.broadcast_to((np.arange(9) % 3).astype(np.uint8)[:, None, None], (9, 20, 24))
    voxels = {label: np.argwhere(classes == label) for label in (1, 2)}
    save_case(tmp_path, properties("c", (9, 20, 24)), image[None], classes, voxels, (1, 20, 24))
    samples = PatchDataset(plan, tmp_path, ["c"], fold=0, stream=TRAINING, count=60)
    seen = set()
    for number in range(60):
        patch, target = samples[number]
        assert patch.shape == (1, 1, 12, 16)
        inside = patch[0][target > 0] if target.any() else patch[0][patch[0] > 0]
        (value,) = {round(float(voxel), 3) for voxel in inside if voxel == inside.max()}
        assert value == round(value)
        assert set(target.unique().tolist()) <= {0, (round(value) - 1) % 3}
        seen.add(round(value))
    assert len(seen) == 9


def test_volumes_are_predicted_slice_by_slice():
    plan = slices_plan(inference=replace(tiny_plan().inference, mirror=True))
    network = SegmentationNetwork(plan.network, seed=3)
    predictor = CasePredictor(plan, [network], "float32", torch.device("cpu"))
    image = np.random.default_rng(1).normal(size=(1, 7, 21, 20)).astype(np.float32)

    def logits(volume: np.ndarray) -> Tensor:
        return torch.cat([slab.logits for slab in predictor.slabs(volume)], dim=1)

    whole, order = logits(image), [3, 1, 6, 0, 5, 2, 4]
    assert whole.shape == (3, 7, 21, 20)
    torch.testing.assert_close(logits(image[:, order]), whole[:, order], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(image[:, 4:5]), whole[:, 4:5], rtol=0, atol=1e-6)
    everything = replace(plan, inference=replace(plan.inference, window="whole"))
    assert prediction_window(everything, (7, 21, 20)) == (1, 22, 20)
    assert prediction_window(everything, (7, 5, 5)) == (1, 12, 16)


def test_a_plan_whose_patches_are_thicker_than_a_slice_is_refused():
    plan = slices_plan()
    with pytest.raises(Exception, match="across slices"):
        replace(plan, patch=(2, 12, 16))
    with pytest.raises(Exception, match="across slices"):
        replace(plan, network=replace(plan.network, kernels=((3, 3, 3),) * 3))


@pytest.mark.slow
def test_a_step_of_many_slices_is_forecast_from_fewer(monkeypatch):
    monkeypatch.setattr("megavoxel.forecast.step.MOST_SAMPLES", 4)
    plan = slices_plan(batch=6)
    found = training_step(plan, samples=6, parallel=Parallel(), precision="bfloat16")
    with FakeTensorMode():
        wanted = cost_of_step(new_run(plan, "bfloat16"))
    for key in ("peak_bytes", "resident_bytes", "workspace_bytes", "flops", "parameter_bytes"):
        assert getattr(found, key) == getattr(wanted, key), key
    assert found.touched_bytes == pytest.approx(wanted.touched_bytes, rel=0.05)
