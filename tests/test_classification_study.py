"""A classification study: its file and grid, training that goes on where it stopped, and the chain by Snakemake."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.hardware import Device, load_device
from megavoxel.config.study_file import load_study, parse_study
from megavoxel.errors import UserError
from megavoxel.forecast import memory
from megavoxel.forecast.duration import speed_of
from megavoxel.forecast.step import make_optimizer_state
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.reporting.definition import load_definition
from megavoxel.reporting.loading import load_stored
from megavoxel.tasks.classification import forecast
from megavoxel.tasks.classification.data import best_of, draw_data
from megavoxel.tasks.classification.forecast import (
    check_fits_here,
    forecast_study,
    image_bytes,
    precision_of,
    step_cost,
)
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.scores import mean_probabilities, read_probabilities, write_probabilities
from megavoxel.tasks.classification.splits import make_image_splits
from megavoxel.tasks.classification.training import start_run, train, train_step
from megavoxel.training import loop
from megavoxel.training.memory import ALLOCATED, TRACKED, measured_step
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run
from small_images import CLASSES, classifier, image_cases, write_folders
from workflow_runs import snakemake

CPU = torch.device("cpu")
STUDY = {
    "study": "tiny",
    "task": "classification",
    "dataset": "small.yaml",
    "hardware": "cpu-core",
    "baseline": "small-32-6pc-1w",
    "defaults": {
        "network": "small",
        "images_per_class": 6,
        "batch": 4,
        "training": {"epochs": 2, "learning_rate": 0.01, "loaders": 0, "precision": "float32"},
    },
    "grid": [{"resolution": 32, "workers": [1, 2]}],
    "ensembles": {"both": {"members": ["small-32-6pc-1w", "small-32-6pc-2w"]}},
}


def study(**changes: object) -> dict:
    kind = {} if "grid" in changes else {"settings": {"a": {}}}
    return {"study": "s", "task": "classification", "dataset": "cxr2"} | kind | changes


def refused(match: str, **changes: object) -> None:
    with pytest.raises(UserError, match=match):
        parse_study(study(**changes), source="s.yaml")


def test_a_grid_is_all_combinations_of_its_lists():
    grid = [{"resolution": [112, 224], "workers": [1, 2], "seeds": [1, 2], "learning_rate": 0.5}]
    found = parse_study(study(grid=grid, defaults={"network": "small"}), source="s")
    assert list(found.cells) == [f"small-{side}-allpc-{workers}w" for side in (112, 224) for workers in (1, 2)]
    assert found.cells["small-224-allpc-2w"] == ("small-224-allpc-2w-seed1", "small-224-allpc-2w-seed2")
    setting = found.setting("small-224-allpc-2w-seed2")
    assert (setting.resolution, setting.workers, setting.seed, setting.training.learning_rate) == (224, 2, 2, 0.5)


def test_lists_of_rates_and_partitions_are_part_of_the_name():
    grid = [{"data_partition": ["private", "shared"], "learning_rate": [1.0e-5, 0.25]}]
    found = parse_study(study(grid=grid), source="s")
    assert "resnet50-224-allpc-1w-shared-lr0_25" in found.cells
    assert len(found.settings) == 4


def test_rates_scale_with_the_batch_of_all_workers():
    rates = [
        classifier(workers=workers, training={"learning_rate_rule": "linear", "learning_rate_batch": 4}).learning_rate
        for workers in (1, 4)
    ]
    assert rates == [0.01, 0.04]
    assert math.isnan(classifier(training={"search": (0.1, 0.2)}).learning_rate), "it is not known before training"


def test_studies_that_contradict_themselves_are_refused():
    refused("grid.1: there is a setting 'resnet50-224-5pc-1w' already", grid=[{"images_per_class": 5}] * 2)
    refused("pretrained: the study has no weights of resnet50", settings={"a": {"pretrained": True}})
    refused("no published weights of the network 'small'", settings={"a": {"pretrained": True, "network": "small"}})
    refused("baseline: there is no setting 'b'", baseline="b")
    refused("there is no fold 3; allowed: 0 to 1", folds=2, settings={"a": {"folds": [3]}})
    refused("unknown key 'patch'", settings={"a": {"patch": [1, 1, 1]}})
    refused("exactly one of file and url, the latter with sha256", weights={"vgg16": {"url": "https://a/b.pth"}})


@pytest.mark.parametrize("name", ["pandit-2021-sd198", "pandit-2021-nih"])
def test_published_numbers_are_of_cells_that_the_paper_studies_have(repository, name):
    found = load_study(repository / "config/studies" / f"{name}.yaml")
    rows = pd.read_csv(repository / "config/published" / f"{name}.csv")
    assert set(rows["row"]) <= set(found.cells)
    for cell in rows["row"]:
        setting = found.setting(cell)
        assert setting.batch == (4 if setting.resolution == 1024 else 5)
        assert setting.workers > 1 or setting.training.learning_rate == 1e-5


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_folders(folder, 10)
    return folder


def trained(images: Path, state: Path, **keys: object) -> Run:
    plan, cases = classifier(**keys), image_cases(images, 10)
    splits = make_image_splits(cases, 2, seed=1)
    return train(plan, draw_data(plan, cases, splits.folds[0], 0), state, CPU)


def test_a_search_keeps_the_rate_that_is_best_on_validation_images(images, tmp_path, monkeypatch, capsys):
    rates = (1e-7, 0.01)
    found = trained(images, tmp_path / "search", training={"epochs": 2, "search": rates})
    alone = [trained(images, tmp_path / "alone", training={"epochs": 2, "learning_rate": rate}) for rate in rates]
    scores = [(run.history[-1]["validation_accuracy"], -run.history[-1]["validation_loss"]) for run in alone]
    best = alone[scores.index(max(scores))]
    for key, value in best.network.state_dict().items():
        assert torch.equal(value, found.network.state_dict()[key]), key
    assert [one["learning_rate"] for one in found.searched] == list(rates)
    assert [(one["validation_accuracy"], -one["validation_loss"]) for one in found.searched] == scores
    assert found.plan.hash == classifier(training={"epochs": 2, "search": rates}).hash
    assert f"learning rate 0.01: 2 of {len(rates)}" in capsys.readouterr().out
    # Started again, it takes no step.
    monkeypatch.setattr(loop, "measured_step", None)
    again = trained(images, tmp_path / "search", training={"epochs": 2, "search": rates})
    assert again.searched == found.searched


def test_of_equal_rates_the_lower_loss_and_then_the_first_is_kept():
    def tried(*scores: tuple[float, float]) -> float:
        names = ("validation_accuracy", "validation_loss")
        lines = [{"learning_rate": rate, **dict(zip(names, own, strict=True))} for rate, own in enumerate(scores)]
        return best_of(lines)["learning_rate"]

    assert tried((0.5, 1.0), (0.75, 2.0), (0.5, 0.1)) == 1
    assert tried((0.75, 2.0), (0.75, 1.0), (0.5, 0.1)) == 1
    assert tried((0.75, 1.0), (0.75, 1.0)) == 0


def test_a_search_without_validation_images_is_refused():
    settings = {"a": {"training": {"search": [0.1, 0.2]}}}
    refused(r"settings\.a\.training\.search: .*set folds to 2 or more", settings=settings)
    assert parse_study(study(settings=settings, folds=2), source="s").setting("a").training.search == (0.1, 0.2)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(images, tmp_path, monkeypatch):
    whole = trained(images, tmp_path / "whole")
    steps = []

    def ended_in_the_middle(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == 4:  # the first of three steps of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return measured_step(*arguments)

    monkeypatch.setattr(loop, "measured_step", ended_in_the_middle)
    with pytest.raises(UserError, match="ended by SIGTERM after epoch 1 and 1 step"):
        trained(images, tmp_path / "parts")
    again = trained(images, tmp_path / "parts")
    assert len(steps) == 9
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key
    assert [row["training_loss"] for row in whole.history] == [row["training_loss"] for row in again.history]


def test_loaders_change_nothing(images, tmp_path):
    alone, helped = (
        trained(images, tmp_path / str(count), training={"epochs": 1, "loaders": count}) for count in (0, 2)
    )
    for key, value in alone.network.state_dict().items():
        assert torch.equal(value, helped.network.state_dict()[key]), key


@pytest.mark.parametrize("loaders", [0, 2])
def test_an_image_that_is_damaged_after_the_check_ends_training_with_its_name(tmp_path, loaders):
    write_folders(tmp_path, 10)
    for path in tmp_path.glob("dark/*.png"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError) as found:
        trained(tmp_path, tmp_path / "state", training={"loaders": loaders})
    assert "cannot be read as an image" in str(found.value)
    assert "\n" not in str(found.value)


def test_classes_that_differ_are_learnt(images, tmp_path):
    run = trained(images, tmp_path, training={"epochs": 6, "learning_rate": 0.001})
    assert run.history[-1]["validation_accuracy"] == 1.0


def test_training_begins_with_the_published_weights_it_is_given(images, tmp_path):
    plan, cases = classifier(network="resnet50", pretrained=True), image_cases(images, 10)
    other = build_network("resnet50", 1000, seed=5).state_dict()
    torch.save(other, tmp_path / "resnet50.pth")
    fold = make_image_splits(cases, 1, seed=1).folds[0]
    begun = start_run(plan, draw_data(plan, cases, fold, 0, start=tmp_path / "resnet50.pth"), CPU)
    own = begun.network.state_dict()
    assert torch.equal(own["layer4.2.conv3.weight"], other["layer4.2.conv3.weight"])
    assert own["fc.weight"].shape == (2, 2048)
    plain, published = (draw_data(plan, cases, fold, 0, start_data=data).key(plan) for data in (None, "0"))
    assert plain != published  # states of runs from other weights are not gone on with


def test_the_peak_of_a_run_that_changed_its_device_is_that_of_the_new_one(images):
    plan, cases = classifier(), image_cases(images, 10)
    data = draw_data(plan, cases, make_image_splits(cases, 1, seed=1).folds[0], 0)
    state = start_run(plan, data, CPU).state_dict() | {"peak_memory": {"gib": 99.0, "how": ALLOCATED}}
    run = start_run(plan, data, CPU, state)
    measured_step(run, train_step, torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 0]))
    assert run.peak_memory["how"] == TRACKED
    assert 0 < run.peak_memory["gib"] < 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {}}, "KeyError"),
        ({"epoch": 2}, "'epoch'"),
        ({"precision": {"name": "float8", "reason": ""}}, "'precision'"),
        ({"network": {"head.weight": torch.zeros(1)}}, "KeyError"),
        ({"history": None}, "TypeError"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line(images, changes, words):
    plan, cases = classifier(), image_cases(images, 10)
    data = draw_data(plan, cases, make_image_splits(cases, 1, seed=1).folds[0], 0)
    state = start_run(plan, data, CPU).state_dict()
    start_run(plan, data, CPU, state)
    with pytest.raises(UserError, match=rf"training state is not what this run writes \(.*{words}.*remove its folder"):
        start_run(plan, data, CPU, {**state, **changes})


@pytest.mark.parametrize(("network", "optimizer"), [("small", "adam"), ("resnet50", "sgd")])
def test_the_forecast_of_memory_is_what_a_step_holds(images, network, optimizer):
    plan = classifier(network=network, resolution=64, batch=3, training={"optimizer": optimizer})
    cases = image_cases(images, 10)
    data = draw_data(plan, cases, make_image_splits(cases, 1, seed=1).folds[0], 0)
    run = start_run(plan, data, CPU)
    measured_step(run, train_step, torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 0]))
    assert step_cost(plan, "float32").peak_bytes / 2**30 == pytest.approx(run.peak_memory["gib"], rel=0.02)


@pytest.mark.parametrize("images", [1, 2, 5, 64, 128])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_step_of_any_batch_follows_from_one_trace(images, precision):
    """As PyTorch's operations on so many images, counted without telling images from weights."""
    plan = classifier(network="small", resolution=97, batch=images)
    with FakeTensorMode():
        network = build_network(plan.network, len(plan.classes)).train()
        run = Run(
            plan=plan, device=CPU, precision=Precision(name=precision, reason="test"), network=network,
            optimizer=build_optimizer(network.parameters(), plan.training),
        )  # fmt: skip
        with MemoryTracker() as memory:
            memory.include(network.state_dict().values())
            make_optimizer_state(run)
            image, target = torch.zeros(images, 3, 97, 97), torch.zeros(images, dtype=torch.int64)
            memory.reset_peak()
            train_step(run, image, target)
    cost = step_cost(plan, precision)
    assert (cost.peak_bytes, cost.flops) == (memory.peak, memory.flops)
    assert cost.workspace_bytes == memory.largest_convolution


