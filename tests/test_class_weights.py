"""Weights of the classes: the paper's equation by hand, and the weighted loss against PyTorch's."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import preprocessing_plan, store_case, tiny_plan
from megavoxel.config.setting import Setting
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Training
from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.planning.planner import class_weight_notes, plan_setting
from megavoxel.reporting.notices import silenced
from megavoxel.tasks.segmentation.data import VolumeData, warn_of_silenced_classes
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.training.class_weights import (
    class_voxels,
    class_weights,
    inverse_frequency,
    inverse_square_root,
    silenced_classes,
    softmax_of_inverse,
)
from megavoxel.training.loss import build_loss
from megavoxel.training.soft_dice import dice
from megavoxel.training.voxel_losses import cross_entropy, focal

CPU = torch.device("cpu")


def samples(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, classes, 3, 4, 5, generator=generator)
    return logits, torch.randint(0, classes, (4, 3, 4, 5), generator=generator)


def set_class_voxels(folder, case: str, counts: list[int]) -> None:
    where = folder / f"{case}.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"class_voxels": counts}))


def test_weights_by_hand():
    """Counts 4, 2 and 2: all voxels over a class's are 2, 4 and 4."""
    total = math.exp(2) + 2 * math.exp(4)
    expected = [3 * math.exp(ratio) / total for ratio in (2, 4, 4)]
    weights = softmax_of_inverse([4, 2, 2])
    assert weights.dtype is torch.float32
    assert weights.tolist() == pytest.approx(expected)
    assert weights.sum().item() == pytest.approx(3)


def test_classes_of_equal_size_have_the_weight_one():
    assert softmax_of_inverse([7, 7, 7, 7]).tolist() == [1, 1, 1, 1]


def test_a_rare_class_takes_all_the_weight():
    assert softmax_of_inverse([1000, 10, 1]).tolist() == [0, 0, 3]
    assert softmax_of_inverse([10**12, 10**9, 1]).tolist() == [0, 0, 3], "no overflow"


def test_square_roots_by_hand_leave_every_class_a_weight():
    """Counts 16, 4 and 1: inverse square roots 1/4, 1/2 and 1, their mean 7/12."""
    weights = inverse_square_root([16, 4, 1])
    assert weights.dtype is torch.float32
    assert weights.tolist() == pytest.approx([3 / 7, 6 / 7, 12 / 7])
    assert inverse_square_root([960, 39, 1]).tolist() == pytest.approx([0.081, 0.403, 2.516], abs=1e-3)
    assert inverse_square_root([16, 0, 4, 1]).tolist() == pytest.approx([3 / 7, 0, 6 / 7, 12 / 7])


def test_classes_that_the_saturated_rule_does_not_see_are_told():
    def silenced(rule, weights):
        return silenced_classes(tiny_plan(training={"class_weights": rule}), weights)

    assert silenced("softmax_of_inverse", [0, 1e-4, 3]) == ["background", "ball"]
    assert silenced("softmax_of_inverse", [0.5, 0.5, 2]) == []
    assert silenced((1.0, 0.0, 1.0), [1, 0, 1]) == [], "what the study gives by hand is meant"
    assert silenced("inverse_frequency", [0, 0, 3]) == []


def test_the_plan_says_that_equation_1_saturates():
    def notes(rule):
        return " ".join(class_weight_notes(Training(class_weights=rule)))

    assert "softmax_of_inverse leaves all weight to the rarest class" in notes("softmax_of_inverse")
    assert not notes("inverse_square_root")


def test_a_class_without_voxels_has_no_weight_and_leaves_the_others_as_they_are():
    first, *others = softmax_of_inverse([4, 2, 2]).tolist()
    assert softmax_of_inverse([4, 0, 2, 2]).tolist() == pytest.approx([first, 0, *others])
    assert softmax_of_inverse([5, 0, 5]).tolist() == [1, 0, 1]


