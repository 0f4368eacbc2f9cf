"""Seconds per image: what is timed, how often, and where it is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from helpers import store_case, tiny_plan
from megavoxel.cli import main
from megavoxel.config.setting import Inference
from megavoxel.files import write_json
from megavoxel.inference import timing
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.timing import time_cases
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import save_plan


@pytest.fixture
def plan(tmp_path):
    """A plan with weights in model.pt, and a clock that goes on by a second for each window that is predicted."""
    plan = tiny_plan(inference=Inference(mirror=False))
    save_weights(tmp_path / "model.pt", SegmentationNetwork(plan.network), plan_hash=plan.hash, precision="float32")
    return plan


@pytest.fixture
def counted(monkeypatch):
    """Predicted windows; the clock shows their number."""
    windows = []
    forward = SegmentationNetwork.forward

    def counting(network, image, *arguments, **keys):
        windows.append(tuple(image.shape[2:]))
        return forward(network, image, *arguments, **keys)

    monkeypatch.setattr(SegmentationNetwork, "forward", counting)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(len(windows)))
    return windows


def test_every_case_is_timed_as_often_as_asked_after_the_first_warmed_up(plan, counted, tmp_path):
    predictor = CasePredictor.from_files(plan, [tmp_path / "model.pt"], torch.device("cpu"))
    # 8 × 12 × 12 windows half a patch apart: 1 in the first case, 2 × 1 × 2 in the second.
    cases = [("a", np.zeros((1, 8, 12, 12), np.float32)), ("b", np.zeros((1, 12, 10, 18), np.float32))]
    found = list(time_cases(predictor, cases, repeats=3, warm_up=2))
    assert [(row.case, row.repeat, row.seconds) for row in found] == [
        ("a", 1, 1), ("a", 2, 1), ("a", 3, 1), ("b", 1, 4), ("b", 2, 4), ("b", 3, 4),
    ]  # fmt: skip
    assert len(counted) == 2 * 1 + 3 * 1 + 3 * 4
    assert {row.window for row in found} == {"8x12x12"}


def test_every_shape_of_a_whole_image_is_warmed_up_once(plan, counted, tmp_path):
    plan = replace(plan, inference=replace(plan.inference, window="whole"))
    predictor = CasePredictor.from_files(plan, [tmp_path / "model.pt"], torch.device("cpu"))
    shapes = {"a": (8, 12, 12), "b": (12, 12, 20), "c": (8, 12, 12)}
    cases = [(name, np.zeros((1, *shape), np.float32)) for name, shape in shapes.items()]
    found = list(time_cases(predictor, cases, repeats=1, warm_up=2))
    assert [(row.case, row.seconds) for row in found] == [("a", 1), ("b", 1), ("c", 1)]
    assert len(counted) == (2 + 1) + (2 + 1) + 1


@pytest.fixture
def stage(plan, tmp_path, monkeypatch):
    for number in range(2):
        store_case(tmp_path / "cases", f"case{number}", seed=number, shape=(14, 18, 16))
    save_plan(tmp_path / "plan.json", plan)
    fold = {"training": ["case0"], "validation": ["case1"]}
    write_json(tmp_path / "splits.json", {"folds": [fold], "test": ["case0"]})
    monkeypatch.chdir(tmp_path)
    words = ["time", "--plan", "plan.json", "--weights", "model.pt", "--preprocessed", "cases"]
    return [*words, "--splits", "splits.json", "--fold", "0", "--device", "cpu", "--threads", "1"]


@pytest.mark.parametrize(("split", "case"), [("validation", "case1"), ("test", "case0")])
def test_the_stage_writes_a_row_per_case_and_repeat(stage, split, case):
    assert main([*stage, "--split", split, "--repeats", "2", "--output", "a.csv"]) == 0
    rows = pandas.read_csv("a.csv")
    assert list(rows.columns) == ["setting", "split", "fold", "case", "repeat", "seconds", "window"]
    assert rows[["setting", "split", "fold", "case", "repeat"]].to_numpy().tolist() == [
        ["tiny", split, 0, case, 1],
        ["tiny", split, 0, case, 2],
    ]
    assert (rows["seconds"] > 0).all()


def test_tables_are_collected(stage):
    for split in ("test", "validation"):
        assert main([*stage, "--split", split, "--output", f"{split}.csv"]) == 0
    assert main(["time", "--collect", "test.csv", "validation.csv", "--output", "all.csv"]) == 0
    assert list(pandas.read_csv("all.csv")["split"]) == ["test"] * 3 + ["validation"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test", "--repeats", "0"], "--repeats 0 --warm-up 1: at least 1 repeat"),
        ([], "give --collect, or all of --plan, --weights, --preprocessed, --splits, --split, --fold; --split is"),
        (["--collect", "none.csv"], "--collect none.csv: no such file"),
        (["--collect", "splits.json"], "--collect splits.json: expected the columns setting,split,fold,case"),
    ],
)
def test_what_cannot_be_timed_is_refused(stage, capsys, options, message):
    assert main([*stage, *options, "--output", "a.csv"]) == 1
    assert message in capsys.readouterr().err