@pytest.mark.parametrize(("name", "precision"), [("v100-32", "float32"), ("a100-40", "bfloat16"), ("cpu", "float32")])
def test_the_forecast_is_for_the_precision_that_the_device_has(repository, name, precision):
    device = load_device(repository / "config/hardware.yaml", name, source="study")
    assert precision_of(classifier(training={"precision": "auto"}), device) == precision
    assert speed_of(device, precision) is not None


def test_settings_with_the_same_step_are_traced_once_and_keep_their_order(repository, monkeypatch):
    grid = [{"resolution": [64, 32], "images_per_class": [5, 6], "workers": [1, 2]}]
    found = parse_study(study(grid=grid, defaults={"network": "small"}, hardware="cpu"), source="s")
    traced, updates, update = [], [], forecast._update_bytes
    monkeypatch.setattr(forecast, "gradients", lambda _run, image, _target: traced.append(image.shape))
    monkeypatch.setattr(forecast, "_update_bytes", lambda run: updates.append(run) or update(run))
    forecast._step.cache_clear()
    forecast._fake_run.cache_clear()
    device = load_device(repository / "config/hardware.yaml", "cpu", source="study")
    rows = forecast_study(found, 2, device)
    assert list(rows["setting"]) == [setting.name for setting in found.settings]
    assert len(traced) == len(set(traced)) == 2  # at two resolutions, whatever the batch
    assert len(updates) == 1  # of one network and one optimiser
    forecast._step.cache_clear()


