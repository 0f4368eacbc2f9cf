"""Plans of residual encoders: nnU-Net's own, its cost to the element, and what a study may say beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megavoxel.config.dataset import load_dataset
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Network, Preprocessing, Setting
from megavoxel.config.study_file import load_study, parse_study, with_memory
from megavoxel.datasets.cases import Case, Cases
from megavoxel.errors import UserError
from megavoxel.planning.architectures import ARCHITECTURES
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.planning.topology import residual_elements

GOLDEN = json.loads((Path(__file__).parent / "residual_plans.json").read_text())
FLAT = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
INTENSITIES = Intensities(
    mean=0.0, median=0.0, std=1.0, minimum=-1.0, maximum=1.0, percentile_0_5=-1.0, percentile_99_5=1.0
)


def planned(spacing, shape, cases: int, labels: int, setting: Setting) -> Plan:
    """The plan for equal cases of (z, y, x)."""
    ids = tuple(Case(id=f"c{number:03}", images=("none.nii.gz",)) for number in range(cases))
    names = {f"label-{value}": value for value in range(1, labels + 1)}
    dataset = Cases(dataset="made", root="none", channels=("MRI",), labels=names, nsd_tolerance_mm={}, cases=ids)
    found = Fingerprint(
        dataset="made", channels=("MRI",), intensities=(INTENSITIES,),
        cases=tuple(
            CaseFingerprint(id=case.id, spacing=tuple(spacing), shape=tuple(shape), cropped_shape=tuple(shape))
            for case in ids
        ),
    )  # fmt: skip
    preprocessing = plan_preprocessing(dataset, found, setting.preprocessing)
    return plan_setting(dataset, preprocessing, setting, study="test", seed=1)


def of_half_a_millimetre(**keys) -> Plan:
    """The plan for ten isotropic cases of 512 voxels per axis with two labels."""
    return planned((0.5, 0.5, 0.5), (512, 512, 512), 10, 2, Setting(name="s", **keys))


def residual(**keys) -> Network:
    return Network(architecture="residual", **keys)


def network_plan(levels: int, strides=None, **keys) -> NetworkPlan:
    return NetworkPlan(
        channels=1, classes=3, architecture="residual", convolutions_per_level=1, kernels=((3, 3, 3),) * levels,
        features=tuple(min(320, 32 * 2**level) for level in range(levels)),
        blocks=ARCHITECTURES["residual"].blocks[:levels],
        strides=strides or ((1, 1, 1), *((2, 2, 2),) * (levels - 1)), **keys,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["unet", "residual"])
def test_plans_are_those_of_nnunet(architecture):
    golden = [plan for plan in GOLDEN["plans"] if plan["architecture"] == architecture]
    assert len(golden) == {"unet": 8, "residual": 100}[architecture]
    for wanted in golden:
        keys = Network(architecture=architecture, preset=wanted["preset"])
        setting = Setting(name="s", memory_gib=float(wanted["memory_gib"]), network=keys)
        plan = planned(**GOLDEN["datasets"][wanted["data"]], setting=setting)
        found = {
            "patch": plan.patch, "batch": plan.batch, "features": plan.network.features,
            "strides": plan.network.strides, "kernels": plan.network.kernels, "batch_dice": plan.training.batch_dice,
        }  # fmt: skip
        if architecture == "residual":
            found["blocks"] = plan.network.blocks
        else:
            assert set(wanted["blocks"]) == {plan.network.convolutions_per_level}
        assert json.loads(json.dumps(found)) == {key: wanted[key] for key in found}, wanted


@pytest.mark.parametrize(("side", "cost"), [(128, 557_420_544), (160, 1_088_712_000), (192, 1_881_294_336),
                                            (256, 4_459_364_352)])  # fmt: skip
def test_the_cost_of_six_levels_is_that_of_nnunet(side, cost):
    assert residual_elements(network_plan(6), (side,) * 3) == cost


def test_the_cost_of_flat_and_of_seven_levels_is_that_of_nnunet():
    assert residual_elements(network_plan(6, FLAT), (20, 320, 256)) == 705_664_000
    assert residual_elements(network_plan(7), (256, 256, 256)) == 4_459_958_272


def test_the_cost_of_a_first_level_that_is_coarser_than_the_image_by_hand():
    # 16 voxels of the image, 2 at level 0. The stem has 2 channels; its block two convolutions, and one that is counted
    # for the stride of its shortcut. A transposed convolution of 1 channel brings them back to the image.
    network = replace(network_plan(1, ((2, 2, 2),)), features=(2,))
    assert residual_elements(network, (4, 2, 2)) == 2 * 16 + 3 * 2 * 2 + 1 * 16 + 3 * 16


def test_a_preset_says_what_memory_to_plan_for_whatever_the_device():
    study = parse_study(
        {
            "study": "s", "dataset": "phantom", "hardware": "a100-80", "folds": 2, "seed": 1, "baseline": "plain",
            "settings": {
                "plain": {},
                "preset": {"network": {"architecture": "residual", "preset": "L"}},
                "scaled": {"memory_gib": 80, "network": {"architecture": "residual", "preset": "M"}},
            },
        },
        source="study.yaml",
    )  # fmt: skip
    memory = Device(name="a", kind="gpu", memory_gib=80.0).memory_gib
    assert [setting.memory_gib for setting in with_memory(study, memory).settings] == [80.0, None, 80.0]
    # The patches of KiTS-like data in nnU-Net's L, and in its M at 80 GB.
    assert of_half_a_millimetre(network=residual(preset="L")).patch == (192, 192, 192)
    largest = of_half_a_millimetre(network=residual(preset="M"), memory_gib=80.0)
    assert (largest.patch, largest.batch) == ((256, 256, 256), 3)
    assert "preset: M, for 80 GiB in place of its 8 GiB where patch or batch are left to it" in largest.notes


def test_what_the_study_fixes_comes_before_the_preset():
    plan = of_half_a_millimetre(patch=(96, 96, 96), network=residual(preset="L"))
    # L has room for 2 × 2.1 / 1.88 samples of 192³, and for 17.9 of an eighth of the voxels.
    assert (plan.patch, plan.batch) == ((96, 96, 96), 18)
    # An eighth of 192³ voxels is 96³; 8 samples of twice as many fit.
    assert of_half_a_millimetre(batch=8, network=residual(preset="L")).patch == (128, 128, 112)
    other = of_half_a_millimetre(network=residual(preset="M", blocks=(1, 2, 2, 2), base_features=16, levels=4))
    assert other.network.blocks == (1, 2, 2, 2)
    assert other.network.features == (16, 32, 64, 128)
    assert other.network.convolutions_per_level == 1


def test_without_a_preset_a_batch_holds_five_percent_of_the_dataset():
    keys = {"spacing": (1, 1, 1), "shape": (40, 48, 44), "cases": 40, "labels": 3}
    preset = planned(**keys, setting=Setting(name="s", network=residual(preset="M")))
    plain = planned(**keys, setting=Setting(name="s", network=residual()))
    assert preset.patch == plain.patch == (40, 48, 48)
    assert plain.batch == round(40 * 40 * 48 * 44 * 0.05 / (40 * 48 * 48)) == 2
    assert preset.batch == round(40 * 40 * 48 * 44 / (40 * 48 * 48)) == 37
    assert any("batch: 37, 100 % of the dataset's voxels" in note for note in preset.notes)


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        ({"preset": "L"}, "network.preset: it is of residual encoders; give 'architecture: residual' beside it"),
        ({"architecture": "unet", "preset": "L"}, "network.preset: it is of residual encoders"),
        ({"blocks": [1, 2]}, "network.blocks: it is of residual encoders"),
        ({"architecture": "residual", "preset": "S"}, "network.preset: 'S' is not allowed"),
        ({"architecture": "residual", "pooling": "max"}, "network.pooling: residual blocks halve"),
        ({"architecture": "residual", "blocks": [1, 2], "levels": 3}, "network.blocks: it has 2 entries for 3 levels"),
        ({"architecture": "residual", "blocks": [1, 0]}, "network.blocks"),
    ],
)  # fmt: skip
def test_a_network_that_contradicts_itself_is_refused_in_one_line(network, fault):
    study = {
        "study": "s",
        "dataset": "phantom",
        "folds": 2,
        "seed": 1,
        "baseline": "a",
        "settings": {"a": {"network": network}},
    }
    with pytest.raises(UserError, match=f"settings.a.{fault}") as caught:
        parse_study(study, source="study.yaml")
    assert "\n" not in str(caught.value)


def test_a_default_of_the_study_may_name_the_preset_of_settings_that_say_the_architecture():
    study = parse_study(
        {
            "study": "s", "dataset": "phantom", "folds": 2, "seed": 1, "baseline": "a",
            "defaults": {"network": {"preset": "M"}}, "settings": {"a": {"network": {"architecture": "residual"}}},
        },
        source="study.yaml",
    )  # fmt: skip
    assert study.settings[0].network.preset == "M"


def test_the_low_resolution_of_a_setting_is_that_of_all_settings():
    keys = Preprocessing(resolution="low")
    spacings = {
        planned((0.5,) * 3, (512,) * 3, 10, 2, Setting(name="s", preprocessing=keys, network=network)).preprocessing
        .spacing
        for network in (Network(), residual(preset="XL"))
    }  # fmt: skip
    assert len(spacings) == 1


def test_the_winner_of_toothfairy2_is_planned_as_published(repository):
    """The patches and the strides that nnU-Net's page of the competition and arXiv:2411.17213 give."""
    study = load_study(repository / "config/studies/isensee-2024-toothfairy2.yaml")
    cases, found = declared_dataset(load_dataset(repository / "config/datasets/toothfairy2.yaml"))
    plans = {}
    for setting in with_memory(study, 40.0).settings:
        preprocessing = plan_preprocessing(cases, found, setting.preprocessing)
        plans[setting.name] = plan_setting(cases, preprocessing, setting, study=study.name, seed=study.seed)
    planned_by_l, winner = plans["resenc-l"], plans["patch-160-320-320"]
    assert (planned_by_l.patch, planned_by_l.batch) == ((112, 224, 256), 2)
    assert len(planned_by_l.network.features) == 6
    assert (winner.patch, winner.batch) == ((160, 320, 320), 2)
    assert winner.network.strides == ((1, 1, 1), *((2, 2, 2),) * 5, (1, 2, 2))
    assert winner.network.features == (32, 64, 128, 256, 320, 320, 320)
    assert winner.network.blocks == (1, 3, 4, 6, 6, 6, 6)
    assert winner.network.kernels == ((3, 3, 3),) * 7
    assert winner.network.classes == 43
    assert winner.training.epochs == 1500
