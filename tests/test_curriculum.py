"""Curricula: phases, settings that begin with another one's weights, whole images as patches and as windows."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace

import blosc2
import nibabel
import numpy as np
import pandas
import pytest
import torch
from torch.nn import functional

from helpers import preprocessing_plan, three_cases, tiny_plan, weights_of
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Inference, Network, Parallel, Phase, Setting
from megavoxel.config.study import Timing
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Training
from megavoxel.errors import UserError
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.ways import check_parallel
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import load_weights, save_weights
from megavoxel.planning.patch import predicting_devices, prediction_window
from megavoxel.planning.plan import PhasePlan, Plan, load_plan, save_plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.tasks.segmentation import training
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import train
from scans import unwritten
from stage_server import programs
from test_planner import fingerprint
from training_jobs import training_command

CPU = torch.device("cpu")
SMALL = PhasePlan(patch=(8, 8, 8), batch=4, epochs=1, learning_rate=0.02)
LARGE = PhasePlan(patch=(16, 20, 16), batch=2, epochs=2, learning_rate=0.01)


def curriculum(**changes) -> Plan:
    """A small patch, then the whole of cases of 14 × 18 × 16 voxels."""
    training = {"epochs": LARGE.epochs, "learning_rate": LARGE.learning_rate, "optimizer": "rmsprop"}
    plan = tiny_plan(patch=LARGE.patch, batch=LARGE.batch, phases=(SMALL, LARGE), training=training)
    return replace(plan, **changes)


@pytest.fixture
def fold(tmp_path) -> VolumeData:
    return three_cases(tmp_path)


def check_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_each_phase_begins_with_the_weights_of_the_one_before(fold, tmp_path):
    plan = curriculum()
    small, large = plan.by_phase()
    assert (small.patch, small.batch, small.training.learning_rate, small.phases) == ((8, 8, 8), 4, 0.02, ())
    first = train(small, fold, tmp_path / "small", CPU)
    save_weights(tmp_path / "small.pt", first.network, plan_hash=small.hash)
    second = train(large, replace(fold, start=tmp_path / "small.pt"), tmp_path / "large", CPU)
    whole = train(plan, fold, tmp_path / "state", CPU)
    check_equal(weights_of(whole), weights_of(second))
    assert [(row["phase"], row["epoch"], row["learning_rate"]) for row in whole.history] == [
        (1, 1, 0.02),
        (2, 2, 0.01),
        (2, 3, pytest.approx(0.01 * 0.5**0.9)),
    ]
    assert whole.epoch == 3
    assert whole.plan.hash == plan.hash
    assert whole.peak_memory is not None


def test_a_run_that_was_interrupted_goes_on_in_its_phase(fold, tmp_path, monkeypatch):
    plan = curriculum()
    whole = train(plan, fold, tmp_path / "whole", CPU)
    validated = []
    validate = training.validate

    def killed_in_the_second_phase(*arguments):
        validated.append(arguments)
        if len(validated) == 3:
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(training, "validate", killed_in_the_second_phase)
    with pytest.raises(KeyboardInterrupt):
        train(plan, fold, tmp_path / "state", CPU)
    resumed = train(plan, fold, tmp_path / "state", CPU)
    assert len(validated) == 4  # the last epoch alone
    check_equal(weights_of(whole), weights_of(resumed))
    assert [row["training_loss"] for row in resumed.history] == [row["training_loss"] for row in whole.history]


@pytest.mark.slow
def test_phases_go_through_a_pipeline(fold, tmp_path):
    # Without RMSProp, which divides by the size of gradients: where they are all but 0 it takes noise for steps.
    plain = curriculum(training=replace(curriculum().training, optimizer="sgd"))
    plan = replace(plain, parallel=Parallel(pipeline=2, micro_batches=2), stages=(0, 4))
    command = training_command(tmp_path, plan, forked=True)
    done = subprocess.run([*command, "--output", "out"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    single = train(plain, fold, tmp_path / "single", CPU)
    weights = load_weights(tmp_path / "out" / "model.pt", plan_hash=plan.hash)["weights"]
    for name, tensor in single.network.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-3)
    history = pandas.read_csv(tmp_path / "out" / "history.csv")
    assert list(history["phase"]) == [1, 2, 2]
    assert "phase 2 of 2" in done.stdout


def test_weights_of_another_network_are_refused(fold, tmp_path):
    other = tiny_plan()
    other = replace(other, network=replace(other.network, features=(4, 8, 16)))
    save_weights(tmp_path / "other.pt", SegmentationNetwork(other.network), plan_hash=other.hash)
    plan = tiny_plan(start="other")
    message = "setting tiny: start: the network of other is another one: program.blocks.decoder1"
    with pytest.raises(UserError, match=re.escape(message)):
        train(plan, replace(fold, start=tmp_path / "other.pt"), tmp_path / "state", CPU)


def test_the_key_of_a_run_knows_its_starting_weights(fold):
    plan = tiny_plan(start="other")
    keys = {replace(fold, start_data=data).key(plan) for data in (None, "a", "b")}
    assert len(keys) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("other", [], "setting tiny: it begins with the weights of other; give --weights with the model.pt of that"),
        (None, ["--weights", "x.pt"], "--weights: setting tiny begins with random weights; leave it out"),
        ("other", ["--weights", "x.pt"], "--weights x.pt: no such file; train other on this fold first"),
    ],
)
def test_starting_weights_are_asked_for_where_they_belong(tmp_path, start, options, message):
    command = [*training_command(tmp_path, tiny_plan(start=start), forked=True), *options, "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def planned(setting: Setting, shapes=((40, 50, 60), (44, 46, 70), (42, 48, 58))) -> Plan:
    cases = unwritten(len(shapes))
    found = fingerprint([(1, 1, 1)] * len(shapes), shapes)
    return plan_setting(cases, plan_preprocessing(cases, found, setting.preprocessing), setting, study="test", seed=1)


def test_a_whole_image_is_the_largest_case_along_each_axis():
    plan = planned(Setting(name="s", patch="whole", batch=1))
    assert plan.patch == (44, 50, 70)
    assert plan.inference.window == "whole"
    assert plan.notes[0] == "patch: whole is 44 × 50 × 70, the most voxels of a training case along each axis"


def test_a_network_for_another_patch_than_the_settings():
    small = planned(Setting(name="s", patch=(32, 32, 32), batch=2))
    whole = planned(Setting(name="s", patch="whole", batch=1, network=Network(for_patch=(32, 32, 32))))
    assert whole.network == small.network
    assert planned(Setting(name="s", patch=(70, 70, 70), batch=1)).network != small.network


def test_phases_share_the_network_of_the_smallest_patch_and_end_with_the_last():
    phases = (
        Phase(patch=(32, 32, 48), batch=8, epochs=40, learning_rate=1e-3),
        Phase(patch=(64, 16, 64), epochs=20),
        Phase(patch="whole", batch=1),
    )
    training = Training(epochs=10, learning_rate=5e-4, iterations_per_epoch=7)
    plan = planned(Setting(name="s", batch=2, phases=phases, training=training))
    assert plan.phases == (
        PhasePlan(patch=(32, 32, 48), batch=8, epochs=40, learning_rate=1e-3),
        PhasePlan(patch=(64, 16, 64), batch=2, epochs=20, learning_rate=5e-4),
        PhasePlan(patch=(44, 50, 70), batch=1, epochs=10, learning_rate=5e-4),
    )
    assert (plan.patch, plan.batch, plan.training.epochs) == ((44, 50, 70), 1, 10)
    assert plan.network == planned(Setting(name="s", patch=(32, 16, 48), batch=2)).network
    assert plan.notes[-4:-1] == (
        "phase 1: patch 32 × 32 × 48, batch 8, 40 epochs of 7 steps from learning rate 0.001",
        "phase 2: patch 64 × 16 × 64, batch 2, 20 epochs of 7 steps from learning rate 0.0005",
        "phase 3: patch 44 × 50 × 70, batch 1, 10 epochs of 7 steps from learning rate 0.0005",
    )


def test_plans_with_and_without_a_curriculum_come_back_from_their_files(tmp_path):
    for plan in (curriculum(start="other", inference=Inference(window="whole")), tiny_plan()):
        save_plan(tmp_path / "plan.json", plan)
        assert load_plan(tmp_path / "plan.json") == plan
    written = json.loads((tmp_path / "plan.json").read_text())
    assert (written["phases"], written["start"], written["inference"]["window"]) == ([], None, None)
    assert written["preprocessing"]["largest_shape"] is None


def test_phases_count_for_the_hash_and_windows_do_not():
    plan = curriculum()
    assert plan.hash != replace(plan, phases=(SMALL, SMALL, LARGE)).hash
    assert plan.hash == replace(plan, inference=Inference(window="whole")).hash


@pytest.mark.slow
def test_the_forecast_of_a_curriculum_is_its_fullest_phase_and_all_hours():
    device = Device(name="gpu", kind="gpu", memory_gib=16, teraflops={"half": 1.0, "float32": 1.0})
    workload = Workload(training_cases=20, folds=5)
    plan = curriculum(preprocessing=preprocessing_plan(largest_shape=(14, 18, 16)))
    whole, small, large = (forecast_setting(each, Parallel(), device, workload) for each in (plan, *plan.by_phase()))
    assert whole.training_gib == max(small.training_gib, large.training_gib) == large.training_gib
    assert whole.prediction_gib == large.prediction_gib
    prediction = large.hours_per_fold - training_hours(plan.by_phase()[1], device, workload)
    expected = sum(training_hours(each, device, workload) for each in plan.by_phase()) + prediction
    assert whole.hours_per_fold == pytest.approx(expected)


def training_hours(plan: Plan, device: Device, workload: Workload) -> float:
    """Hours of training alone: what twice the epochs add."""
    twice = replace(plan, training=replace(plan.training, epochs=2 * plan.training.epochs))
    once, more = (forecast_setting(each, Parallel(), device, workload).hours_per_fold for each in (plan, twice))
    return more - once


def test_every_phase_has_to_be_cut_into_the_parts_of_a_step():
    assert curriculum().common_batch == 2
    with pytest.raises(UserError, match="batch 2 cannot be cut into data 1 × accumulate 4"):
        check_parallel(curriculum(), Parallel(accumulate=4))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (None, (8, 12, 12)),
        ((16, 16, 16), (16, 16, 16)),
        ("whole", (14, 20, 20)),  # 13, 18, 17 voxels, in steps of 2, 4 and 4
    ],
)
def test_the_window_is_the_patch_another_size_or_the_whole_image(keys, expected):
    plan = tiny_plan(inference=Inference(window=keys))
    assert prediction_window(plan, (13, 18, 17)) == expected


def test_a_window_of_the_whole_image_is_no_smaller_than_the_patch():
    assert prediction_window(tiny_plan(inference=Inference(window="whole")), (5, 18, 3)) == (8, 20, 12)


def test_a_whole_image_goes_through_the_network_at_once(tmp_path):
    plan = tiny_plan(inference=Inference(window="whole", mirror=False))
    network = SegmentationNetwork(plan.network, seed=3).eval()
    save_weights(tmp_path / "model.pt", network, plan_hash=plan.hash, precision="float32")
    image = np.random.default_rng(0).normal(size=(1, 14, 18, 17)).astype(np.float32)
    predictor = CasePredictor.from_files(plan, [tmp_path / "model.pt"], CPU)
    found = torch.cat([slab.logits for slab in predictor.slabs(image)], dim=1)
    # 14 × 20 × 20 around it: one voxel of 0 in front of and behind the second axis, one and two along the third.
    padded = functional.pad(torch.from_numpy(image), (1, 2, 1, 1))
    with torch.no_grad():
        expected = network(padded[None])[0][0, :, :, 1:19, 1:18]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def study(**settings) -> dict:
    return {"study": "s", "dataset": "d", "folds": 3, "settings": {"small": {}, **settings}}


def test_a_study_lists_phases_and_starts():
    values = study(whole={"patch": "whole", "start": "small"}, both={"phases": [{"patch": [8, 8, 8]}, {"batch": 1}]})
    parsed = parse_study(values | {"timing": True}, source="s")
    assert (parsed.setting("whole").patch, parsed.setting("whole").start) == ("whole", "small")
    assert parsed.setting("both").phases == (Phase(patch=(8, 8, 8)), Phase(batch=1))
    assert parsed.timing == Timing()


def test_repeats_begin_with_the_repeat_of_the_same_seed():
    values = study(small={"seeds": [1, 2]}, whole={"start": "small", "seeds": [1, 2]})
    parsed = parse_study(values, source="s")
    assert parsed.setting("whole-seed2").start == "small-seed2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {"start": "smal"}}, "settings.a.start: there is no setting 'smal'; allowed: small, a (did you mean"),
        ({"a": {"start": "a"}}, "settings.a.start: the settings refer to one another in a circle: a -> a"),
        (
            {"a": {"start": "b"}, "b": {"stage1": ["a"]}},
            "settings.a.start: the settings refer to one another in a circle: a -> b -> a",
        ),
        (
            {"small": {"folds": [0]}, "a": {"start": "small"}},
            "settings.a.start: 'small' is not trained on fold 1, which this setting is; give both the same 'folds'",
        ),
        ({"a": {"phases": [{"batch": 2}]}}, "settings.a.phases: "),
        (
            {"a": {"phases": [{"patch": "hole"}, {}]}},
            "settings.a.phases.0.patch: 'hole' is not allowed; voxels per axis, coarsest axis first, or whole",
        ),
        ({"a": {"phases": [{}, {"epoch": 3}]}}, "settings.a.phases.1.epoch: unknown key 'epoch'; allowed: batch,"),
        (
            {"a": {"phases": [{}, {}], "training": {"samples": 100}}},
            "settings.a.training.samples: phases have batches of their own",
        ),
        (
            {"a": {"phases": [{}, {}], "expansion": {"factor": 2}}},
            "settings.a.phases: a setting with 'expansion' trains on one pair of patches; remove one of them",
        ),
    ],
)
def test_curricula_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_study(study(**settings), source="s.yaml")


@pytest.mark.parametrize(
    ("window", "parallel", "is_timed"),
    [
        pytest.param("whole", Parallel(pipeline=2), False, marks=pytest.mark.slow),
        pytest.param((16, 16, 8), Parallel(pipeline=2), True, marks=pytest.mark.slow),
        pytest.param("whole", Parallel(space=(1, 1, 2)), True, marks=pytest.mark.slow),
    ],
    ids=["whole, stages", "larger, stages", "whole, tiles"],
)
def test_windows_larger_than_the_patch_go_over_the_devices_of_a_patch(tmp_path, window, parallel, is_timed):
    """As label maps of `megavoxel predict` and as times of `megavoxel time`: two processes, a stage or tile in each."""
    small = {"phases": (), "patch": (8, 8, 8), "inference": Inference(window=window)}
    plan = curriculum(parallel=parallel, stages=(0, 4) if parallel.pipeline > 1 else (), **small)
    assert predicting_devices(plan) == 2
    alone = replace(plan, parallel=Parallel(), stages=())
    training_command(tmp_path, plan)
    weights = []
    for fold in range(2):
        network = SegmentationNetwork(plan.network, seed=fold)
        weights.append(f"model{fold}.pt")
        save_weights(tmp_path / weights[-1], network, plan_hash=plan.hash, precision="float32")
    save_plan(tmp_path / "alone.json", alone)
    words = ["--preprocessed", "cases", "--splits", "splits.json", "--fold", "0", "--split", "validation"]

    def run(*options: str) -> str:
        done = subprocess.run(
            [str(programs() / "megavoxel"), *options, *words, "--device", "cpu", "--threads", "2"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in ("plan", "alone"):
        run("predict", "--plan", f"{name}.json", "--weights", *weights, "--output", name, "--logits", f"{name}-logits")
    logits = [next((tmp_path / f"{name}-logits").glob("*.b2nd")) for name in ("plan", "alone")]
    shared, whole = (blosc2.open(str(path))[:].astype(np.float32) for path in logits)
    np.testing.assert_allclose(shared, whole, atol=5e-3)
    maps = [nibabel.load(tmp_path / name / "case2.nii.gz").get_fdata() for name in ("plan", "alone")]
    assert np.mean(maps[0] == maps[1]) >= 0.9999
    assert np.abs(whole).max() > 0.05
    if is_timed:
        timed = run("time", "--plan", "plan.json", "--weights", weights[0], "--repeats", "1", "--output", "t.csv")
        assert "case2" in timed
        assert list(pandas.read_csv(tmp_path / "t.csv")["window"]) == ["whole" if window == "whole" else "16x16x8"]


@pytest.mark.parametrize(
    ("window", "devices"), [("whole", 2), (None, 2), ((8, 8, 8), 2), ((4, 8, 16), 2), ((8, 8, 4), 1), ((4, 4, 4), 1)]
)
def test_a_window_larger_than_a_tile_is_predicted_on_the_devices_of_a_patch(window, devices):
    """A device that trains with a tile holds as many voxels of a window."""
    parallel, inference = Parallel(space=(1, 1, 2), data=4), Inference(window=window)
    plan = curriculum(phases=(), patch=(8, 8, 8), parallel=parallel, inference=inference)
    assert predicting_devices(plan) == devices


@pytest.mark.parametrize("window", [None, (8, 8, 8), (4, 8, 16)])
def test_a_window_no_larger_than_the_patch_is_predicted_on_one_device(window):
    """Every device of the pipeline holds a step of training with it, so one holds it without gradients."""
    plan = curriculum(phases=(), patch=(8, 8, 8), parallel=Parallel(pipeline=2), inference=Inference(window=window))
    assert predicting_devices(plan) == 1