def test_the_loss_is_pytorchs_weighted_cross_entropy_over_all_voxels():
    logits, target = samples()
    weights = torch.tensor([0.5, 2.0, 0.25])
    expected = F.cross_entropy(logits, target, weight=weights, reduction="none").sum() / target.numel()
    torch.testing.assert_close(cross_entropy(weights=weights)(logits, target), expected)
    by_hand = F.cross_entropy(logits, target, reduction="none") * weights[target]
    torch.testing.assert_close(cross_entropy(weights=weights)(logits, target), by_hand.mean())
    # PyTorch's own mean divides by the weights that the batch happens to have: another number.
    assert abs(F.cross_entropy(logits, target, weight=weights) - expected) > 0.01


def test_equal_weights_give_the_plain_cross_entropy():
    logits, target = samples()
    torch.testing.assert_close(cross_entropy(weights=torch.ones(3))(logits, target), cross_entropy()(logits, target))


@pytest.mark.parametrize("name", ["dice_ce", "dice_focal", "cross_entropy"])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(name):
    logits, target = samples()
    # The rare class lies in one sample only, so that parts differ in their sums of weights.
    target[1:] = target[1:].clamp(max=1)
    loss = build_loss(Training(loss=name, batch_dice=False), class_weights=torch.tensor([0.1, 0.4, 2.5]))
    logits.requires_grad_()
    whole = loss(logits, target)
    (expected,) = torch.autograd.grad(whole, logits)
    parts = torch.stack([loss(*part) for part in zip(logits.chunk(2), target.chunk(2), strict=True)]).mean()
    (gradient,) = torch.autograd.grad(parts, logits)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient, expected)


def test_dice_has_no_weights():
    logits, target = samples()
    weights = torch.tensor([0.1, 0.4, 2.5])
    both = build_loss(Training(loss="dice_ce", batch_dice=False), class_weights=weights)(logits, target)
    torch.testing.assert_close(both, dice()(logits, target) + cross_entropy(weights=weights)(logits, target))


def test_a_run_counts_the_training_cases_of_its_fold(tmp_path):
    counts = {"case0": [6, 1, 1], "case1": [10, 4, 2], "case2": [1, 1, 10**6]}
    for number, (case, voxels) in enumerate(counts.items()):
        store_case(tmp_path, case, seed=number)
        set_class_voxels(tmp_path, case, voxels)
    fold = VolumeData(number=0, preprocessed=tmp_path, training=("case0", "case1"), validation=("case2",))
    assert class_voxels(tiny_plan(), tmp_path, fold.training) == [16, 5, 3]
    run = start_run(tiny_plan(training={"class_weights": "softmax_of_inverse"}), fold, CPU)
    torch.testing.assert_close(run.class_weights, 3 * torch.tensor([24 / 16, 24 / 5, 24 / 3]).softmax(dim=0))
    assert start_run(tiny_plan(), fold, CPU).class_weights is None


def test_classes_that_get_no_weight_are_named_and_the_manifest_has_the_weights(tmp_path, capsys):
    store_case(tmp_path, "case0", seed=0)
    set_class_voxels(tmp_path, "case0", [960, 39, 1])
    fold = VolumeData(number=0, preprocessed=tmp_path, training=("case0",), validation=())
    plan = tiny_plan(training={"class_weights": "softmax_of_inverse"})
    warn_of_silenced_classes(plan, fold)
    assert "gives background 0, ball 0, cube 3: cross-entropy does not see background, ball;" in capsys.readouterr().out
    warn_of_silenced_classes(tiny_plan(training={"class_weights": "inverse_square_root"}), fold)
    warn_of_silenced_classes(tiny_plan(), fold)
    assert not capsys.readouterr().out
    data = fold.facts(start_run(plan, fold, CPU))["data"]
    assert data["class_weights"] == {"background": 0, "ball": 0, "cube": 3}
    stored = SimpleNamespace(manifests={"a": {0: {"data": data}, 1: {}}}, plans={"a": plan})
    assert silenced(stored) == ["a, fold 0: background, ball (weights: background 0, ball 0, cube 3)"]


def test_cases_without_counts_are_refused_with_what_to_do(tmp_path):
    store_case(tmp_path, "case0", seed=0)
    set_class_voxels(tmp_path, "case0", [])
    with pytest.raises(UserError, match=r"case0\.json: class_voxels has 0 numbers.*run 'megavoxel preprocess' again"):
        class_voxels(tiny_plan(), tmp_path, ["case0"])


