"""Hours, plan.tsv, and what training says of memory."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml

from forecast_plan import WORKLOAD, device, needs, plan_of_some_size
from helpers import tiny_plan
from megavoxel.cli import main
from megavoxel.config.dataset import load_dataset
from megavoxel.config.hardware import Device, load_device, update_device
from megavoxel.config.records import to_plain
from megavoxel.config.setting import Inference, Parallel, Setting
from megavoxel.config.study import Partitions
from megavoxel.config.study_file import parse_study, with_memory
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.forecast.calibration import SMALL, measure, plan_of
from megavoxel.forecast.choice import choose
from megavoxel.forecast.duration import Speed, prediction_seconds, step_seconds
from megavoxel.forecast.pipeline_step import staged_window
from megavoxel.forecast.prediction import WholeImages
from megavoxel.forecast.setting import connections_gib, counted_gib, forecast_setting, precision_on
from megavoxel.forecast.step import GIB, StepCost, training_step, window
from megavoxel.forecast.table import COLUMNS, partitions, plan_study, shown, spread, table
from megavoxel.forecast.window import window_costs
from megavoxel.network.architectures import whole_program
from megavoxel.network.work import Work
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.planning.planner import plan_preprocessing


@pytest.fixture(scope="module")
def plan():
    return plan_of_some_size()


def test_batch_dice_over_accumulated_parts_costs_a_forward_pass_more(plan):
    whole = replace(plan, training=replace(plan.training, batch_dice=True))
    room = device(memory_gib=(needs(plan, accumulate=2) + needs(plan)) / 2)
    forecasts = [choose(way, room, WORKLOAD, fixed=None).forecast for way in (plan, whole)]
    assert [forecast.parallel for forecast in forecasts] == [Parallel(accumulate=2)] * 2
    # Forward, gradient of the input, gradient of the weights: about as much each.
    assert forecasts[1].flops / forecasts[0].flops == pytest.approx(4 / 3, rel=0.05)


def test_seconds_of_a_step_by_hand():
    speed = Speed(flops_per_second=100.0, seconds_per_pass=1.0, bytes_per_second=10.0)
    assert step_seconds(speed, Parallel(), [500], 0) == 5 + 1
    assert step_seconds(speed, Parallel(accumulate=3), [500], 0) == 5 + 3
    # Two devices exchange 2 · ½ of 40 bytes.
    assert step_seconds(speed, Parallel(data=2), [500], 40) == 5 + 1 + 4
    # The slower stage of two works 4 s on 4 micro-batches; 5 beats of 1 s, each with its second.
    assert step_seconds(speed, Parallel(pipeline=2, micro_batches=4), [400, 200], 0) == 5 + 5


def test_seconds_of_a_prediction_by_hand(plan):
    # 96 voxels along z take three windows of 48 at half steps; eight mirrored passes each.
    longer = replace(plan, preprocessing=replace(plan.preprocessing, median_shape=(96, 48, 48)))
    flops = window(plan, networks=1, precision="float32").flops
    speed = Speed(flops_per_second=flops, seconds_per_pass=0.5, bytes_per_second=1.0)
    assert prediction_seconds(longer, speed, "float32") == pytest.approx(3 * 8 * 1.5)


def test_hours_of_a_fold_are_steps_validation_and_prediction(plan):
    forecast = forecast_setting(plan, Parallel(), device(), WORKLOAD)
    step = training_step(plan, samples=4, parallel=Parallel(), precision="float32").flops
    forward = window(plan, networks=1, precision="float32").flops
    # 2 epochs of 3 steps and 2 validation batches of 4; then 4 cases of one window, 8 mirrored passes.
    operations = 2 * (3 * step + 2 * 4 * forward) + 4 * 8 * forward
    assert forecast.hours_per_fold == pytest.approx(operations / 1e12 / 3600)
    assert forecast.flops == step


def test_overhead_and_workspace_of_the_device_are_added(plan):
    bare = forecast_setting(plan, Parallel(), device(), WORKLOAD)
    full = forecast_setting(plan, Parallel(), device(overhead_gib=2.0, workspace=1.0), WORKLOAD)
    largest = 4 * 4 * (32 + 16) * 48**3 / 2**30
    assert full.training_gib - bare.training_gib == pytest.approx(2 + largest)
    assert full.certain_gib == bare.certain_gib


def test_devices_that_share_a_batch_hold_a_buffer_of_gradients(plan):
    half = training_step(plan, samples=2, parallel=Parallel(), precision="float32")
    shared = forecast_setting(plan, Parallel(data=2), device(), WORKLOAD).certain_gib * 2**30
    assert shared == half.peak_bytes + half.parameter_bytes


def test_prediction_of_a_wide_image_holds_the_sums_of_a_strip_of_it(plan):
    def slabs(columns: int) -> float:
        wide = replace(plan, preprocessing=replace(plan.preprocessing, median_shape=(48, columns, 1000)))
        return forecast_setting(wide, Parallel(), device(), WORKLOAD).prediction_gib * 2**30

    column = 4 * plan.network.classes * plan.patch[0] * 1000
    assert slabs(200) - slabs(100) == pytest.approx(100 * column)
    assert slabs(10_000) - slabs(100) == pytest.approx(2**28 // column * column - 100 * column)


@pytest.mark.parametrize(
    ("keys", "connections"),
    [
        ({}, 0),
        ({"data": 4}, 1),  # all together
        ({"pipeline": 3, "micro_batches": 2}, 3),  # all, and each of two other stages
        ({"pipeline": 2, "data": 2, "micro_batches": 2}, 3),  # those of the same stage as well
        ({"space": (2, 2, 1)}, 1),
        ({"space": (2, 1, 1), "data": 2}, 2),
    ],
)
def test_each_connection_of_a_gpu_has_buffers_of_its_own(keys, connections):
    parallel = Parallel(**keys)
    assert connections_gib(parallel, device(connection_gib=0.5)) == 0.5 * connections
    assert connections_gib(parallel, Device(name="cpu", kind="cpu")) == 0


def test_the_buffers_of_connections_are_part_of_the_memory_of_training(plan):
    plain, connected = (
        forecast_setting(plan, Parallel(data=2), device(connection_gib=size), WORKLOAD) for size in (0, 0.5)
    )
    assert connected.training_gib == pytest.approx(plain.training_gib + 0.5)
    assert connected.certain_gib == plain.certain_gib


def test_beside_what_pytorch_allocates_on_a_gpu_stands_the_workspace_of_cudnn():
    cost = StepCost(peak_bytes=3 * GIB, resident_bytes=0, workspace_bytes=GIB, parameter_bytes=0, work=Work())
    assert counted_gib(cost, device(workspace=0.5)) == 3.5
    assert counted_gib(cost, Device(name="cpu", kind="cpu", workspace=0.5)) == 3
    assert counted_gib(cost, None) == 3


def test_without_a_rate_there_are_no_hours(plan):
    forecast = forecast_setting(plan, Parallel(), device(teraflops={}), WORKLOAD)
    assert forecast.hours_per_fold is None
    assert forecast.peak_gib > 0


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ({"kind": "gpu"}, "bfloat16"),
        ({"kind": "cpu", "teraflops": {"float32": 1.0, "half": 2.0}}, "bfloat16"),
        ({"kind": "cpu", "teraflops": {"float32": 2.0, "half": 1.0}}, "float32"),
        ({"kind": "cpu"}, "float32"),
    ],
)
def test_the_precision_of_a_forecast_is_the_one_training_will_choose(plan, keys, precision):
    automatic = replace(plan, training=replace(plan.training, precision="auto"))
    assert precision_on(automatic, Device(name="d", **keys)) == precision


STUDY = {
    "study": "ahead",
    "dataset": "amos",
    "hardware": "small",
    "defaults": {"preprocessing": {"spacing": [2.0, 1.0, 1.0]}},
    "settings": {
        "plain": {"patch": [16, 32, 32], "batch": 2},
        "odd": {"patch": [16, 40, 40], "batch": 2, "parallel": {"accumulate": 2}},
        "chosen": {"patch": [32, 96, 96], "batch": 4, "parallel": "auto"},
        "broken": {"patch": [16, 32, 32], "batch": 3, "parallel": {"accumulate": 2}},
    },
}
DATASET = {
    "name": "amos",
    "source": {"folder": "nowhere"},
    "channels": ["CT"],
    "labels": {"liver": 1, "spleen": 2},
    "declared": {"training_cases": 10, "shape": [40, 120, 120], "spacing": [4.0, 1.0, 1.0]},
}
HARDWARE = {"devices": {"small": {"kind": "gpu", "memory_gib": 1.7, "teraflops": {"half": 10}, "most_devices": 2}}}


@pytest.fixture
def files(tmp_path):
    """A study on a dataset that is not there, with its hardware."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    (tmp_path / "datasets/amos.yaml").write_text(yaml.safe_dump(DATASET))
    (tmp_path / "hardware.yaml").write_text(yaml.safe_dump(HARDWARE))
    return tmp_path


