"""The low-resolution stage, worked out by hand."""

from __future__ import annotations

import math

import pytest

from megavoxel.cli import main
from megavoxel.config.setting import Network, Preprocessing, Setting
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Training
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities, save_fingerprint
from megavoxel.planning.low_resolution import LowResolution, NoLowResolution, coarser, low_resolution
from megavoxel.planning.patch import Frame
from megavoxel.planning.plan import load_preprocessing_plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from scans import unwritten

CASES = unwritten(100)
INTENSITIES = Intensities(
    mean=40.0, median=41.0, std=20.0, minimum=-900.0, maximum=900.0, percentile_0_5=-100.0, percentile_99_5=300.0
)


def frame(shape, spacing=(1.0, 1.0, 1.0), memory_gib=8.0) -> Frame:
    return Frame(
        setting="s", spacing=spacing, median_shape=shape, channels=1, classes=3, memory_gib=memory_gib, keys=Network()
    )


def fingerprint(shape, spacing=(1.0, 1.0, 1.0)) -> Fingerprint:
    found = [CaseFingerprint(id=case.id, spacing=spacing, shape=shape, cropped_shape=shape) for case in CASES.cases]
    return Fingerprint(dataset="made", channels=("CT",), cases=tuple(found), intensities=(INTENSITIES,))


def low_note(shape, **setting) -> str:
    made = Setting(name="s", **setting)
    plan = plan_setting(
        CASES, plan_preprocessing(CASES, fingerprint(shape), made.preprocessing), made, study="t", seed=1
    )
    return next(text for text in plan.notes if text.startswith("low resolution"))


def test_a_patch_that_holds_a_quarter_of_the_case_is_enough():
    # 128³ voxels fit into 8 GiB: 25.09 % of 203³, 24.72 % of 204³.
    held = "nnU-Net's own patch, 128 × 128 × 128, holds 25% of the median case"
    assert low_resolution(frame((203, 203, 203))) == NoLowResolution(reason=held)
    assert "holds" not in low_resolution(frame((204, 204, 204))).reason


def test_below_half_the_voxels_the_stage_is_dropped():
    # 220 voxels per axis at 1.03³ mm are 201.3, the first below 203.2; 1.03^9 = 1.305.
    found = low_resolution(frame((220, 220, 220)))
    assert isinstance(found, NoLowResolution)
    assert found.reason == "it would have 1.3 times fewer voxels, and below 2 it is dropped"


def test_voxels_grow_by_three_percent_until_the_patch_holds_a_quarter():
    # 4 · 128³ voxels are 203.2 per axis; 300 / 1.03^13 = 204.3, 300 / 1.03^14 = 198.3.
    found = low_resolution(frame((300, 300, 300)))
    assert isinstance(found, LowResolution)
    assert found.frame.spacing == pytest.approx([1.03**14] * 3)
    assert found.frame.median_shape == (198, 198, 198)
    assert found.candidate.patch == (128, 128, 128)
    assert found.candidate.network.strides == ((1, 1, 1), *[(2, 2, 2)] * 5)


def test_more_memory_makes_the_stage_finer():
    few, many = (low_resolution(frame((400, 400, 400), memory_gib=memory)).frame for memory in (8, 24))
    assert math.prod(many.spacing) < math.prod(few.spacing)


def test_axes_finer_than_half_the_coarsest_grow_first():
    assert coarser((5.0, 1.0, 3.0)) == (5.0, 1.03, 3.0)
    assert coarser((2.0, 1.0, 1.0)) == pytest.approx((2.06, 1.03, 1.03))  # twice exactly is not more than twice


def test_the_plan_says_which_it_is():
    assert low_note((64, 64, 64)) == "low resolution: not needed, the patch holds 100% of the median case"
    assert low_note((220, 220, 220)).startswith("low resolution: none when planned for 8 GiB, it would have 1.3 times")
    large = low_note((300, 300, 300))
    assert large.startswith("low resolution: 1.51259 × 1.51259 × 1.51259 mm, median 198 × 198 × 198, ")
    assert "patch 128 × 128 × 128, planned for 8 GiB" in large