def test_inverse_frequency_by_hand():
    # 8 voxels of 3 classes: 8 / (3 · 4), 8 / (3 · 2), 8 / (3 · 2)
    weights = inverse_frequency([4, 2, 2])
    assert weights.dtype is torch.float32
    assert weights.tolist() == pytest.approx([2 / 3, 4 / 3, 4 / 3])
    assert inverse_frequency([5, 0, 5]).tolist() == [1, 0, 1]
    counts = torch.tensor([1000.0, 10.0, 1.0])
    shares = counts * inverse_frequency([1000, 10, 1])
    assert shares.tolist() == pytest.approx([1011 / 3] * 3), "all classes weigh the same, a voxel 1 in the mean"


def test_inverse_frequency_is_what_scikit_learn_calls_balanced():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    voxels = [70, 20, 10]
    labels = np.repeat([0, 1, 2], voxels)
    theirs = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert inverse_frequency(voxels).tolist() == pytest.approx(theirs.tolist())


def test_a_run_takes_the_rule_or_the_numbers_that_are_given(tmp_path):
    store_case(tmp_path, "case0", seed=0)
    set_class_voxels(tmp_path, "case0", [4, 2, 2])

    def of(given: object) -> list[float]:
        return class_weights(tiny_plan(training={"class_weights": given}), tmp_path, ["case0"]).tolist()

    assert of("inverse_frequency") == pytest.approx([2 / 3, 4 / 3, 4 / 3])
    assert of("softmax_of_inverse") == softmax_of_inverse([4, 2, 2]).tolist()
    assert of((0.5, 1.0, 3.0)) == [0.5, 1.0, 3.0]
    assert class_weights(tiny_plan(), tmp_path, ["case0"]) is None


def test_the_focal_loss_is_weighted_by_the_class_of_the_voxel():
    logits, target = samples()
    weights = torch.tensor([0.5, 2.0, 0.25])
    own = logits.softmax(dim=1).gather(1, target[:, None])[:, 0]
    by_hand = (-weights[target] * (1 - own) ** 2 * own.log()).mean()
    torch.testing.assert_close(focal(gamma=2.0, weights=weights)(logits, target), by_hand)
    both = build_loss(Training(loss="dice_focal", batch_dice=False), class_weights=weights)(logits, target)
    torch.testing.assert_close(both, dice()(logits, target) + by_hand)


def test_weights_that_are_numbers_go_through_files_and_are_counted(tmp_path):
    weights = [0.2, 1, 3]
    values = {"study": "s", "dataset": "phantom", "settings": {"a": {"training": {"class_weights": weights}}}}
    training = parse_study(values, source="my.yaml").setting("a").training
    assert training.class_weights == (0.2, 1.0, 3.0)
    plan = tiny_plan(training={"class_weights": (0.2, 1.0, 3.0)})
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json") == plan
    assert isinstance(hash(load_plan(tmp_path / "plan.json").training), int), "forecasts keep plans by their keys"
    setting = Setting(name="a", patch=(8, 12, 12), training=Training(class_weights=(1.0, 2.0)))
    cases = Cases(dataset="d", root="", channels=("CT",), labels={"ball": 1, "cube": 3}, nsd_tolerance_mm={}, cases=())
    with pytest.raises(UserError, match=r"class_weights has 2 numbers; give one for each of the 3 classes: background"):
        plan_setting(cases, preprocessing_plan(), setting, study="s", seed=1)
    values["settings"]["a"]["training"]["class_weights"] = [0, 0]
    with pytest.raises(UserError, match=r"class_weights: all of them are 0"):
        parse_study(values, source="my.yaml")


@pytest.mark.parametrize("loss", ["dice", "dice_topk", "dice_perimeter"])
def test_weights_of_a_loss_without_cross_entropy_are_refused(loss):
    training = {"loss": loss, "class_weights": "softmax_of_inverse"}
    values = {"study": "s", "dataset": "phantom", "settings": {"a": {"training": training}}}
    with pytest.raises(
        UserError, match=r"settings\.a\.training\.class_weights: .*allowed: loss dice_ce or dice_focal or cross"
    ):
        parse_study(values, source="my.yaml")
    training["loss"] = "cross_entropy"
    assert parse_study(values, source="my.yaml").setting("a").training.class_weights == "softmax_of_inverse"