def estimate(files, *options) -> int:
    paths = {"--study": "study.yaml", "--hardware": "hardware.yaml", "--datasets": "datasets"}
    places = [word for option, name in paths.items() for word in (option, str(files / name))]
    return main(["estimate", *places, "--processes", "1", *options])


@pytest.mark.slow
def test_plan_tsv_of_a_dataset_that_is_only_declared(files, capsys):
    assert estimate(files, "--output", str(files / "plan.tsv"), "--explain") == 0
    rows = pd.read_csv(files / "plan.tsv", sep="\t").set_index("setting")
    assert ["setting", *rows.columns] == list(COLUMNS)
    assert list(rows.index) == list(STUDY["settings"])
    assert list(rows["fits"]) == ["yes", "yes", "yes", "no"]
    assert rows.loc["odd", "accumulate"] == 2
    assert rows.loc["chosen", "accumulate"] > 1 or rows.loc["chosen", "checkpointing"] != "none"
    assert "plain needs" in rows.loc["chosen", "reason"]
    assert "batch 3 cannot be cut" in rows.loc["broken", "reason"]
    assert rows.loc["plain", "gpu_hours"] == pytest.approx(5 * rows.loc["plain", "hours_per_fold"], rel=0.01)
    printed = capsys.readouterr().out
    assert "10 training cases" in printed
    assert "<NA>" not in printed
    assert re.search("^broken: parallel: batch 3 cannot be cut", printed, re.MULTILINE)
    assert "cannot see what cuDNN chooses" in printed
    line = r"^plain: .*; tensors of a training step: ([0-9.]+) GiB, its operations: ([0-9.]+) TFLOP$"
    step = re.search(line, printed, re.MULTILINE)
    assert 0 < float(step[1]) < rows.loc["plain", "peak_gib"]
    # At 10 TFLOP a second, steps alone take less than all hours.
    assert 0 < 250 * 1000 * float(step[2]) / 10 / 3600 < rows.loc["plain", "hours_per_fold"]


