"""Patches beside the network that they go through: what is too small or padded, and fixed strides."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml

from helpers import preprocessing_plan, tiny_plan
from megavoxel.cli import main
from megavoxel.config.setting import Expansion, Inference, Network, Phase, Preprocessing, Setting
from megavoxel.config.study_file import parse_study
from megavoxel.datasets.cases import Case, Cases
from megavoxel.errors import UserError
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities
from megavoxel.planning.planner import plan_preprocessing, plan_setting

CASES = Cases(
    dataset="made", root="", channels=("CT",), labels={"ball": 1, "cube": 3}, nsd_tolerance_mm={},
    cases=tuple(Case(id=f"case{number}", images=("i.nii.gz",), label="l.nii.gz") for number in range(10)),
)  # fmt: skip


def planned(**keys):
    preprocessing = preprocessing_plan(median_shape=(128.0, 128.0, 128.0), largest_shape=(128, 128, 128))
    return plan_setting(CASES, preprocessing, Setting(name="s", **{"batch": 2, **keys}), study="t", seed=1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"patch": (16, 16, 16), "network": Network(for_patch=(128, 128, 128))}, "patch 16 × 16 × 16 leaves one voxel"),
        ({"patch": (1, 1, 1)}, "more than 1 × 1 × 1 voxels along some axis"),
        (
            {"network": Network(for_patch=(64, 64, 64)), "phases": (Phase(patch=(16, 16, 16)), Phase(patch=(64,) * 3))},
            "more than 16 × 16 × 16 voxels along some axis",
        ),
        ({"patch": (64, 64, 64), "inference": Inference(window=(8, 8, 8))}, "inference.window 8 × 8 × 8 leaves"),
    ],
)
def test_a_single_voxel_at_the_lowest_level_is_refused_and_a_size_above_trains(keys, said):
    with pytest.raises(UserError, match=r"setting s: .* fewer levels in 'network'") as found:
        planned(**keys)
    assert said in str(found.value)


@pytest.mark.parametrize("window", [(1, 64, 64), (64, 64, 15)])
def test_a_window_below_the_stride_is_refused_when_it_is_planned_and_when_a_model_has_it(window):
    with pytest.raises(UserError, match=r"inference\.window .* smaller than the network's stride, 16 × 16 × 16"):
        planned(patch=(64, 64, 64), inference=Inference(window=window))
    plan = tiny_plan(inference=Inference(window=(8, 3, 12)))  # its strides together are 2 × 4 × 4
    with pytest.raises(UserError, match=r"setting tiny: .* stride, 2 × 4 × 4"):
        CasePredictor(plan, [SegmentationNetwork(plan.network)], "float32", torch.device("cpu"))


def test_a_patch_just_above_the_stride_goes_through_the_network():
    plan = planned(patch=(9, 8, 8), network=Network(strides=((1, 1, 1), (8, 8, 8)), base_features=4))
    assert SegmentationNetwork(plan.network)(torch.zeros(1, 1, 9, 8, 8))[0].shape == (1, 3, 9, 8, 8)


@pytest.mark.slow
def test_a_setting_that_is_too_small_leaves_the_others_their_forecast(tmp_path):
    network = {"for_patch": [128, 128, 128]}
    study = {
        "study": "two",
        "dataset": "made",
        "hardware": "small",
        "settings": {"tiny": {"patch": [16] * 3, "network": network}, "sound": {"patch": [18, 20, 16], "batch": 2}},
    }
    dataset = {
        "name": "made", "source": {"folder": "nowhere"}, "channels": ["CT"], "labels": {"ball": 1},
        "declared": {"training_cases": 10, "shape": [40, 40, 40], "spacing": [1.0, 1.0, 1.0]},
    }  # fmt: skip
    hardware = {"devices": {"small": {"kind": "gpu", "memory_gib": 8, "teraflops": {"half": 10}}}}
    (tmp_path / "datasets").mkdir()
    for name, content in {"study": study, "datasets/made": dataset, "hardware": hardware}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    places = ["--hardware", str(tmp_path / "hardware.yaml"), "--datasets", str(tmp_path / "datasets")]
    output = ["--processes", "1", "--output", str(tmp_path / "plan.tsv")]
    assert main(["estimate", "--study", str(tmp_path / "study.yaml"), *places, *output]) == 0
    rows = pd.read_csv(tmp_path / "plan.tsv", sep="\t").set_index("setting")
    assert dict(rows["fits"]) == {"tiny": "no", "sound": "yes"}
    assert "leaves one voxel at the lowest" in rows.loc["tiny", "reason"]
    assert "padded inside from 18 × 20 × 16 to 20 × 20 × 16" in rows.loc["sound", "reason"]


def test_the_padding_of_every_phase_and_of_an_expanded_patch_is_said():
    phases = planned(phases=(Phase(patch=(30, 32, 32)), Phase(patch=(62, 64, 64))))
    texts = [text for text in phases.notes if "padded inside" in text]
    assert [text.split("padded inside from ")[1].split(",")[0] for text in texts] == [
        "30 × 32 × 32 to 32 × 32 × 32",
        "62 × 64 × 64 to 64 × 64 × 64",
    ]
    expanded = planned(patch=(32, 32, 32), expansion=Expansion(factor=(1.5, 1.3, 1.5)))
    assert any(text.startswith("expanded patch: not a multiple") for text in expanded.notes)
    assert not any("padded inside" in text for text in planned(patch=(32, 32, 32)).notes)


def test_strides_and_kernels_that_a_study_fixes_make_the_network():
    strides, kernels = ((1, 1, 1), (1, 2, 2), (4, 2, 2)), ((1, 3, 3), (5, 3, 3), (3, 3, 3))
    plan = planned(patch=(16, 32, 32), network=Network(strides=strides, kernels=kernels, base_features=4))
    assert (plan.network.strides, plan.network.kernels) == (strides, kernels)
    assert SegmentationNetwork(plan.network)(torch.zeros(1, 1, 16, 32, 32))[0].shape == (1, 3, 16, 32, 32)
    assert "network: 3 levels (fixed by the study), stride 4 × 4 × 4" in plan.notes
    ruled = planned(patch=(16, 32, 32), network=Network(strides=strides))
    assert ruled.network.kernels == ((3, 3, 3),) * 3


def test_a_network_for_another_patch_is_not_called_that_of_this_one():
    plan = planned(patch=(32, 32, 32), network=Network(for_patch=(64, 64, 64)))
    note = next(text for text in plan.notes if text.startswith("network:"))
    assert "as many as the patch 64 × 64 × 64 and the spacing allow" in note


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"network": {"strides": [[1, 1, 1]], "levels": 2}}, r"network\.strides: it has 1 entries for 2 levels"),
        ({"network": {"strides": [[1, 1, 1]], "kernels": [[3, 3, 3]] * 2}}, r"kernels: it has 2 entries for 1 levels"),
        ({"network": {"strides": [[1, 1, 1]], "for_patch": [32, 32, 32]}}, r"for_patch: .* remove one of them"),
        ({"network": {"kernels": [[2, 3, 3]]}}, r"kernels"),
        ({"preprocessing": {"transpose": [0, 0, 1]}}, r"preprocessing\.transpose: \[0, 0, 1\]; give 0, 1 and 2"),
    ],
)
def test_strides_kernels_and_axes_that_cannot_be_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        parse_study({"study": "s", "dataset": "made", "settings": {"a": keys}}, source="s.yaml")


def test_an_order_of_axes_that_a_study_fixes_turns_all_that_the_plan_holds():
    shapes = tuple(
        CaseFingerprint(id=case.id, spacing=(4.0, 1.0, 2.0), shape=(10, 40, 20), cropped_shape=(10, 40, 20))
        for case in CASES.cases
    )
    nothing = Intensities(mean=0, median=0, std=1, minimum=0, maximum=0, percentile_0_5=0, percentile_99_5=0)
    fingerprint = Fingerprint(dataset="made", channels=("CT",), cases=shapes, intensities=(nothing,))
    keys = Preprocessing(transpose=(1, 2, 0))
    turned = plan_preprocessing(CASES, fingerprint, keys)
    assert turned.transpose == (1, 2, 0)
    assert turned.spacing == (1.0, 2.0, 4.0)
    assert turned.median_shape == (40, 20, 10)
    assert "axes: y, x, z, fixed by the study" in turned.notes
    assert any("its first axis is not the coarsest one" in text for text in turned.notes)
    other, setting = replace(turned, transpose=(0, 1, 2)), Setting(name="s", preprocessing=keys)
    with pytest.raises(UserError, match=r"transpose is .*belongs to another setting"):
        plan_setting(CASES, other, setting, study="t", seed=1)
