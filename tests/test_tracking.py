"""`megavoxel track`: MLflow and Weights & Biases have what history.csv has, and a repeated call changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from megavoxel.cli import main
from megavoxel.config.study_file import parse_study
from megavoxel.errors import UserError
from test_tensorboard import HISTORY

PLAN = {
    "study": "s", "setting": "small", "batch": 2, "patch": [8, 16, 16], "training": {"loss": "dice_ce", "epochs": 3},
    "unannotated": {"patient7": ["liver"]}, "notes": [],
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    for fold in range(2):
        run = tmp_path / f"results/s/small/fold-{fold}"
        run.mkdir(parents=True)
        HISTORY.to_csv(run / "history.csv", index=False)
        (run / "manifest.json").write_text(json.dumps({"plan_hash": "abc"}))
    (tmp_path / "results/s/small/plan.json").write_text(json.dumps(PLAN))
    return tmp_path / "results/s"


def test_mlflow_reads_back_every_point_and_a_repeated_call_doubles_nothing(results, tmp_path, capsys):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    address = f"sqlite:///{tmp_path}/runs.db"
    assert main(["track", str(results), "--mlflow", address]) == 0
    assert "MLflow: small/fold-0: new" in capsys.readouterr().out
    assert main(["track", str(results), "--mlflow", address]) == 0
    assert "MLflow: small/fold-0: there already" in capsys.readouterr().out
    (results / "small/fold-1/history.csv").write_text(HISTORY.iloc[:2].to_csv(index=False))
    assert main(["track", str(results), "--mlflow", address]) == 0
    assert "MLflow: small/fold-1: replaced" in capsys.readouterr().out

    client = mlflow.MlflowClient(tracking_uri=address)
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    found = {run.info.run_name: run for run in runs}
    assert sorted(found) == sorted(run.info.run_name for run in runs) == ["small/fold-0", "small/fold-1"]
    first = found["small/fold-0"]
    loss = client.get_metric_history(first.info.run_id, "loss/training")
    assert [(point.step, point.value) for point in loss] == [(1, 0.9), (2, 0.1), (3, -0.5)]
    assert [later.timestamp - point.timestamp for point, later in pairwise(loss)] == [600000, 300000]
    kidney = client.get_metric_history(first.info.run_id, "pseudo-Dice/left kidney")
    assert [point.step for point in kidney] == [1, 3]
    assert first.data.params == {
        "batch": "2", "patch": "[8, 16, 16]", "training.loss": "dice_ce", "training.epochs": "3",
    }  # fmt: skip
    assert len(client.get_metric_history(found["small/fold-1"].info.run_id, "loss/training")) == 2


def records_of(path: Path) -> Iterator[bytes]:
    """The records of an offline run: a log as LevelDB writes it, in blocks of 32 KiB behind a header of 7 bytes."""
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_weights_and_biases_has_every_epoch_and_a_repeated_call_doubles_nothing(results, tmp_path, capsys):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for said in ("new", "there already"):
        assert main(["track", str(results), "--wandb", str(tmp_path / "runs")]) == 0
        assert f"wandb: small/fold-1: {said}" in capsys.readouterr().out
    files = sorted(tmp_path.glob("runs/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    losses, names = [], set()
    for record in map(Record.FromString, records_of(files[0])):
        if record.WhichOneof("record_type") == "run":
            names.add(record.run.display_name)
        if record.WhichOneof("record_type") == "history":
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            losses.append(json.loads(values["loss/training"]))
    assert losses == [0.9, 0.1, -0.5]
    assert names in ({"small/fold-0"}, {"small/fold-1"})


@pytest.mark.parametrize(("option", "package"), [("--mlflow", "mlflow"), ("--wandb", "wandb")])
def test_without_the_package_it_is_said_what_to_install(results, tmp_path, monkeypatch, capsys, option, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["track", str(results), option, str(tmp_path / "there")]) == 1
    assert f"pip install 'megavoxel[{package}]'" in capsys.readouterr().err


def test_a_run_without_its_plan_is_named(results, tmp_path, capsys):
    (results / "small/plan.json").unlink()
    assert main(["track", str(results), "--wandb", str(tmp_path / "runs")]) == 1
    assert "small/plan.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        ({"mlflow": "https://me:secret@host/"}, "tracking.mlflow: it holds a password"),
        ({}, "tracking: give mlflow, wandb, or both"),
        ({"mlflw": "x"}, "tracking.mlflw: unknown key"),
    ],
)
def test_a_study_that_cannot_be_tracked_so_is_refused(tracking, message):
    values = {"study": "s", "dataset": "chaos", "settings": {"a": {}}, "tracking": tracking}
    with pytest.raises(UserError, match=message) as fault:
        parse_study(values, source="s.yaml")
    assert "secret" not in str(fault.value)
