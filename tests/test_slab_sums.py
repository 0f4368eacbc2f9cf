"""Losses are worked out slab by slab: equal to the whole at once, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.config.training import Training
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.training import slabs
from megavoxel.training.loss import LOSSES, build_loss
from megavoxel.training.slabs import sums_over_slabs
from megavoxel.training.supervision import supervised_loss
from megavoxel.training.voxel_losses import topk

OF_SUMS = [name for name in LOSSES if name != "dice_perimeter"]


def batch(depth: int, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, depth, 6, 7, generator=generator).to(precision)
    # The second sample lacks the second label.
    target = torch.randint(0, 3, (2, depth, 6, 7), generator=generator)
    target[1] = 3 + target[1] % 2
    return logits, target


def loss_and_gradient(name: str, logits: torch.Tensor, target: torch.Tensor, **keys) -> tuple[torch.Tensor, ...]:
    annotated = torch.tensor([[True, True], [True, False]])
    weights = None if "topk" in name else torch.tensor([0.5, 1.0, 2.0], dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    loss = build_loss(Training(loss=name, **keys), class_weights=weights, annotated=annotated)(leaf, target)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("name", OF_SUMS)
def test_slabs_give_the_loss_and_the_gradient_of_the_whole(name, batch_dice, precision, monkeypatch):
    logits, target = batch(11, precision)
    whole = loss_and_gradient(name, logits, target, batch_dice=batch_dice)
    monkeypatch.setattr(slabs, "LEAST_BYTES", 1)
    for most in (2, 4, 24):
        monkeypatch.setattr(slabs, "SLABS", most)
        in_slabs = loss_and_gradient(name, logits, target, batch_dice=batch_dice)
        torch.testing.assert_close(in_slabs[0], whole[0], rtol=1e-6, atol=0)
        # A gradient is worked out in float32 and then rounded to the precision of the logits.
        rounding = 1e-6 if precision == torch.float32 else torch.finfo(precision).eps
        torch.testing.assert_close(in_slabs[1], whole[1], rtol=rounding, atol=1e-9)


def test_sums_of_slabs_worked_out_by_hand(monkeypatch):
    monkeypatch.setattr(slabs, "LEAST_BYTES", 1)
    seen = []

    def squares(logits, weights):
        seen.append(logits.shape[2])
        return (logits.square().sum(dim=1) * weights).sum()[None]

    logits = torch.arange(1.0, 6.0)[None, None, :, None, None].requires_grad_()
    weights = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0])[None, :, None, None]
    monkeypatch.setattr(slabs, "SLABS", 3)
    total = sums_over_slabs(squares, logits, weights)
    assert seen == [2, 2, 1]
    assert total.item() == 1 + 4 + 2 * (9 + 16 + 25)
    (3 * total).sum().backward()
    assert logits.grad.flatten().tolist() == [6, 12, 36, 48, 60]


def test_of_equal_voxels_topk_counts_as_many_as_it_says():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    leaf = torch.zeros(1, 2, 4, 4, 4, requires_grad=True)
    topk(percent=25)(leaf, target).backward()
    assert (leaf.grad[:, 0] != 0).sum() == 16


@pytest.mark.parametrize("name", OF_SUMS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_loss_of_all_levels_holds_little_beyond_its_logits(name, precision):
    sizes = [(128 // step, 128 // step, 128 // step) for step in (1, 2, 4)]
    with FakeTensorMode(), MemoryTracker() as memory:
        leaves = [torch.zeros(2, 4, *size, dtype=precision, requires_grad=True) for size in sizes]
        target = torch.zeros(2, *sizes[0], dtype=torch.long)
        loss, before = build_loss(Training(loss=name)), memory.live
        memory.reset_peak()
        supervised_loss(loss, leaves, target, [(1, 1, 1), (2, 2, 2), (4, 4, 4)]).backward()
        beyond = memory.peak - before
    in_float32 = sum(4 * leaf.numel() for leaf in leaves)
    targets_of_levels = sum(8 * leaf.numel() // 4 for leaf in leaves[1:])
    assert beyond - targets_of_levels <= 1.25 * in_float32
