"""Plans worked out by hand, plans that nnU-Net has published, and what a study may fix."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megavoxel.cli import main
from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.setting import IntensityRange, Network, Preprocessing, Setting
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Training
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.planning.fingerprint import measure, save_fingerprint
from megavoxel.planning.plan import ChannelNormalisation, load_plan, load_preprocessing_plan, save_plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.planning.spacing import coarsest_axis, median_shape, target_spacing, transposition
from scans import dataset_of, fingerprint, unwritten


def preprocessing(current, shape, cases=10, **keys):
    """The preprocessing plan of equal cases."""
    return plan_preprocessing(unwritten(cases), fingerprint([current] * cases, [shape] * cases), Preprocessing(**keys))


def planned(current, shape, cases=10, *, keys=None, **setting):
    """The plan of a setting on equal cases."""
    plan = preprocessing(current, shape, cases, **(keys or {}))
    return plan_setting(unwritten(cases), plan, Setting(name="s", **setting), study="test", seed=1)


def note(plan, begin):
    return next(text for text in plan.notes if text.startswith(begin))


def test_the_target_spacing_is_the_median():
    assert target_spacing([(3, 1, 1), (5, 2, 1), (4, 1.5, 9)], [(50, 100, 100)] * 3) == (4, 1.5, 1)


def test_along_a_coarse_axis_with_few_voxels_it_is_the_tenth_percentile():
    spacings = [(z, 1.0, 1.0) for z in (5, 6, 10, 10, 10, 10, 10, 10, 10, 10, 10)]
    assert target_spacing(spacings, [(20, 200, 200)] * 11) == (6, 1, 1)
    assert target_spacing(spacings, [(70, 200, 200)] * 11) == (10, 1, 1)


def test_the_coarse_axis_does_not_become_finer_than_the_others():
    spacings = [(z, 1.0, 1.0) for z in (0.5, 0.5, 10, 10, 10)]
    assert target_spacing(spacings, [(20, 200, 200)] * 5) == (pytest.approx(1.00001), 1, 1)


def test_three_times_exactly_is_not_anisotropic():
    spacings = [(z, 1.0, 1.0) for z in (1.0, 3, 3, 3, 3)]
    assert target_spacing(spacings, [(20, 200, 200)] * 5) == (3, 1, 1)


def test_the_coarsest_axis_comes_first_and_noise_does_not_choose_it():
    assert transposition((1.0, 1.0, 2.0)) == (2, 0, 1)
    assert transposition((1.0, 4.0, 2.0)) == (1, 0, 2)
    assert coarsest_axis((1.0, 1.0000001, 1.0)) == 0


def test_the_median_shape_is_of_the_resampled_cases():
    # Resampled along z: 10·4/2 = 20, 11·2/2 = 11, 12·1/2 = 6, 13·2/2 = 13: median 12, not that of the shapes.
    shapes, spacings = [(10, 4, 4), (11, 4, 4), (12, 4, 4), (13, 4, 4)], [(4, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1)]
    assert median_shape(shapes, spacings, (2, 1, 1)) == (12, 4, 4)
    assert median_shape([(35, 4, 4), (36, 4, 4)], [(1, 1, 1)] * 2, (1, 1, 1)) == (35.5, 4, 4)


def test_axes_are_turned_in_everything_that_the_plan_holds():
    plan = preprocessing((1.0, 0.8, 5.0), (200, 210, 30))
    assert (plan.transpose, plan.spacing, plan.median_shape) == ((2, 0, 1), (5.0, 1.0, 0.8), (30, 200, 210))
    assert plan.notes[0] == "axes: x, z, y, the coarsest first"


def test_a_fixed_spacing_is_kept_in_network_order():
    plan = preprocessing((1.0, 0.8, 5.0), (200, 210, 30), spacing=(2.5, 2.0, 0.4))
    assert (plan.transpose, plan.spacing, plan.median_shape) == ((2, 0, 1), (2.5, 2.0, 0.4), (60, 100, 420))
    assert "fixed by the study; the median of the dataset is 5 × 1 × 0.8 mm" in plan.notes[1]


def test_normalisation_goes_by_the_name_of_the_channel():
    found = fingerprint([(1, 1, 1)] * 4, [(20, 20, 20)] * 4, channels=("ct", "T2"))
    plan = plan_preprocessing(unwritten(4, channels=("ct", "T2")), found, Preprocessing())
    ct, mr = plan.normalisation
    assert (ct.scheme, ct.mean, ct.std, ct.lower, ct.upper) == ("ct", 40, 20, -100, 300)
    assert (mr.scheme, mr.mean, mr.inside_nonzero) == ("z-score", None, False)


def test_a_range_that_the_study_fixes_reaches_the_plan_and_its_hash(tmp_path):
    setting = {"preprocessing": {"normalisation": {"range": [-21, 89]}}}
    study = parse_study({"study": "s", "dataset": "d", "settings": {"a": setting}}, source="s.yaml")
    found = fingerprint([(1, 1, 1)] * 4, [(20, 20, 20)] * 4, channels=("CT", "T2"))
    plan = plan_preprocessing(unwritten(4, channels=("CT", "T2")), found, study.setting("a").preprocessing)
    assert plan.normalisation == (ChannelNormalisation(scheme="range", lower=-21.0, upper=89.0),) * 2
    assert "normalisation: channel CT: -21 to 89 becomes 0 to 1, fixed by the study" in plan.notes
    save_plan(tmp_path / "plan.json", plan)
    assert load_preprocessing_plan(tmp_path / "plan.json") == plan
    other = plan_preprocessing(unwritten(4, channels=("CT", "T2")), found, Preprocessing(normalisation="ct"))
    assert other.hash != plan.hash


def test_the_definition_of_a_range_goes_through_the_command_line():
    keys = Preprocessing(normalisation=IntensityRange(range=(-21.0, 89.0)))
    assert from_plain(Preprocessing, json.loads(json.dumps(to_plain(keys))), where="--definition") == keys
    assert to_plain(Preprocessing(normalisation="ct")) == {**to_plain(Preprocessing()), "normalisation": "ct"}


def test_the_study_overrides_the_name_and_labels_are_sorted_by_value():
    found = fingerprint([(1, 1, 1)] * 4, [(20, 20, 20)] * 4)
    cases = unwritten(4, labels={"cube": 7, "ball": 2})
    plan = plan_preprocessing(cases, found, Preprocessing(normalisation="z-score"))
    assert plan.normalisation[0].scheme == "z-score"
    assert list(plan.labels.items()) == [("ball", 2), ("cube", 7)]


@pytest.mark.parametrize(("side", "inside"), [(18, True), (19, False)])
def test_z_scores_are_of_the_nonzero_region_where_cropping_takes_a_quarter(side, inside):
    # (18/20)^3 = 0.729 and (19/20)^3 = 0.857, on both sides of 3/4.
    found = fingerprint([(1, 1, 1)] * 4, [(side,) * 3] * 4, channels=("T2",), full=(20, 20, 20))
    plan = plan_preprocessing(unwritten(4, channels=("T2",)), found, Preprocessing())
    assert plan.normalisation[0].inside_nonzero is inside


def test_a_fingerprint_of_other_channels_is_refused():
    found = fingerprint([(1, 1, 1)], [(20, 20, 20)], channels=("T1",))
    with pytest.raises(UserError, match="run 'megavoxel fingerprint' again"):
        plan_preprocessing(unwritten(1), found, Preprocessing())


def test_the_plan_that_nnunet_published_for_the_hippocampus():
    plan = planned((1.0, 1.0, 1.0), (36, 50, 35), cases=260)
    assert (plan.patch, plan.batch) == ((40, 56, 40), 9)
    assert plan.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.network.kernels == ((3, 3, 3),) * 4
    assert plan.network.features == (32, 64, 128, 256)
    assert plan.network.classes == 3
    assert note(plan, "batch") == "batch: 9, 5 % of the dataset's voxels; memory would do for 58"


@pytest.mark.parametrize(
    ("shape", "patch", "last"),
    [
        # Plans that nnU-Net v2 made for brain tumours and for another brain dataset, as published with their models.
        ((138, 170, 138), (128, 128, 128), (2, 2, 2)),
        ((136, 153, 171), (112, 128, 160), (1, 2, 2)),
    ],
)
def test_plans_that_nnunet_published_for_isotropic_brains(shape, patch, last):
    plan = planned((1.0, 1.0, 1.0), shape, cases=347)
    assert (plan.patch, plan.batch) == (patch, 2)
    assert plan.network.strides == ((1, 1, 1), *[(2, 2, 2)] * 4, last)


def test_memory_moves_the_patch_and_beyond_52_gib_the_batch():
    def sized(memory_gib):
        plan = planned((1.0, 1.0, 1.0), (300, 300, 300), cases=400, memory_gib=memory_gib)
        return plan.patch, plan.batch

    # About 215.9 elements per voxel: 280e6 hold 1.297e6 voxels, 1680e6 hold 7.78e6. The last axis shrinks first.
    assert sized(4) == ((112, 112, 96), 2)
    assert sized(24) == ((192, 192, 192), 2)
    # The start patch of 256³ costs 3.62e9, 6.5 times the reference of 8 GiB.
    assert sized(52) == ((256, 256, 256), 2)
    assert sized(104) == ((256, 256, 256), 4)


def test_a_fixed_patch_is_kept_and_the_plan_says_how_it_is_padded():
    plan = planned((1.0, 1.0, 1.0), (64, 64, 64), patch=(20, 33, 47))
    assert plan.patch == (20, 33, 47)
    assert plan.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert any("padded inside from 20 × 33 × 47 to 20 × 40 × 48" in text for text in plan.notes)
    assert not any("padded" in text for text in planned((1, 1, 1), (64, 64, 64), patch=(32, 32, 32)).notes)


def test_a_fixed_patch_and_spacing_make_the_network_that_belongs_to_them():
    keys = {"spacing": (2.0, 0.688, 0.688)}
    plan = planned((5.0, 0.7, 0.7), (100, 400, 400), patch=(64, 288, 288), batch=1, keys=keys)
    assert (plan.patch, plan.batch) == ((64, 288, 288), 1)
    assert plan.network.strides == ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4, (1, 2, 2))
    assert plan.network.features == (32, 64, 128, 256, 320, 320, 320)
    assert note(plan, "batch") == "batch: 1, fixed by the study"


@pytest.mark.parametrize(
    ("patch", "inside", "deepest"),
    [
        # In-plane 160, 80, 40, 20, 10, 5; 288, 144, 72, 36, 18, 9, 5; 354, 177, 89, 45, 23, 12, 6: one more halving
        # while there are 8 voxels or more. Along z 64, 64, 32, 16, 8, 4.
        ((64, 160, 160), (64, 160, 160), (2, 2, 2)),
        ((64, 288, 288), (64, 320, 320), (1, 2, 2)),
        ((64, 354, 354), (64, 384, 384), (1, 2, 2)),
        ((64, 384, 384), (64, 384, 384), (1, 2, 2)),
    ],
)
def test_a_patch_that_is_no_multiple_of_the_stride_is_kept_and_padded_inside(patch, inside, deepest):
    plan = planned((5.0, 0.7, 0.7), (100, 400, 400), patch=patch, batch=1, keys={"spacing": (2.0, 0.688, 0.688)})
    assert plan.patch == patch
    assert plan.network.strides[:6] == ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4)
    assert plan.network.strides[-1] == deepest
    padded = [text for text in plan.notes if "padded inside" in text]
    before, after = (" × ".join(map(str, size)) for size in (patch, inside))
    assert len(padded) == (patch != inside)
    assert all(f"padded inside from {before} to {after}, logits are cropped" in text for text in padded)


def test_a_fixed_patch_takes_its_batch_from_memory():
    # 128³ with 3 classes: 452 787 200 elements; 24 GiB hold 1.68e9, which is 7.42 samples.
    plan = planned((1.0, 1.0, 1.0), (200, 200, 200), cases=400, patch=(128, 128, 128), memory_gib=24)
    assert plan.batch == 7
    large = planned((1.0, 1.0, 1.0), (200, 200, 200), cases=400, patch=(192, 192, 192))
    assert large.batch == 2
    assert "needs about 22 GiB" in large.notes[-1]


def test_a_fixed_batch_shrinks_the_patch():
    two = planned((1.0, 1.0, 1.0), (200, 200, 200), cases=400, batch=2)
    eight = planned((1.0, 1.0, 1.0), (200, 200, 200), cases=400, batch=8)
    assert two.patch == (128, 128, 128)
    # A quarter of the reference, 140e6: 96 × 96 × 80 costs 159e6, and 96 × 80 × 80 costs 133e6.
    assert (eight.batch, eight.patch) == (8, (96, 80, 80))


def test_a_budget_of_samples_gives_every_batch_the_same_work():
    plans = {
        batch: planned(
            (1.0, 1.0, 1.0), (64, 64, 64), patch=(32, 32, 32), batch=batch, training=Training(samples=640, epochs=10)
        )
        for batch in (2, 16, 48)
    }
    assert {batch: plan.training.iterations_per_epoch for batch, plan in plans.items()} == {2: 32, 16: 4, 48: 1}
    assert plans[2].notes[-1] == "budget: 640 samples, 10 epochs of 32 steps of batch 2"
    assert "480 samples, because an epoch has whole steps" in plans[48].notes[-1]


def test_a_settings_own_seed_comes_before_the_studys():
    assert [planned((1.0, 1.0, 1.0), (64, 64, 64), seed=seed).seed for seed in (None, 0, 7)] == [1, 0, 7]


def test_a_patch_larger_than_the_median_case_is_allowed_with_a_note():
    plan = planned((1.0, 1.0, 1.0), (30, 64, 64), patch=(32, 64, 64))
    assert any(text.startswith("patch: larger than the median case (30 × 64 × 64)") for text in plan.notes)


def test_levels_cut_the_network_short():
    plan = planned((1.0, 1.0, 1.0), (64, 64, 64), patch=(64, 64, 64), network=Network(levels=3, base_features=8))
    assert plan.network.features == (8, 16, 32)
    assert plan.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert plan.network.kernels == ((3, 3, 3),) * 3


def test_more_levels_than_possible_are_refused_with_the_most_that_are():
    with pytest.raises(UserError, match=r"setting s: network has 6 levels, but patch 64 × 64 × 64 .* allows at most 5"):
        planned((1.0, 1.0, 1.0), (64, 64, 64), patch=(64, 64, 64), network=Network(levels=6))


def test_too_little_memory_is_said():
    with pytest.raises(UserError, match="setting s: memory_gib 1e-06 is too small for any patch at batch 2"):
        planned((1.0, 1.0, 1.0), (64, 64, 64), memory_gib=1e-6)


def test_a_preprocessing_of_another_setting_or_dataset_is_refused():
    plan = preprocessing((1.0, 1.0, 1.0), (64, 64, 64))
    other = Setting(name="s", preprocessing=Preprocessing(spacing=(2.0, 1.0, 1.0)))
    with pytest.raises(UserError, match=r"setting s: preprocessing.spacing is 2 × 1 × 1 mm"):
        plan_setting(unwritten(10), plan, other, study="test", seed=1)
    with pytest.raises(UserError, match="other labels or channels"):
        plan_setting(unwritten(10, labels={"liver": 1}), plan, Setting(name="s"), study="test", seed=1)


def test_notes_do_not_change_the_hash_of_a_preprocessing():
    plan = preprocessing((1.0, 1.0, 1.0), (64, 64, 64))
    assert replace(plan, notes=("other",)).hash == plan.hash
    assert replace(plan, spacing=(2.0, 1.0, 1.0)).hash != plan.hash


@pytest.fixture
def planned_dataset(tmp_path):
    """A folder with cases.json and fingerprint.json; returns the arguments that name them."""
    save_cases(tmp_path / "cases.json", unwritten(10))
    save_fingerprint(tmp_path / "fingerprint.json", fingerprint([(2.0, 1.0, 1.0)] * 10, [(30, 64, 64)] * 10))
    return ["--cases", str(tmp_path / "cases.json")], ["--fingerprint", str(tmp_path / "fingerprint.json")]


def test_the_stages_take_definitions(tmp_path, planned_dataset, capsys):
    cases, found = planned_dataset
    pre, output = tmp_path / "pre.json", tmp_path / "plan.json"
    asked = ["--definition", json.dumps(to_plain(Preprocessing(normalisation="z-score")))]
    assert main(["plan-preprocessing", *cases, *found, *asked, "--output", str(pre)]) == 0
    setting = Setting(name="patch32", patch=(16, 32, 32), batch=3)
    asked = ["--definition", json.dumps(to_plain(setting)), "--study-name", "demo", "--seed", "5", "--dataset", "made"]
    assert main(["plan", *cases, "--preprocessing-plan", str(pre), *asked, "--output", str(output)]) == 0
    plan = load_plan(output)
    assert (plan.study, plan.setting, plan.dataset, plan.seed) == ("demo", "patch32", "made", 5)
    assert (plan.patch, plan.batch) == ((16, 32, 32), 3)
    assert plan.preprocessing == load_preprocessing_plan(pre)
    assert plan.preprocessing.normalisation[0].scheme == "z-score"
    assert "batch: 3, fixed by the study" in capsys.readouterr().out


def test_the_stages_take_a_setting_of_a_study(tmp_path, planned_dataset):
    cases, found = planned_dataset
    study, pre, output = tmp_path / "study.yaml", tmp_path / "pre.json", tmp_path / "plan.json"
    study.write_text("study: demo\ndataset: made\nseed: 7\nsettings:\n  small:\n    patch: [16, 32, 32]\n")
    asked = ["--study", str(study), "--setting", "small"]
    assert main(["plan-preprocessing", *cases, *found, *asked, "--output", str(pre)]) == 0
    assert main(["plan", *cases, "--preprocessing-plan", str(pre), *asked, "--output", str(output)]) == 0
    plan = load_plan(output)
    assert (plan.study, plan.setting, plan.seed, plan.patch) == ("demo", "small", 7, (16, 32, 32))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--definition", "{"], "--definition: not JSON"),
        (["--definition", "[]"], "--definition: expected a JSON mapping"),
        (["--definition", '{"spacings": [1, 1, 1]}'], "unknown key 'spacings'"),
    ],
)
def test_a_faulty_definition_is_refused(tmp_path, planned_dataset, capsys, asked, message):
    cases, found = planned_dataset
    output = tmp_path / "pre.json"
    assert main(["plan-preprocessing", *cases, *found, *asked, "--output", str(output)]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.real_data
def test_real_images_get_the_plans_that_their_shapes_ask_for(real_data):
    """CHAOS is anisotropic (7.7 × 1.25 × 1.25 mm, about 34 slices of 256²)."""
    cases = dataset_of(real_data / "chaos_mr_t2", limit=3)
    plan = plan_setting(
        cases, plan_preprocessing(cases, measure(cases), Preprocessing()), Setting(name="s"), study="test", seed=1
    )
    assert plan.preprocessing.transpose == (0, 1, 2)
    assert plan.preprocessing.spacing == pytest.approx((7.7, 1.25, 1.25), abs=0.01)
    assert plan.network.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert plan.network.strides[:3] == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert plan.patch[0] < plan.patch[1]
    assert plan.batch == 2
