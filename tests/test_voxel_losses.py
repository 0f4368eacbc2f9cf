"""Focal, top-k and perimeter loss on cases worked out by hand, against MONAI, PyTorch, nnU-Net and SciPy."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import FocalLoss
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.training.perimeter import perimeter_loss, soft_surface
from megavoxel.training.supervision import downsample_target, supervised_loss, supervision_weights
from megavoxel.training.voxel_losses import focal, topk

LOSSES = {
    "focal": focal(gamma=2.0),
    "focal with a broken gamma": focal(gamma=0.5),
    "topk": topk(percent=10.0),
    "perimeter": perimeter_loss,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def logits_of(probabilities: list[float], shape: tuple[int, int, int]) -> torch.Tensor:
    """Logits (1, 2, z, y, x) whose softmax gives class 1 these probabilities."""
    foreground = torch.tensor(probabilities, dtype=torch.float64).reshape(1, 1, *shape)
    return torch.cat([1 - foreground, foreground], dim=1).log()


def sure_logits(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits that put all probability that float32 can tell on the target."""
    return F.one_hot(target, classes).movedim(-1, 1).float() * 200


def box(shape: tuple[int, int, int], size: tuple[int, int, int], corner: tuple[int, int, int] = (1, 1, 1)):
    """A box of ones (1, z, y, x) in a patch of zeros."""
    target = torch.zeros(1, *shape, dtype=torch.long)
    target[0][tuple(slice(start, start + extent) for start, extent in zip(corner, size, strict=True))] = 1
    return target


