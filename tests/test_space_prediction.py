"""Processes that hold the tiles of a window predict what one process predicts from the whole window, over gloo."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

import space_prediction_worker
from megavoxel.config.setting import Inference, Parallel
from megavoxel.distributed.group import Group
from megavoxel.forecast.window import window_costs
from megavoxel.inference.predict import open_predictor
from megavoxel.network.weights import save_weights
from space_prediction_worker import CASES, LARGER, OF_MANY_TILES, logits_of, network_of, slabs_of, window_of
from space_worker import plan_of
from stage_server import run_group


@pytest.mark.slow
@pytest.mark.parametrize("space", [(1, 1, 2), (2, 2, 1)], ids=str)
def test_tiles_predict_what_one_process_predicts(tmp_path, space):
    count = space[0] * space[1] * space[2]
    run_group(space_prediction_worker.__file__, tmp_path / "found.pt", ",".join(map(str, space)), processes=count)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert set(found["windows"]) == set(LARGER if count == 2 else OF_MANY_TILES)
    assert set(found["cases"]) == set(CASES if count == 2 else ())
    for way, logits in found["windows"].items():
        wanted = logits_of(way, (1, 1, 1), Group())
        assert float((logits - wanted).abs().max() / wanted.abs().max()) <= 1e-12, way
    for case, logits in found["cases"].items():
        wanted = slabs_of(case, (1, 1, 1), Group())
        assert float((logits - wanted).abs().max() / wanted.abs().max()) <= 1e-5, case
        assert torch.equal(logits.argmax(dim=0), wanted.argmax(dim=0)), case
    plan = replace(plan_of("plain", space=space), inference=Inference(window="whole"))
    leader, largest = window_costs(plan, window_of("plain").shape[2:], networks=1, precision="float32")
    assert leader.peak_bytes == pytest.approx(found["peaks"][0], rel=0.01)
    assert largest.peak_bytes == pytest.approx(max(found["peaks"][1:]), rel=0.01)
    assert found["lost"], "the error names no lost process"


def test_a_machine_with_fewer_gpus_than_the_plan_predicts_on_takes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("megavoxel.inference.predict.gpus_here", lambda _: 1)
    plan = plan_of("plain", space=(1, 1, 2))
    save_weights(tmp_path / "model.pt", network_of(plan), plan_hash=plan.hash, precision="float32")
    options = argparse.Namespace(device="cpu", threads=1)
    with open_predictor(plan, [tmp_path / "model.pt"], "predict", options) as predictor:
        assert predictor.group.size == 1
        assert predictor.plan.parallel == Parallel()
    assert "the plan predicts on 2 devices, PyTorch sees 1 GPU here; it takes all" in capsys.readouterr().out