def test_what_is_printed_of_a_plan_is_its_table_with_hours_and_minutes():
    rows = pd.DataFrame(
        {
            "setting": ["short", "long", "none"],
            "hours_per_fold": [0.004, 30.508, None],
            "gpu_hours": [0.02, 152.4, None],
            "fits": ["yes", "yes", "no"],
            "reason": ["plain", "plain", "it needs 90 GiB"],
        }
    )
    lines = shown(rows).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["setting", "h:min_per_fold", "gpu_h:min", "fits"],
        ["short", "<0:01", "0:01", "yes"],
        ["long", "30:30", "152:24", "yes"],
        ["none", "no"],
    ]
    assert lines[4:] == ["none: it needs 90 GiB"]


def test_a_precision_without_a_rate_is_said_beside_the_missing_hours(files):
    training = {"training": {"precision": "float32"}}
    study = {**STUDY, "settings": {"exact": {**STUDY["settings"]["plain"], **training}}}
    facts = declared_dataset(load_dataset(files / "datasets/amos.yaml"))
    gpu = load_device(files / "hardware.yaml", "small", source="test")
    (row,) = table(plan_study(parse_study(study, source="test"), *facts, gpu)).to_dict("records")
    assert pd.isna(row["hours_per_fold"])
    assert row["reason"].endswith("no hours: config/hardware.yaml has no float32 rate (teraflops) for small")


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(files):
    study = parse_study(STUDY, source="test")
    facts = declared_dataset(load_dataset(files / "datasets/amos.yaml"))
    gpu = load_device(files / "hardware.yaml", "small", source="test")
    one, two = (table(plan_study(study, *facts, gpu, processes=count)) for count in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_a_dataset_that_declares_nothing_says_what_to_do(files, capsys):
    (files / "datasets/amos.yaml").write_text(yaml.safe_dump({**DATASET, "declared": None} | {"labels": {"a": 1}}))
    bare = {key: value for key, value in DATASET.items() if key != "declared"}
    (files / "datasets/amos.yaml").write_text(yaml.safe_dump(bare))
    assert estimate(files) == 1
    assert "no 'declared' shape and spacing" in capsys.readouterr().err


def test_phantoms_are_known_before_they_are_made(repository):
    cases, fingerprint = declared_dataset(load_dataset(repository / "config/datasets/phantom.yaml"))
    assert len(cases.of_split("training")) == 12
    assert cases.labels == {"liver": 1, "stomach": 2, "aorta": 3, "gland": 4}
    assert fingerprint.cases[0].shape == (40, 64, 64)
    assert fingerprint.channels == cases.channels == ("CT",)


def test_declared_needs_labels_and_channels(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in DATASET.items() if key != "labels"}))
    with pytest.raises(UserError, match=r"bare\.yaml: declared: it also needs 'labels'"):
        load_dataset(path)