def random_case(batch: int = 2, classes: int = 3, shape: tuple[int, int, int] = (6, 8, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, *shape, generator=generator, dtype=dtype)
    return logits, torch.randint(0, classes, (batch, *shape), generator=generator)


# Focal


def test_focal_of_four_voxels_worked_out_by_hand():
    # probability of class 1: 0.5, 0.9, 0.2, 0.25; of the voxel's own class 0.5, 0.9, 0.8, 0.25
    logits, target = logits_of([0.5, 0.9, 0.2, 0.25], (1, 2, 2)), torch.tensor([1, 1, 0, 1]).reshape(1, 1, 2, 2)
    expected = -(0.5**2 * log(0.5) + 0.1**2 * log(0.9) + 0.2**2 * log(0.8) + 0.75**2 * log(0.25)) / 4
    assert focal(gamma=2.0)(logits, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_focal_is_monais_times_the_number_of_classes(gamma):
    logits, target = random_case(classes=4)
    monai = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma)(logits, target[:, None])
    torch.testing.assert_close(focal(gamma=gamma)(logits, target), 4 * monai)


def test_focal_without_focus_is_the_cross_entropy():
    logits, target = random_case()
    torch.testing.assert_close(focal(gamma=0.0)(logits, target), F.cross_entropy(logits, target))


# Top-k


def test_topk_takes_the_worst_voxels_of_each_sample():
    hard = [0.9, 0.2, 0.7, 0.6, 0.5, 0.4, 0.3, 0.8]
    easy = [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92]
    logits = torch.cat([logits_of(hard, (2, 2, 2)), logits_of(easy, (2, 2, 2))])
    target = torch.ones(2, 2, 2, 2, dtype=torch.long)
    # a quarter of eight voxels is two: 0.2 and 0.3 of the hard sample, 0.92 and 0.93 of the easy one
    expected = -(log(0.2) + log(0.3) + log(0.92) + log(0.93)) / 4
    assert topk(percent=25)(logits, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("percent", "counted"), [(1, [0.2]), (37, [0.2, 0.3]), (38, [0.2, 0.3, 0.4])])
def test_topk_rounds_down_to_whole_voxels_but_to_one_at_least(percent, counted):
    logits = logits_of([0.9, 0.2, 0.7, 0.6, 0.5, 0.4, 0.3, 0.8], (2, 2, 2))
    expected = -sum(log(probability) for probability in counted) / len(counted)
    value = topk(percent=percent)(logits, torch.ones(1, 2, 2, 2, dtype=torch.long))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_topk_of_all_voxels_is_the_cross_entropy():
    logits, target = random_case()
    torch.testing.assert_close(topk(percent=100)(logits, target), F.cross_entropy(logits, target))


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("percent", [1.0, 10.0, 33.3, 100.0])
def test_topk_of_one_sample_is_nnunets(percent):
    theirs = pytest.importorskip(
        "nnunetv2.training.loss.robust_ce_loss", reason="nnunetv2 is not installed: it is a peer, not a dependency"
    )
    logits, target = random_case(batch=1)
    expected = theirs.TopKLoss(k=percent)(logits, target[:, None])
    torch.testing.assert_close(topk(percent=percent)(logits, target), expected)


# Perimeter


@pytest.mark.parametrize(("size", "surface"), [((3, 3, 3), 27 - 1), ((3, 4, 5), 60 - 6), ((4, 4, 7), 112 - 20)])
def test_the_surface_of_a_box_is_its_outer_layer_of_voxels(size, surface):
    # without its outer layer a box of a × b × c voxels has (a − 2)(b − 2)(c − 2)
    assert soft_surface(box((7, 7, 9), size).float()).tolist() == [surface]


def test_a_soft_line_worked_out_by_hand():
    # minima of three 1 1 5 2 2 tenths; their maxima 1 5 5 5 2; differences 0 4 0 3 0
    line = torch.tensor([0.1, 0.5, 0.9, 0.7, 0.2]).reshape(1, 1, 1, 5)
    assert soft_surface(line).item() == pytest.approx(0.7)


def test_where_the_patch_cuts_an_object_there_is_no_surface():
    assert soft_surface(box((6, 4, 5), (3, 4, 5), corner=(0, 0, 0)).float()).item() == 4 * 5
    assert soft_surface(torch.ones(1, 6, 4, 5)).item() == 0


def test_the_surface_is_scipys_opening_less_its_erosion():
    volumes = torch.rand(3, 5, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for volume in volumes.numpy():
        eroded = ndimage.grey_erosion(volume, size=3, mode="nearest")
        expected.append(np.sum(ndimage.grey_dilation(eroded, size=3, mode="nearest") - eroded))
    assert soft_surface(volumes).tolist() == pytest.approx(expected, rel=1e-12)


def test_in_one_slice_the_surface_is_the_perimeter_of_the_source():
    image = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eroded = -F.max_pool2d(-image, 3, stride=1, padding=1)
    perimeter = F.relu(F.max_pool2d(eroded, 3, stride=1, padding=1) - eroded).sum(dim=(1, 2, 3))
    torch.testing.assert_close(soft_surface(image), perimeter)


def test_perimeter_loss_of_boxes_worked_out_by_hand():
    shape = (7, 7, 9)
    predicted, target = box(shape, (3, 3, 3)), box(shape, (3, 4, 5))
    target[target == 1] = 2
    # class 1: 26 voxels of surface and none in the target; class 2: none, and 54 in the target
    patch_surface = 2 * (7 * 7 + 7 * 9 + 7 * 9)
    expected = ((26 / patch_surface) ** 2 + (54 / patch_surface) ** 2) / 2
    assert perimeter_loss(sure_logits(predicted, 3), target).item() == pytest.approx(expected, rel=1e-6)


def test_equal_contours_have_no_perimeter_loss():
    target = box((7, 7, 9), (3, 4, 5))
    assert perimeter_loss(sure_logits(target, 2), target).item() == 0
    elsewhere = sure_logits(target.roll((1, 1, 2), dims=(1, 2, 3)), 2)
    assert perimeter_loss(elsewhere, target).item() == 0


@pytest.mark.parametrize("classes", [2, 16])
def test_perimeter_loss_of_noise_on_a_patch_of_the_paper_is_of_the_order_of_one_or_less(classes):
    shape = (64, 160, 160)
    logits, _ = random_case(batch=1, classes=classes, shape=shape)
    with torch.no_grad():
        value = perimeter_loss(logits, box(shape, (30, 60, 60), corner=(10, 50, 50))).item()
    assert 1e-3 < value < 3


def test_perimeter_loss_keeps_the_pooling_of_one_class_at_a_time():
    def peak(classes: int) -> float:
        """In maps of one class."""
        with FakeTensorMode(), MemoryTracker() as memory:
            logits = torch.zeros(1, classes, 32, 32, 32, requires_grad=True)
            perimeter_loss(logits, torch.zeros(1, 32, 32, 32, dtype=torch.long)).backward()
        return memory.peak / (4 * 32**3)

    # logits, probabilities, their gradients and a temporary one: the rest does not grow with the classes
    assert (peak(20) - peak(10)) / 10 < 6


# All three


@each_loss
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_equal_parts(loss):
    logits, target = random_case(batch=4, dtype=torch.float64)
    logits = logits * torch.tensor([0.1, 1.0, 4.0, 10.0]).reshape(4, 1, 1, 1, 1)
    for parts in (2, 4):
        values = [loss(*part) for part in zip(logits.chunk(parts), target.chunk(parts), strict=True)]
        torch.testing.assert_close(torch.stack(values).mean(), loss(logits, target), rtol=1e-12, atol=0)


@each_loss
def test_gradients_are_those_of_finite_differences(loss):
    logits, target = random_case(shape=(3, 4, 4), dtype=torch.float64)
    # the tolerance of gradcheck is absolute for small gradients
    assert torch.autograd.gradcheck(lambda x: 1000 * loss(x, target), (logits.requires_grad_(),))


@each_loss
def test_gradient_steps_lower_the_loss(loss):
    target = box((8, 9, 10), (4, 4, 5))
    logits = random_case(batch=1, classes=2, shape=(8, 9, 10))[0].requires_grad_()
    values = []
    for _ in range(10):
        value = loss(logits, target)
        (slope,) = torch.autograd.grad(value, logits)
        values.append(value.item())
        # Polyak's step towards the least possible value, 0, halved
        logits = (logits - 0.5 * value * slope / slope.square().sum()).detach().requires_grad_()
    assert values[-1] < 0.5 * values[0]
    assert np.all(np.diff(values) < 0)


@each_loss
def test_a_patch_of_background_has_a_finite_loss_with_a_gradient(loss):
    logits = random_case(batch=1)[0].requires_grad_()
    value = loss(logits, torch.zeros(1, 6, 8, 8, dtype=torch.uint8))
    value.backward()
    assert value.item() > 0
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad != 0).float().mean() > 0.05


@each_loss
@pytest.mark.parametrize("right", [True, False])
def test_sure_logits_have_finite_gradients(loss, right):
    target = box((6, 8, 8), (3, 4, 5))
    logits = sure_logits(target if right else 1 - target, 2).requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    if right:
        assert value.item() == 0


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_computed_in_float32(loss, dtype):
    logits, target = random_case()
    logits = logits.to(dtype)
    expected = loss(logits.float(), target)
    half = logits.clone().requires_grad_()
    value = loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert half.grad.dtype == dtype
    assert torch.isfinite(half.grad).all()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(loss(logits, target), expected)


@each_loss
def test_float64_stays_float64(loss):
    assert loss(*random_case(dtype=torch.float64)).dtype == torch.float64


@each_loss
def test_arguments_are_left_as_they_are(loss):
    logits, target = random_case()
    logits.requires_grad_()
    before = logits.detach().clone(), target.clone()
    loss(logits, target).backward()
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


@each_loss
def test_levels_of_deep_supervision_are_weighted_and_added(loss):
    strides = [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]
    target = random_case(shape=(8, 24, 24))[1]
    levels = [
        random_case(shape=tuple(-(-size // step) for size, step in zip((8, 24, 24), stride, strict=True)))[0]
        for stride in strides
    ]
    for level in levels:
        level.requires_grad_()
    value = supervised_loss(loss, levels, target, strides)
    value.backward()
    expected = sum(
        weight * loss(level, downsample_target(target, stride))
        for weight, level, stride in zip(supervision_weights(4), levels, strides, strict=True)
    )
    torch.testing.assert_close(value, expected)
    assert all(torch.isfinite(level.grad).all() and level.grad.any() for level in levels)


@each_loss
def test_the_forecasts_fake_tensors_pass_through(loss):
    with FakeTensorMode():
        logits = torch.zeros(2, 3, 8, 8, 8, requires_grad=True)
        loss(logits, torch.zeros(2, 8, 8, 8, dtype=torch.long)).backward()
        assert logits.grad.shape == logits.shape
