"""Losses that are means over voxels: cross-entropy, focal and top k.

Logits are (batch, outputs, z, y, x), targets (batch, z, y, x) of class numbers; `outputs` says what the outputs stand
for (`training/outputs.py`). `known`, bool (batch, classes - 1), says which labels are annotated in the case of a
sample; None: all are. `training/annotation.py` says what that changes.

Focal and top k loss are those that Sato and Kido (Large Batch and Patch Size Training, AMOS 2022, Table 3) add to Dice.
Each is a mean over samples of a value of that sample alone: the loss of a batch is the mean of those of its equal
parts, so it does not depend on how a batch is divided among devices. They take logits of 16 bits as float32 and leave
float64 as it is.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.training.annotation import UNKNOWN, without_unknown
from megavoxel.training.outputs import CLASSES, Outputs
from megavoxel.training.slabs import map_over_slabs
from megavoxel.training.sum_loss import SumLoss, TiledPatch, Voxels


def cross_entropy(*, weights: Tensor | None = None, outputs: Outputs = CLASSES) -> SumLoss:
    """Mean over all voxels of the cross-entropy, times the weight of the voxel's own class, 0 at unknown voxels.

    With an ignore label, the mean over the annotated voxels of the batch, as in nnU-Net.

    PyTorch divides by the sum of the weights that a batch happens to have. Here voxels are counted: the loss of a batch
    is the mean of those of its equal parts.

    Args:
        weights: (classes), of the type of the logits; None: all are 1.
    """

    def sums(logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
        target = outputs.classes(target, known, logits.shape[1])
        return _sum_of_samples(F.cross_entropy(logits, target, weight=weights, ignore_index=UNKNOWN, reduction="none"))

    return SumLoss(sums=sums, value=_mean_over_voxels)


def binary_cross_entropy(*, outputs: Outputs) -> SumLoss:
    """Mean over voxels and regions of the binary cross-entropy of each region.

    With an ignore label, the mean over the annotated voxels of the batch of the sum over regions: nnU-Net's
    `DC_and_BCE_loss` divides by the voxels alone there.
    """

    def sums(logits: Tensor, target: Tensor, _: Tensor | None) -> Tensor:
        reference = outputs.reference(target, logits.shape[1]).to(logits.dtype)
        terms = F.binary_cross_entropy_with_logits(logits, reference, reduction="none").sum(dim=1)
        counted = outputs.counted(target, logits.shape[1])
        return _sum_of_samples(terms if counted is None else terms * counted)

    def value(sums: Tensor, _: Tensor | None, voxels: Voxels) -> Tensor:
        return sums.mean() / voxels / (1 if outputs.ignores else len(outputs.members))

    return SumLoss(sums=sums, value=value)


def focal(*, gamma: float, weights: Tensor | None = None, outputs: Outputs = CLASSES) -> SumLoss:
    """Mean over all voxels of −w (1 − p)^gamma log p, p and w being probability and weight of the voxel's own class.

    The focal loss of Lin et al. (Focal Loss for Dense Object Detection, ICCV 2017, Eq. 4; with weights Eq. 5, whose
    alpha they are) for many classes, background included. MONAI's `FocalLoss(use_softmax=True, to_onehot_y=True)` is
    this divided by the number of classes: it takes the mean over classes too, of which all but the voxel's own add
    zero.

    Args:
        gamma: how much less sure voxels count, at least 0. At 0 this is the cross-entropy.
        weights: (classes), of the type of the logits; None: all are 1.
    """

    def sums(logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
        classes = outputs.classes(target, known, logits.shape[1])
        entropy = F.cross_entropy(logits, classes, ignore_index=UNKNOWN, reduction="none")
        # 1 − p without rounding. Never quite 0: there a gamma below 1 has an infinite slope, and the gradient is no
        # number.
        doubt = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
        terms = doubt.pow(gamma) * entropy
        return _sum_of_samples(terms if weights is None else terms * weights[classes.clamp(min=0)])

    return SumLoss(sums=sums, value=_mean_over_voxels)


def topk(*, percent: float) -> SumLoss:
    """Mean cross-entropy of the worst voxels of each sample, mean over samples.

    Sato and Kido cite Lapin et al. (Loss Functions for Top-k Error, CVPR 2016), whose k counts classes. The loss of
    that name in segmentation counts voxels. nnU-Net's `TopKLoss` takes the worst voxels of the whole batch, so that an
    easy sample may give none, and the loss of a batch depends on which samples a device sees together. Here every
    sample gives its share. For a batch of one the two are equal. Unknown voxels have the cross-entropy 0: they are
    among the worst only where no others are left.

    Args:
        percent: share of a sample's voxels that count, above 0 and at most 100, rounded down to whole voxels, but to
            one at least. At 100 this is the cross-entropy.
    """

    def counted(voxels: int) -> int:
        return max(1, int(voxels * percent / 100))

    def worst(logits: Tensor, target: Tensor, known: Tensor | None, tiled: TiledPatch | None) -> Tensor:
        entropy = map_over_slabs(partial(_voxel_cross_entropy, known=known), logits, target)
        flat = entropy.flatten(start_dim=1)
        if tiled is not None:
            return largest_of_tiles(flat, counted(tiled.voxels), tiled).view_as(entropy)
        places = flat.topk(counted(flat.shape[1]), dim=1, sorted=False).indices
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, places, True).view_as(entropy)

    def sums(logits: Tensor, target: Tensor, known: Tensor | None, counts: Tensor) -> Tensor:
        return _sum_of_samples(_voxel_cross_entropy(logits, target, known) * counts)

    def value(sums: Tensor, _: Tensor | None, voxels: Voxels) -> Tensor:
        return sums.mean() / counted(voxels)

    return SumLoss(sums=sums, value=value, extra=worst)


def largest_of_tiles(values: Tensor, count: int, tiled: TiledPatch) -> Tensor:
    """Which values are among the `count` largest of each sample over all tiles; of equal ones those of lower ranks.

    The numbers of values are counted by their leading 16 bits over all tiles, then by the next 16 of those in question,
    and so on, so that tiles need not see one another's values.

    Args:
        values: (batch, voxels of the tile), float32 or float64, not negative: their bits are in their order.
        count: at most the voxels of the patch.
        tiled: what the tile is a part of.
    """
    width = 32 if values.dtype == torch.float32 else 64
    bits = values.view(torch.int32 if width == 32 else torch.int64)
    result = torch.empty_like(values, dtype=torch.bool)
    prefix, left = torch.zeros(len(values), dtype=bits.dtype, device=bits.device), [count] * len(values)
    for shift in range(width - 16, -1, -16):
        for sample, own in enumerate(bits):
            same = own if shift + 16 == width else own[own >> (shift + 16) == prefix[sample]]
            digits = ((same >> shift) & 0xFFFF).long()
            above = tiled.total(torch.bincount(digits, minlength=2**16)).flip(0).cumsum(0)
            place = int(torch.searchsorted(above, left[sample]))
            left[sample] -= int(above[place - 1]) if place else 0
            prefix[sample] = (prefix[sample] << 16) + (2**16 - 1 - place)
    for sample, own in enumerate(bits):
        result[sample] = own > prefix[sample]
        ties = (own == prefix[sample]).nonzero().flatten()
        of_all = torch.zeros(tiled.tiles, dtype=torch.int64, device=bits.device)
        of_all[tiled.rank] = len(ties)
        before = int(tiled.total(of_all)[: tiled.rank].sum())
        result[sample, ties[: max(0, left[sample] - before)]] = True
    return result


def _sum_of_samples(terms: Tensor) -> Tensor:
    """(1, batch, 1) of (batch, z, y, x)."""
    return terms.flatten(start_dim=1).sum(dim=1)[None, :, None]


def _mean_over_voxels(sums: Tensor, _: Tensor | None, voxels: Voxels) -> Tensor:
    return sums.mean() / voxels


def _voxel_cross_entropy(logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """(batch, z, y, x), 0 at unknown voxels."""
    target = without_unknown(target.long(), known)
    return F.cross_entropy(logits, target, ignore_index=UNKNOWN, reduction="none")
