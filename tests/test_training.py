"""The training loop: it learns, resumes bit for bit, and says what is wrong."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import store_case, three_cases, tiny_plan, weights_of
from megavoxel.cli import main
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Augmentation
from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.network import device
from megavoxel.network.device import Precision, choose_device, choose_precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import load_weights, save_weights
from megavoxel.planning.plan import NetworkPlan, save_plan
from megavoxel.preprocessing.store import open_case
from megavoxel.tasks.segmentation import training
from megavoxel.tasks.segmentation.data import VolumeData, labels_never_seen
from megavoxel.tasks.segmentation.training import train
from megavoxel.training import step
from megavoxel.training.optimizer import build_optimizer, learning_rate
from megavoxel.training.patches import TRAINING, VALIDATION, PatchDataset, Share, foreground_start, patch_loader
from megavoxel.training.states.checkpoint import load_state, save_state
from megavoxel.training.step import train_step

CPU = torch.device("cpu")


@pytest.fixture
def fold(tmp_path) -> VolumeData:
    return three_cases(tmp_path)


@pytest.mark.slow
def test_training_learns_bright_and_dark(fold, tmp_path):
    plan = tiny_plan(
        training={
            "epochs": 6,
            "iterations_per_epoch": 15,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "schedule": "cosine",
        }
    )
    run = train(plan, fold, tmp_path / "state", CPU)
    first, last = run.history[0], run.history[-1]
    assert last["training_loss"] < 0.6 * first["training_loss"]
    assert last["pseudo_dice"] > 0.8
    assert set(last) >= {"epoch", "learning_rate", "validation_loss", "pseudo_dice_ball", "pseudo_dice_cube", "seconds"}


@pytest.mark.parametrize(
    ("optimizer", "on_device"), [("sgd", False), ("adamw", False), ("adam", False), ("rmsprop", False), ("sgd", True)]
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    fold, tmp_path, monkeypatch, optimizer, on_device
):
    plan = tiny_plan(training={"epochs": 3, "optimizer": optimizer}, augmentation=Augmentation(on_device=on_device))
    whole = train(plan, fold, tmp_path / "whole", CPU)
    epochs = iter(range(10))
    validate = training.validate

    def killed_in_the_second_epoch(*arguments):
        if next(epochs) == 1:
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(training, "validate", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(plan, fold, tmp_path / "state", CPU)
    monkeypatch.setattr(training, "validate", validate)
    resumed = train(plan, fold, tmp_path / "state", CPU)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(whole), weights_of(resumed), strict=True))
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert ours["training_loss"] == theirs["training_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dice_ce", "cross_entropy"])
def test_accumulation_and_checkpointing_change_nothing(fold, tmp_path, loss):
    plan = tiny_plan(batch=4, training={"loss": loss})
    plain = train(plan, fold, tmp_path / "plain", CPU)
    for keys in (
        {"accumulate": 2},
        {"accumulate": 4},
        {"checkpointing": "blocks"},
        {"accumulate": 2, "checkpointing": "blocks"},
    ):
        other = train(replace(plan, parallel=Parallel(**keys)), fold, tmp_path / str(keys), CPU)
        for key in ("training_loss", "validation_loss"):
            assert other.history[-1][key] == pytest.approx(plain.history[-1][key], abs=1e-5), keys
        # It counts voxels: one between two classes may go either way, 1e-5 of these 8 patches.
        assert other.history[-1]["pseudo_dice"] == pytest.approx(plain.history[-1]["pseudo_dice"], abs=5e-5), keys
        for ours, expected in zip(weights_of(other), weights_of(plain), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_gradients_of_accumulated_parts_are_those_of_the_batch(fold):
    plan = replace(tiny_plan(batch=4), training=replace(tiny_plan().training, gradient_clip=1e9))
    image, target = torch.randn(4, 1, *plan.patch), torch.randint(0, 3, (4, *plan.patch))
    gradients = []
    for parts in (1, 2, 4):
        run = training.start_run(replace(plan, parallel=Parallel(accumulate=parts)), fold, CPU)
        train_step(run, image, target)
        gradients.append([parameter.grad for parameter in run.network.parameters()])
    for other in gradients[1:]:
        for ours, expected in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("limit", "expected"), [(0.5, 0.5), (1e9, 8.0), (None, 8.0)])
def test_gradients_are_clipped_only_where_a_limit_is_given(limit, expected):
    weights = torch.nn.Linear(4, 4, bias=False)
    weights.weight.grad = torch.full((4, 4), 2.0)
    run = SimpleNamespace(network=weights, plan=tiny_plan(training={"gradient_clip": limit}), pipeline=None)
    step._clip(run)
    assert weights.weight.grad.norm().item() == pytest.approx(expected)


def test_a_run_goes_on_with_another_parallelism(fold, tmp_path):
    plan = tiny_plan(batch=4)
    once = train(plan, fold, tmp_path / "state", CPU)
    again = train(replace(plan, parallel=Parallel(accumulate=2)), fold, tmp_path / "state", CPU)
    assert all(torch.equal(ours, expected) for ours, expected in zip(weights_of(again), weights_of(once), strict=True))


def test_a_label_that_no_training_case_has_is_named(tmp_path, capsys):
    for number in range(3):
        store_case(tmp_path / "cases", f"case{number}", seed=number, cube=number == 2)
    save_plan(tmp_path / "plan.json", tiny_plan(training={"epochs": 1}))
    write_json(tmp_path / "splits.json", {"folds": [{"training": ["case0", "case1"], "validation": ["case2"]}]})
    options = {"plan": "plan.json", "preprocessed": "cases", "splits": "splits.json", "state": "s", "output": "o"}
    words = [word for name, file in options.items() for word in (f"--{name}", str(tmp_path / file))]
    assert main(["train", *words, "--fold", "0", "--device", "cpu"]) == 0
    assert "warning: fold 0: no training case has cube" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "o/manifest.json").read_text())
    assert manifest["data"]["labels_never_seen"] == ["cube"]
    assert labels_never_seen(tiny_plan(), tmp_path / "cases", ["case0", "case2"]) == []


def test_worker_processes_change_nothing(fold, tmp_path):
    runs = [train(tiny_plan(training={"workers": count}), fold, tmp_path / str(count), CPU) for count in (0, 2)]
    assert runs[0].history[-1]["training_loss"] == runs[1].history[-1]["training_loss"]
    assert all(torch.equal(a, b) for a, b in zip(*map(weights_of, runs), strict=True))


def test_a_state_of_other_data_is_not_taken_up(fold, tmp_path):
    plan = tiny_plan(training={"epochs": 1})
    train(plan, fold, tmp_path / "state", CPU)
    other = train(plan, replace(fold, data="other checksums"), tmp_path / "state", CPU)
    assert len(list((tmp_path / "state").iterdir())) == 2
    assert other.epoch == 1


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_state_cut_in_half_is_passed_over_for_the_one_before(tmp_path, capsys):
    for epoch in (1, 2):
        save_state(tmp_path, {"key": "k", "epoch": epoch})
    cut_in_half(tmp_path / "checkpoint.pt")
    assert load_state(tmp_path, key="k")["epoch"] == 1
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith(f"warning: {tmp_path}/checkpoint.pt: damaged (")
    assert warning.endswith("; going on from the state before it")


def test_where_no_state_is_whole_the_warning_says_that_training_begins_anew(tmp_path, capsys):
    for epoch in (1, 2):
        save_state(tmp_path, {"key": "k", "epoch": epoch})
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        cut_in_half(tmp_path / name)
    assert load_state(tmp_path, key="k") is None
    (warning,) = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/checkpoint.pt: damaged (" in warning
    assert f"{tmp_path}/checkpoint.previous.pt: damaged (" in warning
    assert warning.endswith("; no other state is there, so that training begins anew")
    (tmp_path / "none").mkdir()
    assert load_state(tmp_path / "none", key="k") is None
    assert not capsys.readouterr().out


def test_a_state_of_another_run_is_refused(tmp_path):
    save_state(tmp_path, {"key": "k", "epoch": 1})
    with pytest.raises(UserError, match="another run"):
        load_state(tmp_path, key="other")


def test_a_loss_that_is_not_a_number_ends_the_run_with_what_to_do(fold, tmp_path):
    for path in fold.preprocessed.glob("*.image.b2nd"):
        path.unlink()
    for case in (*fold.training, *fold.validation):
        store_case(fold.preprocessed, case, seed=0)
    with pytest.raises(UserError, match=r"lower training\.learning_rate"):
        train(tiny_plan(training={"learning_rate": 1e30, "gradient_clip": 1e30}), fold, tmp_path / "state", CPU)


def test_weights_come_back_and_those_of_another_plan_are_refused(tmp_path):
    plan = tiny_plan()
    network = SegmentationNetwork(plan.network, seed=3)
    save_weights(tmp_path / "model.pt", network, plan_hash=plan.hash, precision="float32")
    content = load_weights(tmp_path / "model.pt", plan_hash=plan.hash)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in content["weights"].items())
    with pytest.raises(UserError, match="another plan"):
        load_weights(tmp_path / "model.pt", plan_hash="other")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged"):
        load_weights(tmp_path / "junk.pt")
    with pytest.raises(UserError, match="no such weights"):
        load_weights(tmp_path / "missing.pt")


def test_forced_patches_are_centred_on_foreground(fold):
    case = open_case(fold.preprocessed, "case0")
    random = np.random.default_rng(0)
    for _ in range(50):
        start = foreground_start(case, (4, 4, 4), True, random)
        patch = case.labels[tuple(slice(first, first + 4) for first in start)]
        assert (patch > 0).any()


def test_the_share_of_forced_patches_holds_at_batch_one(fold):
    """nnU-Net's rule forces none at batch 1; ours forces each with the probability asked for."""
    dataset = PatchDataset(
        tiny_plan(patch=(1, 1, 1), batch=1, training={"foreground_fraction": 0.5}),
        fold.preprocessed, fold.training, fold=0, stream=VALIDATION, count=600,
    )  # fmt: skip
    share = np.mean([dataset[number][1].item() > 0 for number in range(600)])
    background = np.mean([(open_case(fold.preprocessed, case).labels[:] > 0).mean() for case in fold.training])
    assert share == pytest.approx(0.5 + 0.5 * background, abs=0.06)


