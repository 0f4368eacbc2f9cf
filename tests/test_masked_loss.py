"""The masked loss: by hand, against MONAI and PyTorch on what is left, and where its gradient has to be zero."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from helpers import store_case, tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Training
from megavoxel.planning.topology import shape_of
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.training.annotation import annotation_table, encode_target, unannotated_classes
from megavoxel.training.class_weights import softmax_of_inverse
from megavoxel.training.loss import build_loss
from megavoxel.training.patches import TRAINING, PatchDataset
from megavoxel.training.perimeter import perimeter_loss
from megavoxel.training.soft_dice import SMOOTH, dice
from megavoxel.training.step import train_step
from megavoxel.training.supervision import supervised_loss
from megavoxel.training.voxel_losses import cross_entropy, focal, topk

CPU = torch.device("cpu")
LOSSES = ["dice_ce", "dice_focal", "dice_topk", "dice_perimeter", "dice", "cross_entropy"]
PLAN = tiny_plan(unannotated={"incomplete": ("cube",), "empty": ("ball", "cube")})
TABLE = annotation_table(PLAN)
EVERYTHING = torch.ones(1, 2, dtype=torch.bool)
NO_CUBE = torch.tensor([[True, False]])


def samples(names: list[str], shape: tuple[int, ...] = (4, 4, 6)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, classes as drawn by nobody in particular, and the target that says what is annotated."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(names), 3, *shape, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 3, (len(names), *shape), generator=generator)
    pairs = zip(classes, names, strict=True)
    return (
        logits,
        classes,
        torch.stack([encode_target(own, unannotated_classes(PLAN, name), PLAN) for own, name in pairs]),
    )


def gradient_of(name: str, logits: Tensor, target: Tensor, **keys: object) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss = build_loss(Training(loss=name, topk_percent=100, **keys), annotated=TABLE)(logits, target)
    return torch.autograd.grad(loss, logits)[0]


def test_dice_by_hand_is_the_mean_over_the_annotated_labels():
    # class 1: predicted 2, reference 1, both 1: 2/3. Class 2, of which nothing is right, is not annotated.
    logits = F.one_hot(torch.tensor([0, 1, 1, 2]), 3).T.double()[None, :, None, None] * 100
    target = torch.tensor([0, 1, 0, 0])[None, None, None]
    one = 1 - (2 + SMOOTH) / (3 + SMOOTH)
    assert dice()(logits, target, NO_CUBE).item() == pytest.approx(one, abs=1e-9)
    assert dice()(logits, target, EVERYTHING).item() == pytest.approx((one + 1) / 2, abs=1e-4)
    both = dice()(logits.repeat(2, 1, 1, 1, 1), target.repeat(2, 1, 1, 1), torch.cat([NO_CUBE, EVERYTHING]))
    assert both.item() == pytest.approx((one + (one + 1) / 2) / 2, abs=1e-4), "the mean over samples"


def test_cross_entropy_by_hand_is_zero_at_unknown_voxels_and_divided_by_all():
    logits = torch.zeros(1, 3, 1, 1, 4, dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 0])[None, None, None]
    assert cross_entropy()(logits, target, NO_CUBE).item() == pytest.approx(torch.tensor(3.0).log().item() / 4)
    assert cross_entropy()(logits, target, EVERYTHING).item() == pytest.approx(torch.tensor(3.0).log().item())


def test_a_sample_without_any_annotation_has_the_loss_zero_and_no_gradient():
    logits, _, target = samples(["empty"])
    for name, batch in product(LOSSES, (False, True)):
        assert build_loss(Training(loss=name, batch_dice=batch), annotated=TABLE)(logits, target).item() == 0
        assert gradient_of(name, logits, target, batch_dice=batch).abs().max() == 0


VOXEL_LOSSES = [
    cross_entropy(),
    focal(gamma=2.0),
    focal(gamma=0.5),
    topk(percent=100.0),
]


@pytest.mark.parametrize("loss", VOXEL_LOSSES)
def test_voxel_losses_have_no_gradient_at_unknown_voxels_and_their_own_elsewhere(loss):
    logits, classes, _ = samples(["incomplete", "whole"])
    classes[0, classes[0] == 2] = 0
    known = torch.cat([NO_CUBE, EVERYTHING])
    masked, plain = (logits.clone().requires_grad_() for _ in range(2))
    loss(masked, classes, known).backward()
    loss(plain, classes, None).backward()
    unknown = torch.zeros_like(classes, dtype=torch.bool)
    unknown[0] = classes[0] == 0
    assert 0 < unknown[0].sum() < unknown[0].numel()
    at_unknown = masked.grad.movedim(1, -1)[unknown]
    assert at_unknown.abs().max() == 0
    torch.testing.assert_close(masked.grad.movedim(1, -1)[~unknown], plain.grad.movedim(1, -1)[~unknown])
    assert (masked.grad.movedim(1, -1)[~unknown].abs().sum(dim=-1) > 0).all()


def test_top_k_takes_the_worst_of_the_known_voxels():
    logits = torch.zeros(1, 3, 1, 1, 4, dtype=torch.float64)
    logits[0, 2] = torch.tensor([9.0, 0.0, 0.0, 3.0])
    target = torch.tensor([0, 1, 1, 0])[None, None, None]
    # The worst voxel is the first, which is unknown; of half the voxels both known ones are left, with log 3 each.
    assert topk(percent=50)(logits, target, NO_CUBE).item() == pytest.approx(torch.tensor(3.0).log().item())
    assert topk(percent=25)(logits, target, EVERYTHING).item() == pytest.approx(
        F.cross_entropy(logits[..., :1], target[..., :1]).item()
    )


def test_the_perimeter_of_an_unannotated_label_does_not_count():
    logits, classes, _ = samples(["incomplete"], (6, 6, 6))
    classes[classes == 2] = 0
    first = perimeter_loss(logits, classes, NO_CUBE)
    moved = logits.clone()
    # Background and cube take over each other's probability: only the ball's map is looked at.
    moved[:, [0, 2]] = logits[:, [2, 0]]
    torch.testing.assert_close(perimeter_loss(moved, classes, NO_CUBE), first)
    assert abs(perimeter_loss(moved, classes) - perimeter_loss(logits, classes)) > 1e-6


@pytest.mark.parametrize("batch", [False, True])
def test_dice_of_the_annotated_label_is_monais(batch):
    logits, classes, _ = samples(["incomplete", "incomplete"])
    classes[classes == 2] = 0
    monai = DiceLoss(include_background=False, batch=batch, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    ball = logits.softmax(dim=1)[:, :2], F.one_hot(classes, 3).movedim(-1, 1)[:, :2]
    ours = dice(batch=batch)(logits, classes, NO_CUBE.repeat(2, 1))
    torch.testing.assert_close(ours, monai(*ball))


def test_batch_dice_sums_a_label_over_the_samples_that_have_it():
    logits, classes, target = samples(["incomplete", "whole"])
    loss = build_loss(Training(loss="dice", batch_dice=True), annotated=TABLE)(logits, target)
    hidden = classes.clone()
    hidden[0, hidden[0] == 2] = 0
    ball = dice(batch=True)(logits, hidden, NO_CUBE.repeat(2, 1))
    cube = dice(batch=True)(logits[1:], classes[1:], torch.tensor([[False, True]]))
    torch.testing.assert_close(loss, (ball + cube) / 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_no_loss_tells_an_unannotated_label_from_the_background_at_unknown_voxels(name, batch_dice):
    """Seen from the logits: the gradients of both are as their probabilities, so that only their sum is taught."""
    logits, classes, target = samples(["incomplete", "whole"])
    gradient = gradient_of(name, logits, target, batch_dice=batch_dice)
    unknown = classes[0] != 1
    share = (gradient / logits.softmax(dim=1))[0][:, unknown]
    torch.testing.assert_close(share[0], share[2])
    if name == "cross_entropy":
        assert gradient[0][:, unknown].abs().max() == 0
    whole = (gradient / logits.softmax(dim=1))[1][:, classes[1] == 0]
    assert (whole[0] - whole[2]).abs().min() > 0, "where all labels are annotated they are told apart"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_no_loss_depends_on_what_the_label_map_says_of_hidden_voxels(name, batch_dice):
    logits, classes, _ = samples(["incomplete"])
    loss = build_loss(Training(loss=name, batch_dice=batch_dice), annotated=TABLE)
    swapped = classes.clone()
    swapped[classes == 2], swapped[classes == 0] = 0, 2
    first, second = (loss(logits, encode_target(one[0], (2,), PLAN)[None]) for one in (classes, swapped))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradients_of_masked_losses_are_those_of_finite_differences(name, batch_dice):
    logits, _, target = samples(["incomplete", "whole"], (2, 2, 3))
    loss = build_loss(Training(loss=name, batch_dice=batch_dice), annotated=TABLE)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits.requires_grad_(),))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_samples_with_all_labels_lose_what_they_did(name, batch_dice, weighted):
    """With a table and without one; without one nothing is decoded and nothing masked."""
    logits, classes, target = samples(["whole", "whole"])
    assert torch.equal(classes, target)
    weights = softmax_of_inverse([4, 2, 2]).double() if weighted else None
    training = Training(loss=name, batch_dice=batch_dice)
    masked = build_loss(training, class_weights=weights, annotated=TABLE)(logits, target)
    torch.testing.assert_close(masked, build_loss(training, class_weights=weights)(logits, target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(name):
    logits, _, target = samples(["incomplete", "whole", "empty", "incomplete"])
    loss = build_loss(Training(loss=name, batch_dice=False), annotated=TABLE)
    parts = [loss(*part) for part in zip(logits.chunk(2), target.chunk(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(logits, target))


@pytest.mark.parametrize("name", ["dice_ce", "cross_entropy"])
def test_every_level_of_deep_supervision_is_masked(name):
    names = ["incomplete", "whole"]
    _, classes, target = samples(names, (8, 8, 8))
    generator = torch.Generator().manual_seed(2)
    strides = shape_of(PLAN.network).strides[:2]
    sizes = [[8 // step for step in stride] for stride in strides]
    levels = [torch.randn(2, 3, *size, generator=generator, requires_grad=True) for size in sizes]
    supervised_loss(build_loss(Training(loss=name), annotated=TABLE), levels, target, strides).backward()
    for level, stride in zip(levels, strides, strict=True):
        first = [slice(step // 2, None, step) for step in stride]
        unknown = classes[0][tuple(first)] != 1
        at_unknown = level.grad[0][:, unknown]
        share = at_unknown / level.detach().softmax(dim=1)[0][:, unknown]
        torch.testing.assert_close(share[0], share[2])
        assert (at_unknown.abs().max() == 0) == (name == "cross_entropy")
        assert level.grad[0][:, ~unknown].abs().min() > 0


@pytest.mark.parametrize("batch_dice", [False, True])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path, batch_dice):
    names = ["incomplete", "whole", "empty", "whole"]
    for number, name in enumerate(sorted(set(names))):
        store_case(tmp_path, name, seed=number)
    plan = tiny_plan(training={"batch_dice": batch_dice}, batch=4, unannotated=PLAN.unannotated)
    patches = [PatchDataset(plan, tmp_path, [name], fold=0, stream=TRAINING, count=4)[number]
               for number, name in enumerate(names)]  # fmt: skip
    images, targets = (torch.stack(parts) for parts in zip(*patches, strict=True))
    after = []
    for accumulate in (1, 2, 4):
        one = replace(plan, parallel=Parallel(accumulate=accumulate))
        run = start_run(one, VolumeData(number=0, preprocessed=tmp_path, training=(), validation=()), CPU)
        loss = train_step(run, images, targets)
        after.append((loss, [parameter.grad.clone() for parameter in run.network.parameters()]))
    for loss, gradients in after[1:]:
        torch.testing.assert_close(loss, after[0][0])
        torch.testing.assert_close(gradients, after[0][1], rtol=1e-4, atol=1e-6)