def plan_stage(files, setting: str, *options: str) -> int:
    """`megavoxel plan` on the declared dataset, into plan.json."""
    cases, fingerprint = declared_dataset(load_dataset(files / "datasets/amos.yaml"))
    # A declared case has no files, and no stage writes such a list.
    named = tuple(replace(case, images=(f"imagesTr/{case.id}.nii.gz",)) for case in cases.cases)
    save_cases(files / "cases.json", replace(cases, cases=named))
    keys = parse_study(STUDY, source="test").setting(setting).preprocessing
    save_plan(files / "preprocessing.json", plan_preprocessing(cases, fingerprint, keys))
    inputs = ["--cases", str(files / "cases.json"), "--preprocessing-plan", str(files / "preprocessing.json")]
    return main(["plan", *inputs, *options, "--output", str(files / "plan.json")])


@pytest.mark.parametrize("setting", ["plain", "odd", "chosen"])
def test_plan_json_and_plan_tsv_agree(files, setting):
    """By hand from the study file, and from one line of JSON as in the workflow."""
    estimate(files, "--output", str(files / "plan.tsv"))
    row = pd.read_csv(files / "plan.tsv", sep="\t").set_index("setting").loc[setting]
    hardware = ["--hardware", str(files / "hardware.yaml")]
    assert plan_stage(files, setting, "--study", str(files / "study.yaml"), "--setting", setting, *hardware) == 0
    by_hand = load_plan(files / "plan.json")
    assert by_hand.parallel.accumulate == row["accumulate"]
    assert by_hand.parallel.checkpointing == row["checkpointing"]
    if setting == "chosen":
        assert by_hand.notes[-1] == f"parallel: {row['reason']}"
    gpu = load_device(files / "hardware.yaml", "small", source="test")
    study = with_memory(parse_study(STUDY, source="test"), gpu.memory_gib)
    definition = ["--definition", json.dumps(to_plain(study.setting(setting))), "--study-name", "ahead"]
    device_options = ["--device", json.dumps(to_plain(gpu)), "--folds", str(study.folds)]
    assert plan_stage(files, setting, *definition, "--seed", str(study.seed), *device_options) == 0
    assert load_plan(files / "plan.json") == by_hand


def test_a_parallelism_needs_a_device_to_be_chosen_for(files, capsys):
    assert plan_stage(files, "chosen", "--study", str(files / "study.yaml"), "--setting", "chosen") == 1
    assert "setting chosen: parallel is chosen or checked for a device; give --hardware" in capsys.readouterr().err


def test_a_pipeline_without_its_stages_is_refused(tmp_path, capsys):
    save_plan(tmp_path / "plan.json", replace(tiny_plan(), parallel=Parallel(pipeline=2)))
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [{"training": ["a"], "validation": ["b"]}]}))
    options = {"plan": "plan.json", "splits": "splits.json", "preprocessed": "p", "state": "s", "output": "o"}
    words = [word for name, file in options.items() for word in (f"--{name}", str(tmp_path / file))]
    assert main(["train", *words, "--fold", "0"]) == 1
    message = capsys.readouterr().err
    assert (
        "setting tiny: its plan.json asks for a pipeline over 2 devices and cuts the network into 0 stages" in message
    )


def test_the_plan_of_a_pipeline_names_its_stages_and_their_memory(plan):
    roomy = device(most_devices=2)
    spread_out, choice = spread(plan, Setting(name="tiny", parallel=Parallel(pipeline=2)), roomy, WORKLOAD)
    assert spread_out.stages[0] == 0
    assert len(spread_out.stages) == len(choice.forecast.stage_gib) == 2
    assert max(choice.forecast.stage_gib) == choice.forecast.certain_gib
    first, second = (f"{gib:.3g} GiB" for gib in choice.forecast.stage_gib)
    assert f"pipeline: stages from encoder0_convolution0 {first}, " in spread_out.notes[-1]
    assert second in spread_out.notes[-1]
    assert spread_out.hash == plan.hash