def test_a_patch_larger_than_the_case_is_centred_and_zero_around(fold):
    dataset = PatchDataset(
        tiny_plan(patch=(20, 30, 40)), fold.preprocessed, fold.validation, fold=0, stream=VALIDATION, count=1
    )
    image, labels = dataset[0]
    case = open_case(fold.preprocessed, "case2")
    np.testing.assert_array_equal(image[:, 3:17, 6:24, 12:28].numpy(), case.image[:])
    assert image.abs().sum().item() == pytest.approx(np.abs(case.image[:]).sum(), rel=1e-5)
    assert labels.sum() == case.labels[:].sum()


def test_a_patch_is_a_function_of_its_number(fold):
    make = lambda stream: PatchDataset(  # noqa: E731
        tiny_plan(), fold.preprocessed, fold.training, fold=0, stream=stream, count=4
    )
    assert torch.equal(make(TRAINING)[2][0], make(TRAINING)[2][0])
    assert not torch.equal(make(TRAINING)[2][0], make(TRAINING)[3][0])
    assert not torch.equal(make(TRAINING)[2][0], make(VALIDATION)[2][0])


def test_a_dataset_can_be_sent_to_a_process_that_is_not_forked(fold):
    dataset = PatchDataset(tiny_plan(), fold.preprocessed, fold.training, fold=0, stream=TRAINING, count=4)
    sent = pickle.loads(pickle.dumps(dataset))
    for ours, expected in zip(sent[3], dataset[3], strict=True):
        assert torch.equal(ours, expected)