@pytest.mark.slow
def test_memory_per_image_goes_with_the_area():
    small, large = (image_bytes(classifier(resolution=side), "float32") for side in (64, 128))
    assert large == pytest.approx(4 * small, rel=0.02)


def test_probabilities_are_averaged_and_checked(tmp_path):
    for name, values in (("a", [[1.0, 0.0], [0.5, 0.5]]), ("b", [[0.0, 1.0], [0.1, 0.9]])):
        write_probabilities(tmp_path / f"{name}.csv", ["x/1.png", "y/2.png"], CLASSES, pd.DataFrame(values).to_numpy())
    mean = mean_probabilities([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert mean.loc["y/2.png"].tolist() == pytest.approx([0.3, 0.7])
    with pytest.raises(UserError, match="its classes are bright, dark; expected dark, bright"):
        read_probabilities(tmp_path / "a.csv", CLASSES[::-1])
    (tmp_path / "c.csv").write_text("case,bright,dark\nx/1.png,0.5,0.6\n")
    with pytest.raises(UserError, match="its numbers are no probabilities"):
        read_probabilities(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("case,bright,dark\nx/1.png,0.5,0.5\n")
    with pytest.raises(UserError, match="different cases"):
        mean_probabilities([tmp_path / "a.csv", tmp_path / "d.csv"])


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory) -> Path:
    """A tiny study, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    write_folders(folder / "source", 10)
    keys = {"classes": [*CLASSES], "test_per_class": 4}
    values = {"name": "small", "source": {"folder": "source"}, "classification": keys}
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    done = snakemake(repository, folder, "--configfile", "study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results/tiny"


def test_a_study_runs_from_images_to_its_report(finished):
    cell = "small-32-6pc-2w"
    for name in (
        "checks.csv", "cases.json", "splits.json", "scores.csv", f"{cell}/plan.json", f"{cell}/fold-0/model.pt",
        f"{cell}/fold-0/history.csv", f"{cell}/fold-0/manifest.json", f"{cell}/test.csv", "ensembles/both/test.csv",
        "report/index.html", "report/tables/summary.tex", "report/figures/accuracy_against_resolution.svg",
    ):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    scores = pd.read_csv(finished / "scores.csv")
    assert set(scores["setting"]) == {"small-32-6pc-1w", cell, "both"}
    # 8 test images: probabilities of 2 classes and the truth; 5 metrics
    assert (scores.groupby("setting").size() == 8 * 3 + 5).all()


def test_the_report_says_what_a_reader_has_to_know(finished):
    page = (finished / "report/index.html").read_text()
    assert "2 of 2 settings began with random weights" in page
    table = pd.read_csv(finished / "report/tables/distributed.csv")
    assert table[["resolution", "images_per_class", "workers", "partition"]].to_numpy().tolist() == [
        [32, 6, 2, "private"]
    ]
    summary = pd.read_csv(finished / "report/tables/summary.csv").set_index("row")
    counts = pd.read_csv(finished / "report/tables/confusion.csv")
    own = counts[counts["row"] == "both"]
    right = own[own["class"] == own["predicted"]]["images"].sum()
    assert summary.loc["both", "accuracy"] == pytest.approx(right / 8)
    cost = pd.read_csv(finished / "report/tables/cost.csv")
    assert (cost["peak_gib"] > 0).all()
    assert cost["forecast_gib"].to_numpy() == pytest.approx(cost["peak_gib"].to_numpy(), rel=0.05)


DEFINED = {
    "task": "classification", "study": "s", "dataset": "d", "baseline": "cell", "settings": ["a", "b"],
    "cells": {"cell": ["a"], "other": ["b"]}, "ensembles": {"both": ["a", "b"]},
    "folds": {"a": [0], "b": [0], "both": [0]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"settings": []}, "settings: expected at least one"),
        ({"cells": {"cell": []}}, "cells: cell: expected at least one setting"),
        ({"cells": {"cell": ["c"]}}, "cells: there is no 'c'; allowed: a, b"),
        ({"ensembles": {"both": ["a", "c"]}}, "ensembles: there is no 'c'; allowed: a, b"),
        ({"baseline": "a"}, "baseline: there is no 'a'; allowed: cell, other"),
        ({"folds": {"a": [0], "b": []}}, "folds: 'b' has none"),
    ],
)
def test_a_definition_that_refers_to_nothing_is_refused(changes, match):
    assert load_definition(json.dumps(DEFINED)).rows == {"cell": ("a",), "other": ("b",), "both": ("both",)}
    with pytest.raises(UserError, match=f"--definition: {match}"):
        load_definition(json.dumps(DEFINED | changes))
    with pytest.raises(UserError, match="--definition: not JSON"):
        load_definition("{")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("epoch,training_loss\n1,0.5\n", "the column training_accuracy is missing"),
        ("a\n", "the column epoch is missing"),
    ],
)
def test_a_damaged_history_is_named(finished, tmp_path, text, match):
    shutil.copytree(finished, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    cell = "small-32-6pc-1w"
    path = tmp_path / "results" / cell / "fold-0/history.csv"
    path.write_text(text)
    definition = DEFINED | {"baseline": None, "settings": [cell], "cells": {cell: [cell]}, "ensembles": {}}
    with pytest.raises(UserError, match=f"history.csv: {match}"):
        load_stored(tmp_path / "results", json.dumps(definition | {"folds": {cell: [0]}}), need_cases=True)


@pytest.mark.parametrize("key", ["seconds", "peak_memory", "data"])
def test_a_manifest_without_what_tables_need_is_named(finished, tmp_path, key):
    shutil.copytree(finished, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    cell = "small-32-6pc-1w"
    path = tmp_path / "results" / cell / "fold-0/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    definition = DEFINED | {"baseline": None, "settings": [cell], "cells": {cell: [cell]}, "ensembles": {}}
    with pytest.raises(UserError, match=f"manifest.json: {key}"):
        load_stored(tmp_path / "results", json.dumps(definition | {"folds": {cell: [0]}}), need_cases=True)


def test_a_study_that_is_not_finished_is_reported_as_far_as_it_is(finished, tmp_path, capsys):
    from megavoxel.cli import main

    results = tmp_path / "results"
    shutil.copytree(finished, results, ignore=shutil.ignore_patterns("report"))
    (results / "small-32-6pc-2w/fold-0/history.csv").unlink()
    (results / "scores.csv").unlink()
    serial, distributed = "small-32-6pc-1w", "small-32-6pc-2w"
    definition = DEFINED | {
        "baseline": distributed, "settings": [serial, distributed],
        "cells": {serial: [serial], distributed: [distributed]},
        "ensembles": {"both": [serial, distributed]}, "folds": {name: [0] for name in (serial, distributed, "both")},
    }  # fmt: skip
    words = ["report", "--results", str(results), "--definition", json.dumps(definition)]
    assert main(words) == 1
    assert "no such score file" in capsys.readouterr().err
    assert main([*words, "--partial"]) == 0
    assert f"left out: {distributed}, fold 0: not trained to its end (no history.csv)" in capsys.readouterr().out
    page = (results / "report/index.html").read_text()
    assert "not of the whole study: 3 parts are missing" in page
    assert f"both: left out, for its member {distributed} is missing" in page
    assert f"{distributed}: it is the baseline, so that there are no differences and no tests" in page
    assert pd.read_csv(results / "report/tables/summary.csv")["row"].unique().tolist() == [serial]


def test_the_manifest_names_the_shares_and_the_lack_of_published_weights(finished):
    manifest = json.loads((finished / "small-32-6pc-2w/fold-0/manifest.json").read_text())
    assert manifest["published_weights"] == "none: all weights began at random"
    shares = manifest["data"]["shares"]
    assert [len(share) for share in shares] == [6, 6]
    assert not set(shares[0]) & set(shares[1])
    assert manifest["devices"] == 2


def test_new_images_are_classified_and_tables_made_again(finished, repository):
    from megavoxel.cli import main

    cell = finished / "small-32-6pc-1w"
    weights = ["--weights", str(cell / "fold-0/model.pt"), "--output", str(finished / "new.csv")]
    source = str(finished.parents[1] / "source/dark")
    assert main(["predict", "--plan", str(cell / "plan.json"), *weights, "--input", source]) == 0
    assert len(read_probabilities(finished / "new.csv", CLASSES)) == 10
    (finished / "report/tables/summary.csv").unlink()
    done = snakemake(repository, finished.parents[1], "tables", "--configfile", "study.yaml")
    assert done.returncode == 0, done.stderr
    assert (finished / "report/tables/summary.csv").exists()


def test_a_page_comes_of_what_there_is_of_a_study(finished, repository, tmp_path):
    for name in ("study.yaml", "small.yaml", "results", "source"):
        source = finished.parents[1] / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    results = tmp_path / "results/tiny"
    shutil.rmtree(results / "small-32-6pc-2w")
    shutil.rmtree(results / "report")
    (results / "scores.csv").unlink()
    done = snakemake(repository, tmp_path, "partial_report", "--configfile", "study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (results / "report/index.html").read_text()
    assert "small-32-6pc-2w" in page
    assert pd.read_csv(results / "report/tables/summary.csv")["row"].tolist() == ["small-32-6pc-1w"]


def test_a_dataset_of_volumes_is_refused_by_a_study_of_images(repository, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "dataset": "phantom"}))
    done = snakemake(repository, tmp_path, "-n", "--configfile", "study.yaml")
    assert done.returncode != 0
    assert (
        "Error: study.yaml: dataset: phantom is not for a study of 'task: classification'" in done.stdout + done.stderr
    )


def test_out_of_memory_says_what_a_classifier_was_expected_to_need():
    data = None
    found = check_fits_here(classifier(batch=8), data, CPU, None).advice()
    assert found.startswith("on this machine (")
    assert found.endswith("next cheaper option: batch: 4")
    assert "the forecast was 1." in found  # the process alone is taken for 1 GiB
    assert check_fits_here(classifier(batch=1), data, CPU, None).advice().endswith("a lower resolution")


def test_a_classifier_is_held_against_the_device_before_it_trains(monkeypatch, capsys):
    plan = classifier(batch=8)
    certain = step_cost(plan, "float32").peak_bytes / 2**30

    def at_hand(gibibytes: float) -> None:
        found = round(gibibytes * 2**30)
        monkeypatch.setattr(memory, "host_memory", lambda: found)

    at_hand(certain + 0.5)  # the process alone is taken for 1 GiB
    with pytest.raises(UserError, match=r"setting a: training needs .* GiB more than this machine has .*: batch: 4"):
        check_fits_here(plan, None, CPU, None)
    assert capsys.readouterr().out == ""
    at_hand(certain + 1.02)
    described = Device(name="cpu", kind="cpu", workspace=500.0)
    check_fits_here(plan, None, CPU, described)
    printed = capsys.readouterr().out
    assert "warning: the forecast of" in printed
    assert "should memory run out: batch: 4" in printed
    at_hand(16)
    check_fits_here(plan, None, CPU, None)
    assert capsys.readouterr().out == ""