def test_a_probe_is_measured_beside_its_forecast():
    measured = measure(SMALL, "float32", torch.device("cpu"))
    assert measured.seconds > 0
    assert (
        measured.forecast.flops
        == training_step(plan_of(SMALL), samples=2, parallel=Parallel(), precision="float32").flops
    )


def test_calibration_is_written_beside_comments_and_other_keys(tmp_path):
    path = tmp_path / "hardware.yaml"
    path.write_text(
        "# mine\ndevices:\n  a:  # the small one\n    kind: gpu\n    teraflops:\n      half: 1\n    # keep\n"
        "    memory_gib: 8\n\n  b:\n    kind: cpu\n"
    )
    update_device(path, "a", {"teraflops": {"half": 3.5}, "source": "here: now"})
    text = path.read_text()
    assert text.startswith("# mine\n")
    assert "# keep" in text
    assert text.count("teraflops") == 1
    assert load_device(path, "a", source="test") == Device(
        name="a", kind="gpu", memory_gib=8, teraflops={"half": 3.5}, source="here: now"
    )
    assert load_device(path, "b", source="test").kind == "cpu"
    before = path.read_text()
    with pytest.raises(UserError):
        update_device(path, "b", {"teraflops": {"half": -1}})
    assert path.read_text() == before


def test_calibrate_refuses_an_unknown_device(tmp_path, capsys):
    (tmp_path / "hardware.yaml").write_text(json.dumps({"devices": {"a": {"kind": "cpu"}}}))
    assert main(["calibrate", "b", "--hardware", str(tmp_path / "hardware.yaml")]) == 1
    assert "has no device 'b'; allowed: a" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "found"), [("gpu", "cpu"), ("cpu", "cuda:0")])
def test_calibrate_writes_no_rate_of_another_kind_of_device(tmp_path, capsys, monkeypatch, kind, found):
    file = tmp_path / "hardware.yaml"
    file.write_text(json.dumps({"devices": {"a": {"kind": kind, "memory_gib": 8}}}))
    monkeypatch.setattr("megavoxel.network.device.choose_device", lambda _: torch.device(found))
    assert main(["calibrate", "a", "--hardware", str(file)]) == 1
    assert f"a is a device of kind {kind}, and this would measure {found}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_a_whole_image_that_does_not_fit_is_refused_with_a_window_that_would(plan):
    whole = replace(plan, patch=(16, 16, 16), inference=Inference(window="whole"))
    keys = {"plan": whole, "networks": 1, "precision": "float32"}
    small = WholeImages(device=device(), **keys)
    small.check("case1", (48, 48, 48))
    # Half a window needs little more than half of its tensors: this is between both.
    room = 0.75 * small.gib((48, 96, 48))
    tight = WholeImages(device=device(memory_gib=room), **keys)
    with pytest.raises(UserError, match="the whole image, a window of 48 × 96 × 48 voxels, needs") as found:
        tight.check("case1", (47, 96, 48))
    assert str(found.value).endswith("what would fit: inference.tiles: [1, 2, 1] or inference.window: [48, 48, 48]")
    on_cpu = WholeImages(device=Device(name="cpu", kind="cpu", memory_gib=room), **keys)
    with pytest.raises(UserError, match=r"what would fit: inference\.window"):
        on_cpu.check("case1", (47, 96, 48))
    assert small.gib((48, 48, 48)) < room < small.gib((48, 96, 48))
    with pytest.raises(UserError, match="not even a window of the patch fits"):
        WholeImages(device=device(memory_gib=1e-6), **keys).check("case1", (48, 48, 48))
    patches = WholeImages(device=device(memory_gib=1e-6), **keys | {"plan": plan})
    patches.check("case1", (480, 480, 480))
    huge = WholeImages(device=device(), **keys | {"plan": replace(plan, patch=(4096, 4096, 4096))})
    with pytest.raises(
        UserError, match=r"a window of 4096 × 4096 × 4096 voxels needs more than .* take a smaller patch"
    ):
        huge.check("case1", (48, 48, 48))


def test_a_setting_predicts_with_the_networks_of_its_own_folds(plan):
    own = replace(WORKLOAD, own_folds=1)
    five, one = (forecast_setting(plan, Parallel(), device(), each).prediction_gib for each in (WORKLOAD, own))
    weights = training_step(plan, samples=1, parallel=Parallel(), precision="bfloat16").parameter_bytes
    assert (five - one) * 2**30 == pytest.approx(4 * weights)


