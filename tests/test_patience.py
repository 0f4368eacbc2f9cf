"""Early stopping: which histories end a run, and that a run ends at the same epoch however often it is interrupted."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import store_case, tiny_plan
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Training
from megavoxel.errors import UserError
from megavoxel.tasks.segmentation import training
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import train
from megavoxel.training import loop
from megavoxel.training.loop import best_epoch, has_ended, has_stalled, stop_reason
from megavoxel.training.optimizer import learning_rate

CPU = torch.device("cpu")
NAN = math.nan


def history(*scores: float) -> list[dict[str, float]]:
    return [{"pseudo_dice": score} for score in scores]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((), 0),
        ((0.2,), 1),
        ((0.2, 0.5, 0.4), 2),
        ((0.2, 0.5, 0.5), 2),
        ((NAN, NAN), 0),
        ((NAN, 0.0, NAN), 2),
        ((0.3, NAN, 0.4, NAN), 3),
    ],
)
def test_the_best_epoch_is_the_first_with_the_highest_score_and_never_one_without(scores, best):
    assert best_epoch(history(*scores)) == best


@pytest.mark.parametrize(
    ("scores", "stalled"),
    [
        ((0.5, 0.4), False),
        ((0.5, 0.4, 0.3), True),
        ((0.5, 0.5, 0.5), True),
        ((0.5, 0.4, 0.6), False),
        ((0.5, NAN, NAN), True),
        ((NAN,), False),
        ((NAN, NAN), True),
        ((0.1, 0.2, 0.3, 0.4), False),
    ],
)
def test_patience_two_ends_a_run_two_epochs_after_its_best(scores, stalled):
    assert has_stalled(history(*scores), Training(patience=2)) is stalled
    assert not has_stalled(history(*scores), Training())


def test_a_run_ends_with_its_last_epoch_as_well():
    assert has_ended(history(0.1, 0.2), Training(epochs=2, patience=5))
    assert not has_ended(history(0.1, 0.2), Training(epochs=3, patience=5))


def test_the_log_names_the_best_epoch():
    training = Training(epochs=9, patience=2)
    text = stop_reason(history(0.5, 0.25, 0.25), training)
    assert "after epoch 3 of 9" in text
    assert "not risen above the 0.5000 of epoch 1 since" in text
    assert "no epoch has a pseudo-Dice" in stop_reason(history(NAN, NAN), training)


@pytest.fixture
def fold(tmp_path) -> VolumeData:
    for number in range(2):
        store_case(tmp_path / "cases", f"case{number}", seed=number)
    return VolumeData(number=0, preprocessed=tmp_path / "cases", training=("case0",), validation=("case1",))


def score(monkeypatch, *scores: float, killed_in: int | None = None) -> None:
    """Has the epochs scored like this, by their number, and the process killed in one of them."""

    def validate(run, *_: object) -> dict[str, float]:
        if run.epoch + 1 == killed_in:
            raise KeyboardInterrupt
        return {"validation_loss": 1.0, "pseudo_dice": scores[run.epoch]}

    monkeypatch.setattr(training, "validate", validate)


PLAN = tiny_plan(training={"epochs": 8, "patience": 2, "iterations_per_epoch": 1})


def test_training_stops_and_the_learning_rate_spans_all_epochs(fold, tmp_path, monkeypatch, capsys):
    score(monkeypatch, 0.1, 0.4, NAN, 0.3, 0.9)
    run = train(PLAN, fold, tmp_path / "state", CPU)
    assert run.epoch == len(run.history) == 4
    rates = [row["learning_rate"] for row in run.history]
    assert rates == [learning_rate(epoch, PLAN.training, PLAN.batch) for epoch in range(4)]
    assert "stopped after epoch 4 of 8" in capsys.readouterr().out


def test_a_stopped_run_that_is_started_again_trains_no_more(fold, tmp_path, monkeypatch, capsys):
    score(monkeypatch, 0.4, 0.1, 0.1, 0.9)
    first = train(PLAN, fold, tmp_path / "state", CPU)
    monkeypatch.setattr(loop, "train_epoch", lambda *_: pytest.fail("it trained on"))
    again = train(PLAN, fold, tmp_path / "state", CPU)
    assert again.epoch == first.epoch == 3
    assert again.history == first.history
    assert "stopped after epoch 3 of 8" in capsys.readouterr().out
    weights = (run.network.state_dict().values() for run in (first, again))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


@pytest.mark.parametrize("killed_in", [2, 3, 4, 5])
def test_an_interrupted_run_stops_at_the_same_epoch(fold, tmp_path, monkeypatch, killed_in):
    scores = (0.1, NAN, 0.4, 0.4, 0.2, 0.9)
    score(monkeypatch, *scores)
    whole = train(PLAN, fold, tmp_path / "whole", CPU)
    score(monkeypatch, *scores, killed_in=killed_in)
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, fold, tmp_path / "state", CPU)
    score(monkeypatch, *scores)
    resumed = train(PLAN, fold, tmp_path / "state", CPU)
    assert resumed.epoch == whole.epoch == 5
    weights = (run.network.state_dict().values() for run in (whole, resumed))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


def test_the_state_is_saved_where_it_stops_however_rarely_it_is_saved(fold, tmp_path, monkeypatch):
    plan = tiny_plan(training={"epochs": 8, "patience": 1, "iterations_per_epoch": 1, "checkpoint_minutes": 999})
    score(monkeypatch, 0.4, 0.1, 0.9)
    train(plan, fold, tmp_path / "state", CPU)
    monkeypatch.setattr(loop, "train_epoch", lambda *_: pytest.fail("it trained on"))
    assert train(plan, fold, tmp_path / "state", CPU).epoch == 2


def test_patience_without_validation_is_refused():
    training = {"patience": 3, "validation_iterations": 0}
    values = {"study": "s", "dataset": "phantom", "settings": {"a": {"training": training}}}
    with pytest.raises(UserError, match=r"settings\.a\.training\.patience: .*validation_iterations is 0"):
        parse_study(values, source="my.yaml")
    del training["patience"]
    assert parse_study(values, source="my.yaml").setting("a").training.patience is None