def test_a_loader_that_starts_later_gives_the_later_batches(fold):
    dataset = PatchDataset(tiny_plan(), fold.preprocessed, fold.training, fold=0, stream=TRAINING, count=8)
    batches = list(patch_loader(dataset, Share(batch=2), workers=0, pin=False))
    later = list(patch_loader(dataset, Share(batch=2, first_iteration=3), workers=0, pin=False))
    assert len(batches) == 4
    assert len(later) == 1
    assert torch.equal(later[0][0], batches[3][0])


def test_learning_rates_follow_their_formulas():
    training = tiny_plan(training={"epochs": 10, "learning_rate": 0.1}).training
    assert learning_rate(0, training, 2) == 0.1
    assert learning_rate(5, training, 2) == pytest.approx(0.1 * 0.5**0.9)
    cosine = replace(training, schedule="cosine", warmup_epochs=2)
    assert [learning_rate(epoch, cosine, 2) for epoch in (0, 1, 2)] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert learning_rate(6, cosine, 2) == pytest.approx(0.05)
    assert learning_rate(9, replace(training, schedule="constant"), 2) == 0.1


def test_learning_rates_grow_with_the_batch_by_their_rule():
    training = tiny_plan(training={"epochs": 10, "learning_rate": 0.1, "warmup_epochs": 1}).training
    assert learning_rate(1, training, 32) == pytest.approx(0.1)
    linear, root = (replace(training, learning_rate_rule=rule) for rule in ("linear", "sqrt"))
    assert learning_rate(1, linear, 32) == pytest.approx(1.6)  # 32 is 16 times the 2 that the rate is meant for
    assert learning_rate(1, root, 32) == pytest.approx(0.4)
    assert learning_rate(1, replace(linear, learning_rate_batch=16), 32) == pytest.approx(0.2)
    assert learning_rate(0, linear, 32) == pytest.approx(0.8)  # half-way up