def test_a_window_through_a_pipeline_has_the_workspace_of_the_fullest_stage(plan):
    whole = replace(plan, inference=Inference(window="whole"), stages=(0, 3))
    roomy = device(workspace=1.0)
    alone, staged = (
        forecast_setting(whole, parallel, roomy, WORKLOAD).prediction_gib
        for parallel in (Parallel(), Parallel(pipeline=2, micro_batches=4))
    )
    first, second = staged_window(whole.network, (0, 3), (48, 48, 48), networks=5, precision="bfloat16")
    largest = window(whole, (48, 48, 48), networks=5, precision="bfloat16").workspace_bytes
    assert max(first.workspace_bytes, second.workspace_bytes) == largest
    assert first.workspace_bytes < largest
    assert staged < alone


def test_a_window_in_tiles_is_forecast_for_the_first_device_and_for_the_largest_tile(plan):
    whole = replace(plan, inference=Inference(window="whole", mirror=False))
    fast = device(link_gib_per_second=1e9)
    alone, two, four = (
        forecast_setting(whole, Parallel(space=space), fast, WORKLOAD) for space in ((1, 1, 1), (2, 1, 1), (2, 2, 1))
    )
    assert alone.prediction_gib > two.prediction_gib > four.prediction_gib
    assert two.prediction_hours == pytest.approx(alone.prediction_hours / 2, rel=0.05)
    assert two.gpu_hours_per_fold == pytest.approx(alone.gpu_hours_per_fold, rel=0.1)
    tiled = replace(whole, parallel=Parallel(space=(2, 1, 1)))
    leader, largest = window_costs(tiled, (48, 48, 48), networks=1, precision="bfloat16")
    image, logits = 4 * 48**3, 4 * 3 * 48**3
    assert min(leader.exchanged_bytes, largest.exchanged_bytes) > (image + logits) // 2
    slow = forecast_setting(whole, Parallel(space=(2, 1, 1)), device(link_gib_per_second=0.01), WORKLOAD)
    assert slow.prediction_hours > 2 * two.prediction_hours


def test_a_whole_image_that_does_not_fit_in_tiles_is_refused_with_a_window_that_would(plan):
    parallel, inference = Parallel(space=(2, 1, 1)), Inference(window="whole")
    whole = replace(plan, patch=(16, 16, 16), inference=inference, parallel=parallel)
    keys = {"networks": 1, "precision": "float32"}
    alone = WholeImages(plan=replace(whole, parallel=Parallel()), device=device(), **keys).gib((48, 96, 48))
    tiled = WholeImages(plan=whole, device=device(memory_gib=0.75 * alone), **keys)
    tiled.check("case1", (48, 96, 48))
    with pytest.raises(UserError, match=r"a window of 48 × 192 × 48 voxels, needs .*: \[48, 96, 48\]"):
        tiled.check("case1", (48, 192, 48))


def test_partitions_are_listed_again_with_checkpointing_where_a_memory_is_too_small(plan):
    found = partitions(plan, Partitions(gpus=(4, 2, 64), memory_gib=(16, 1e-3)), device(), WORKLOAD)
    assert [(cut.gpus, cut.checkpointing, cut.micro_batches) for cut in found] == [
        (gpus, checkpointing, 4) for gpus in (2, 4) for checkpointing in ("none", "norms", "blocks")
    ]  # fmt: skip
    assert {cut.fits_gib for cut in found} == {(16,)}
    roomy = partitions(plan, Partitions(gpus=(2,), memory_gib=(16,)), device(), WORKLOAD)
    assert [(cut.gpus, cut.checkpointing) for cut in roomy] == [(2, "none")]


def test_a_partition_is_that_of_a_pipeline_that_trains(plan):
    (cut,) = partitions(plan, Partitions(gpus=(2,)), device(), WORKLOAD)
    parallel = Parallel(pipeline=2, micro_batches=4)
    trained, choice = spread(plan, Setting(name="s", parallel=parallel), device(), WORKLOAD)
    names = [block.name for block in whole_program(plan.network)]
    assert cut.first_blocks == tuple(names[begin] for begin in trained.stages)
    assert cut.stage_gib == choice.forecast.stage_gib
    assert cut.fullest_of_mean == pytest.approx(max(cut.stage_gib) / (sum(cut.stage_gib) / 2))
    row = cut.plain()
    assert row["fits_gib"] == "16 32"
    assert row["stage_gib"].split() == [f"{gib:.3g}" for gib in cut.stage_gib]