@pytest.mark.parametrize(
    ("shape", "setting", "whole"),
    [
        ((300, 300, 300), {}, True),
        ((150, 150, 150), {}, False),
        ((300, 300, 300), {"preprocessing": Preprocessing(resolution="low")}, False),
        ((300, 300, 300), {"training": Training(batch_dice=False)}, False),
        ((150, 150, 150), {"training": Training(batch_dice=True)}, True),
        ((300, 300, 300), {"patch": (208, 208, 208)}, False),
    ],
)
def test_dice_is_of_the_whole_batch_where_there_is_such_a_stage(shape, setting, whole):
    keys = setting.get("preprocessing", Preprocessing())
    preprocessing = plan_preprocessing(CASES, fingerprint(shape), keys)
    plan = plan_setting(CASES, preprocessing, Setting(name="s", **setting), study="test", seed=1)
    assert plan.training.batch_dice is whole
    note = next(text for text in plan.notes if text.startswith("dice: "))
    assert ("whole batch" in note) is whole


def test_a_small_patch_of_the_study_does_not_move_the_stage():
    assert low_note((64, 64, 64), patch=(32, 32, 32)) == (
        "low resolution: none when planned for 8 GiB, nnU-Net's own patch, 64 × 64 × 64, holds 100% of the median case"
    )
    assert low_note((300, 300, 300), patch=(64, 64, 64), memory_gib=2) == low_note((300, 300, 300))


def test_a_setting_can_be_trained_at_it():
    keys = Preprocessing(resolution="low")
    preprocessing = plan_preprocessing(CASES, fingerprint((300, 300, 300)), keys)
    assert preprocessing.spacing == pytest.approx([1.03**14] * 3)
    assert preprocessing.median_shape == (198, 198, 198)
    assert any("1.51259 × 1.51259 × 1.51259 mm, the low resolution" in text for text in preprocessing.notes)
    plan = plan_setting(CASES, preprocessing, Setting(name="s", preprocessing=keys), study="t", seed=1)
    assert plan.patch == (128, 128, 128)
    # 2.097 of 7.762 million voxels
    assert "low resolution: the setting is trained at it, and the patch holds 27% of the median case" in plan.notes


def test_axes_stay_in_network_order_at_low_resolution():
    keys = Preprocessing(resolution="low")
    plan = plan_preprocessing(CASES, fingerprint((500, 500, 120), (1.0, 1.0, 3.0)), keys)
    assert plan.transpose == (2, 0, 1)
    assert plan.spacing[0] == max(plan.spacing)
    assert plan.median_shape[0] == min(plan.median_shape)


def test_asking_for_a_stage_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"'low', but dataset made has no low-resolution stage \(nnU-Net's own .* 100%"):
        plan_preprocessing(CASES, fingerprint((64, 64, 64)), Preprocessing(resolution="low"))


def test_asking_for_a_spacing_as_well_is_refused():
    keys = Preprocessing(resolution="low", spacing=(2.0, 2.0, 2.0))
    with pytest.raises(UserError, match=r"preprocessing.spacing is given as well; leave out one of them"):
        plan_preprocessing(CASES, fingerprint((300, 300, 300)), keys)


def test_the_key_goes_from_the_study_to_the_plan(tmp_path):
    save_cases(tmp_path / "cases.json", CASES)
    save_fingerprint(tmp_path / "fingerprint.json", fingerprint((300, 300, 300)))
    study, output = tmp_path / "study.yaml", tmp_path / "plan.json"
    study.write_text("study: demo\ndataset: made\nsettings:\n  coarse:\n    preprocessing: {resolution: low}\n")
    files = ["--cases", str(tmp_path / "cases.json"), "--fingerprint", str(tmp_path / "fingerprint.json")]
    asked = ["--study", str(study), "--setting", "coarse", "--output", str(output)]
    assert main(["plan-preprocessing", *files, *asked]) == 0
    assert load_preprocessing_plan(output).median_shape == (198, 198, 198)


def test_another_resolution_is_refused():
    study = {"study": "s", "dataset": "made", "settings": {"a": {"preprocessing": {"resolution": "half"}}}}
    with pytest.raises(UserError, match=r"resolution.*full.*low"):
        parse_study(study, source="study.yaml")
