"""Patches that the device augments, against those that loaders augment: the same draws, the same patch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import store_case, three_cases, tiny_plan, weights_of
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Augmentation
from megavoxel.forecast.step import training_step
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.checksums import write_checksums
from megavoxel.preprocessing.store import save_array
from megavoxel.tasks.segmentation.training import train
from megavoxel.training.augmentation import Augmenter, labels_at_all_voxels, sample_labels
from megavoxel.training.on_device import DeviceAugmenter, RawBatch, largest_raw_batch
from megavoxel.training.patches import TRAINING, PatchDataset, Share, patch_loader

CPU = torch.device("cpu")
OFF = dict.fromkeys(
    ("rotation", "scaling", "shear", "elastic", "shift", "quarter_turn", "noise", "blur", "brightness", "contrast",
     "low_resolution", "gamma", "gamma_inverted"), 0.0,
)  # fmt: skip
ALL = dict.fromkeys(OFF, 1.0)
SAMPLES = 6
SHAPE = (14, 24, 24)
FLAT, DEEP = (4, 16, 16), (8, 12, 12)
"""A patch that turns in-plane, and one that turns about all axes."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    for number in range(2):
        store_case(folder, f"case{number}", seed=number, shape=SHAPE)
        labels = np.random.default_rng(number).integers(0, 3, (1, *SHAPE), dtype=np.uint8)
        path = folder / f"case{number}.stage1.b2nd"
        save_array(path, labels, DEEP)
        write_checksums(path.with_suffix(".sha256"), [path], {})
    return folder


def plan_with(keys: dict, patch: tuple[int, ...] = DEEP, **changes) -> Plan:
    return tiny_plan(patch=patch, augmentation=Augmentation(**keys), **changes)


def patches(cases, plan: Plan) -> tuple[Tensor, Tensor]:
    """The first samples of a run, made by whom the plan says."""
    first_stage = (cases,) if plan.stage1 else ()
    dataset = PatchDataset(
        plan, cases, ("case0", "case1"), fold=0, stream=TRAINING, count=SAMPLES, first_stage=first_stage
    )
    (batch,) = patch_loader(dataset, Share(batch=SAMPLES), workers=0, pin=False)
    return DeviceAugmenter(plan, CPU).batch(batch) if isinstance(batch, RawBatch) else batch


def both(cases, plan: Plan) -> list[tuple[Tensor, Tensor]]:
    on_device = replace(plan, augmentation=replace(plan.augmentation, on_device=True))
    return [patches(cases, one) for one in (plan, on_device)]


@pytest.mark.parametrize("patch", [FLAT, DEEP])
@pytest.mark.parametrize("key", [*OFF, "mirror_axes", "all"])
def test_a_patch_is_that_of_a_loader(cases, key, patch):
    keys = ALL if key == "all" else {**OFF, key: (0, 1, 2) if key == "mirror_axes" else 1.0, "mirror_axes": ()}
    keys = {**OFF, "mirror_axes": (0, 1, 2)} if key == "mirror_axes" else keys
    (image, target), (ours, labels) = both(cases, plan_with(keys, patch))
    torch.testing.assert_close(ours, image, atol=1e-4, rtol=0)
    assert torch.equal(labels, target)
    assert labels.dtype == target.dtype == torch.uint8


@pytest.mark.parametrize(
    "changes",
    [
        {"unannotated": {"case0": ("cube",)}},
        {"expanded_patch": (10, 16, 16), "network": {"expanded_head": True}},
        {"stage1": ("coarse",), "network": {"prior_channels": 2}},
    ],
)
def test_so_it_is_with_masked_labels_expanded_patches_and_a_first_stage(cases, changes):
    network = replace(tiny_plan().network, **changes.get("network", {}))
    (image, target), (ours, labels) = both(cases, plan_with(ALL, **{**changes, "network": network}))
    torch.testing.assert_close(ours, image, atol=1e-4, rtol=0)
    assert torch.equal(labels, target)


@pytest.mark.parametrize("patch", [FLAT, DEEP, (8, 12, 9)])
def test_so_it_is_with_uniform_noise_and_deformed_patches_that_are_not_square(cases, patch):
    keys = {**OFF, "noise": 1.0, "noise_distribution": "uniform", "elastic": 1.0, "quarter_turn": 1.0}
    (image, target), (ours, labels) = both(cases, plan_with(keys | {"elastic_sigma": (3, 6)}, patch))
    torch.testing.assert_close(ours, image, atol=1e-4, rtol=0)
    assert torch.equal(labels, target)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_at_all_voxels_are_those_of_the_voxels_that_need_them(kind):
    generator = torch.Generator().manual_seed(0)
    for source, points in (((2, 7, 6, 5), (4, 5, 6, 3)), ((3, 9, 8), (7, 7, 2))):
        labels = torch.randint(0, 4, source, generator=generator).to(kind)
        grid = torch.rand(1, *points, generator=generator) * 2 - 1
        assert torch.equal(labels_at_all_voxels(labels, grid), sample_labels(labels, grid))


def test_the_number_of_workers_changes_nothing(tmp_path):
    fold = three_cases(tmp_path / "cases")
    keys = {"augmentation": Augmentation(**ALL, on_device=True)}
    whole, loaded = (
        train(tiny_plan(training={"epochs": 2, "workers": count}, **keys), fold, tmp_path / str(count), CPU)
        for count in (0, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(*map(weights_of, (whole, loaded)), strict=True))
    assert whole.history[-1]["training_loss"] == loaded.history[-1]["training_loss"]


@pytest.mark.parametrize("patch", [FLAT, DEEP])
@pytest.mark.parametrize(("keys", "most"), [({}, 1.3), ({"shear": 1, "elastic": 1, "elastic_magnitude": (60, 60)}, 4)])
def test_the_largest_box_holds_that_of_any_draw(patch, keys, most):
    augmenter, random = Augmenter(Augmentation(rotation=1, scaling=1, **keys), patch), np.random.default_rng(0)
    largest = np.prod(augmenter.source_box((0, 0, 0), augmenter.largest()).shape)
    drawn = [np.prod(augmenter.source_box((0, 0, 0), augmenter.draw(random)).shape) for _ in range(300)]
    assert max(drawn) <= largest <= most * max(drawn)


def test_the_forecast_counts_what_augmentation_takes():
    """With a network this small the largest source box and the labels around each voxel are the peak."""
    plan = plan_with(ALL, (24, 24, 24))
    plan = replace(plan, network=replace(plan.network, features=(1, 1, 1)))
    peaks = [
        training_step(
            replace(plan, augmentation=replace(plan.augmentation, on_device=on_device)),
            samples=1, parallel=Parallel(), precision="float32",
        ).peak_bytes
        for on_device in (False, True)
    ]  # fmt: skip
    source = largest_raw_batch(plan, 1).samples[0].image.nbytes
    assert peaks[1] > peaks[0] + source