def test_the_optimizers_are_pytorchs_with_the_keys_of_the_study():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    sgd = build_optimizer(parameters, tiny_plan().training)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.99
    adamw = build_optimizer(parameters, tiny_plan(training={"optimizer": "adamw"}).training)
    assert isinstance(adamw, torch.optim.AdamW)
    kinds = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    for name, kind in kinds.items():
        optimizer = build_optimizer(parameters, tiny_plan(training={"optimizer": name, "learning_rate": 0.5}).training)
        assert type(optimizer) is kind
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 3e-5)


def test_precision_is_measured_on_the_cpu_and_taken_as_given_otherwise():
    chosen = choose_precision(tiny_plan(training={"precision": "auto"}), CPU)
    assert chosen.name in ("float32", "bfloat16")
    assert "measured" in chosen.reason
    assert choose_precision(tiny_plan(training={"precision": "bfloat16"}), CPU).name == "bfloat16"
    with pytest.raises(UserError, match="float16 needs a GPU"):
        choose_precision(tiny_plan(training={"precision": "float16"}), CPU)


@pytest.mark.parametrize(
    ("patch", "amx", "measured"),
    [((8, 12, 12), False, True), ((4, 12, 12), False, False), ((8, 8, 12), False, False), ((4, 12, 12), True, True)],
)
def test_half_precision_is_not_chosen_where_a_processor_computes_wrong_gradients(monkeypatch, patch, amx, measured):
    monkeypatch.setattr(device, "has_amx", lambda: amx)
    monkeypatch.setattr(device, "_bfloat16_ratio", lambda *_: 0.5)
    chosen = choose_precision(tiny_plan(patch=patch, training={"precision": "auto"}), CPU)
    assert chosen.name == ("bfloat16" if measured else "float32")
    assert ("measured" in chosen.reason) == measured


@pytest.mark.slow
def test_the_measurement_works_on_deep_networks_and_large_patches():
    """Seven levels over a patch that is cut down for the measurement: the bottleneck keeps more than one voxel."""
    network = NetworkPlan(
        channels=1, classes=3, features=(2,) * 7, kernels=((3, 3, 3),) * 7, strides=((1, 1, 1), *((2, 2, 2),) * 6)
    )
    plan = tiny_plan(patch=(256, 256, 256), batch=1, network=network, training={"precision": "auto"})
    assert choose_precision(plan, CPU).name in ("float32", "bfloat16")


def test_bfloat16_gives_nearly_the_loss_of_float32(fold, tmp_path):
    losses = [
        train(tiny_plan(training={"precision": name, "epochs": 1}), fold, tmp_path / name, CPU).history[0][
            "training_loss"
        ]
        for name in ("float32", "bfloat16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_validation_scores_patches_laid_together(fold, tmp_path):
    """Pseudo-Dice from counts over all patches, against the same counted voxel by voxel."""
    plan = tiny_plan()
    run = training.start_run(plan, fold, CPU)
    loader = training.loader(run, fold, VALIDATION, 4)
    scores = training.validate(run, loader, ("ball", "cube"))
    both, sizes = np.zeros(3), np.zeros(3)
    for image, target in loader:
        predicted = run.network.eval()(image)[0].argmax(1)
        for label in (1, 2):
            both[label] += ((predicted == label) & (target == label)).sum()
            sizes[label] += (predicted == label).sum() + (target == label).sum()
    assert scores["pseudo_dice_ball"] == pytest.approx(2 * both[1] / sizes[1])
    assert scores["pseudo_dice"] == pytest.approx(np.mean(2 * both[1:] / sizes[1:]))
    assert math.isfinite(scores["validation_loss"])


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="allowed: auto"):
        choose_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            choose_device("cuda")
    assert Precision(name="bfloat16", reason="").dtype is torch.bfloat16
