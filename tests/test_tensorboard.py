"""`megavoxel tensorboard`: event files have what history.csv has."""

from __future__ import annotations

import sys
from itertools import pairwise

import pandas as pd
import pytest

from megavoxel.cli import main

HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "learning_rate": [0.01, 0.005, 0.001],
        "training_loss": [0.9, 0.1, -0.5],
        "pseudo_dice": [0.1, 0.5, 0.9],
        "pseudo_dice_left kidney": [0.1, float("nan"), 0.75],
        "seconds": [1200.0, 600.0, 300.0],
        "peak_memory_mib": [100.0, 200.0, 300.0],
    }
)


def test_every_curve_is_read_back_as_it_was_written(tmp_path, capsys):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for fold in range(2):
        run = tmp_path / f"results/s/small/fold-{fold}"
        run.mkdir(parents=True)
        HISTORY.to_csv(run / "history.csv", index=False)
    for _ in range(2):  # the second time replaces the first
        assert main(["tensorboard", str(tmp_path / "results/s"), "--output", str(tmp_path / "events")]) == 0
    for fold in range(2):
        folder = tmp_path / f"events/small/fold-{fold}"
        assert len(list(folder.iterdir())) == 1
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        expected = {
            "loss/training": [0.9, 0.1, -0.5],
            "pseudo-Dice/all": [0.1, 0.5, 0.9],
            "optimiser/learning rate": [0.01, 0.005, 0.001],
            "cost/seconds": [1200, 600, 300],
            "cost/peak memory in MiB": [100, 200, 300],
        }
        assert set(events.Tags()["scalars"]) == {*expected, "pseudo-Dice/left kidney"}
        for name, values in expected.items():
            points = events.Scalars(name)
            assert [point.step for point in points] == [1, 2, 3]
            assert [point.value for point in points] == pytest.approx(values)
        times = [point.wall_time for point in events.Scalars("loss/training")]
        assert [later - time for time, later in pairwise(times)] == pytest.approx([600, 300])
        assert [point.step for point in events.Scalars("pseudo-Dice/left kidney")] == [1, 3]


def test_without_tensorboard_it_is_said_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["tensorboard", str(tmp_path), "--output", str(tmp_path / "events")]) == 1
    assert "pip install 'megavoxel[tensorboard]'" in capsys.readouterr().err


def test_a_folder_without_a_history_is_named(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    assert main(["tensorboard", str(tmp_path), "--output", str(tmp_path / "events")]) == 1
    assert f"{tmp_path}: there is no history.csv in or below it" in capsys.readouterr().err
