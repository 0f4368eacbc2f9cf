"""Losses on cases worked out by hand, against MONAI, and their gradients."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss, FocalLoss

from helpers import tiny_plan
from megavoxel.config.records import from_file
from megavoxel.config.training import Training
from megavoxel.errors import UserError
from megavoxel.training.loss import LOSSES, build_loss
from megavoxel.training.outputs import Outputs, outputs_of
from megavoxel.training.soft_dice import SMOOTH, dice
from megavoxel.training.supervision import downsample_target, supervised_loss, supervision_weights
from megavoxel.training.voxel_losses import cross_entropy


def sure_logits(classes: list[int], count: int) -> torch.Tensor:
    """Logits of one line of voxels that put practically all probability on `classes`."""
    return F.one_hot(torch.tensor(classes), count).T.float()[None, :, None, None] * 100


def test_dice_of_a_line_of_voxels_worked_out_by_hand():
    logits = sure_logits([0, 1, 1, 2], 3)
    target = torch.tensor([0, 1, 2, 2])[None, None, None]
    # class 1: predicted 2, reference 1, both 1: 2/3; class 2: predicted 1, reference 2, both 1: 2/3
    expected = 1 - (2 + SMOOTH) / (3 + SMOOTH)
    assert dice()(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_batch_dice_sums_over_samples_before_the_ratio():
    logits = torch.cat([sure_logits([1, 1, 1, 0], 2), sure_logits([0, 0, 0, 0], 2)])
    target = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])[:, None, None]
    # together: predicted 3, reference 4, both 3; alone: 1 and 0
    assert dice(batch=True)(logits, target).item() == pytest.approx(1 - 6 / 7, abs=1e-5)
    assert dice()(logits, target).item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("batch", [False, True])
def test_dice_equals_monais(batch):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 5, 6, 7))
    monai = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=batch, smooth_nr=SMOOTH, smooth_dr=SMOOTH
    )
    torch.testing.assert_close(dice(batch=batch)(logits, target), monai(logits, target[:, None]))


def test_dice_with_background_equals_monais():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 5, 6, 7))
    monai = DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    torch.testing.assert_close(
        dice(outputs=Outputs(has_background=True))(logits, target), monai(logits, target[:, None])
    )


def test_weights_are_factors_of_the_terms_of_dice():
    logits = sure_logits([0, 1, 1, 2], 3)
    target = torch.tensor([0, 1, 2, 2])[None, None, None]
    # background: predicted 1, reference 1, both 1; classes 1 and 2: 2/3 each
    weights = torch.tensor([7.0, 0.5, 2.0])
    assert dice(weights=weights)(logits, target).item() == pytest.approx((0.5 + 2) * (1 / 3) / 2, abs=1e-5)
    with_background = dice(weights=weights, outputs=Outputs(has_background=True))
    assert with_background(logits, target).item() == pytest.approx((7 * 0 + (0.5 + 2) * (1 / 3)) / 3, abs=1e-5)


@pytest.mark.parametrize("known", [(True, True, True), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_adaptive_weighted_loss_is_monais_terms_times_flags_and_weights(known, batch_dice):
    """Each class's Dice, and half its focal loss, times its weight; none of an unannotated label and the background."""
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, 5, 6, 7), torch.randint(0, 4, (1, 5, 6, 7))
    target = torch.tensor([0, *(label if seen else 0 for label, seen in enumerate(known, 1))])[target]
    flags, weights = torch.tensor([all(known), *known]), torch.tensor([2.2, 1.3, 1.0, 0.5])
    one_hot = F.one_hot(target, 4).movedim(-1, 1).float()
    terms = DiceLoss(softmax=True, reduction="none", smooth_nr=SMOOTH, smooth_dr=SMOOTH)(logits, one_hot).flatten()
    focal = FocalLoss(use_softmax=True, reduction="none", gamma=2.0)(logits, one_hot).mean(dim=(0, 2, 3, 4))
    expected = (terms * flags * weights).mean() + 0.5 * (focal * flags * weights).mean()
    training = Training(
        loss="dice_focal", class_weights=tuple(weights.tolist()), dice_class_weights=True, dice_background=True,
        focal_weight=0.5 / 4, batch_dice=batch_dice,
    )  # fmt: skip
    loss = build_loss(
        training, class_weights=weights, outputs=Outputs(has_background=True), annotated=torch.tensor([known])
    )
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"loss": "cross_entropy", "dice_background": True}, "dice_background: the loss 'cross_entropy' has no Dice"),
        ({"dice_class_weights": True}, "dice_class_weights: there are none; give 'class_weights' beside it"),
        ({"loss": "dice_focal", "focal_weight": 0}, "focal_weight: 0"),
    ],
)
def test_keys_of_a_loss_without_what_they_are_for_are_refused(keys, fault):
    with pytest.raises(UserError, match=fault):
        from_file(Training, keys, where="study.yaml")


def test_a_run_has_the_background_where_its_plan_says_so():
    for wanted in (False, True):
        assert outputs_of(tiny_plan(training={"dice_background": wanted})).has_background is wanted


def test_dice_ce_equals_monais():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 5, 6, 7))
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    ours = build_loss(Training(loss="dice_ce"))(logits, target)
    torch.testing.assert_close(ours, monai.dice(logits, target[:, None]) + F.cross_entropy(logits, target))


@pytest.mark.parametrize("name", ["dice_ce", "dice_focal", "dice_topk", "dice_perimeter", "dice", "cross_entropy"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradients_are_those_of_finite_differences(name, batch_dice):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 2, 2, 3))
    loss = build_loss(Training(loss=name, batch_dice=batch_dice))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


def test_cross_entropy_of_uniform_logits_is_the_logarithm_of_the_classes():
    value = cross_entropy()(torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.long))
    assert value.item() == pytest.approx(torch.tensor(4.0).log().item())


def test_supervision_weights_are_those_of_nnunet():
    # six levels: 16 : 8 : 4 : 2 over 30, and 0 for the lowest decoder level, which has no head here
    assert supervision_weights(4) == pytest.approx([16 / 30, 8 / 30, 4 / 30, 2 / 30])
    assert supervision_weights(1) == [1.0]


def test_the_target_of_a_coarser_level_equals_pytorchs_nearest_exact():
    target = torch.randint(0, 9, (2, 8, 12, 16))
    ours = downsample_target(target, (2, 4, 8))
    theirs = F.interpolate(target[:, None].float(), size=(4, 3, 2), mode="nearest-exact")[:, 0].long()
    assert torch.equal(ours, theirs)


def test_a_target_that_is_no_multiple_of_the_stride_is_rounded_up():
    target = torch.arange(7)[None, None, None]
    assert downsample_target(target, (1, 1, 2)).flatten().tolist() == [1, 3, 5, 6]
    assert downsample_target(target, (1, 1, 4)).flatten().tolist() == [2, 6]


def test_levels_are_weighted_and_added():
    torch.manual_seed(0)
    logits = [torch.randn(1, 2, 4, 4, 4), torch.randn(1, 2, 2, 2, 2)]
    target = torch.randint(0, 2, (1, 4, 4, 4))
    strides = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    expected = 2 / 3 * cross_entropy()(logits[0], target) + 1 / 3 * cross_entropy()(
        logits[1], target[:, 1::2, 1::2, 1::2]
    )
    torch.testing.assert_close(supervised_loss(cross_entropy(), logits, target, strides), expected)


def test_every_loss_that_a_study_can_name_is_there():
    assert set(get_args(get_type_hints(Training)["loss"])) == set(LOSSES)
