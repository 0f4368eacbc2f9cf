"""The soft Dice loss: our own because its sums are shared between the parts of a batch; tested against MONAI's.

Logits are (batch, outputs, z, y, x), targets (batch, z, y, x) of class numbers; `outputs` says what the outputs stand
for (`training/outputs.py`). `known`, bool (batch, classes - 1), says which labels are annotated in the case of a
sample; None: all are. `training/annotation.py` says what that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from megavoxel.training.annotation import decode_target, mean_of_known
from megavoxel.training.outputs import CLASSES, Outputs
from megavoxel.training.slabs import sums_over_slabs
from megavoxel.training.sum_loss import SumLoss, Voxels

SMOOTH = 1e-5
Completion = Callable[[Tensor], Tensor]
"""Takes the Dice sums of a part of a batch and gives those of the batch."""


def soft_dice_sums(
    logits: Tensor, target: Tensor, known: Tensor | None = None, *, outputs: Outputs = CLASSES
) -> Tensor:
    """Sums that the soft Dice of each sample and structure is made of.

    Returns:
        intersection and cardinality (soft prediction plus reference): (2, batch, structures). With `known` a third,
        follows: the number of voxels in the sums. All three are 0 where the structure is not annotated.
    """
    known = outputs.known(known)
    probabilities = outputs.probabilities(logits)
    reference = outputs.reference(target, logits.shape[1])
    counted = outputs.counted(target, logits.shape[1])
    if counted is not None:
        probabilities = probabilities * counted[:, None]
    intersection = (probabilities * reference).sum(dim=(2, 3, 4))
    cardinality = (probabilities.sum(dim=(2, 3, 4))) + reference.sum(dim=(2, 3, 4))
    if known is None:
        return torch.stack([intersection, cardinality])
    voxels = torch.full_like(cardinality, target[0].numel())
    return torch.stack([intersection, cardinality, voxels]).where(known, logits.new_zeros(()))


def dice_sums_of_batch(logits: Tensor, target: Tensor, annotated: Tensor | None, outputs: Outputs = CLASSES) -> Tensor:
    """`soft_dice_sums` of all samples together (2 or 3, structures).

    Args:
        target: (batch, z, y, x), as `encode_target` gives it.
        annotated: as `annotation_table` gives it.
    """
    classes, known = decode_target(target, annotated)
    return sums_over_slabs(partial(soft_dice_sums, known=known, outputs=outputs), logits, classes).sum(dim=1)


def dice(
    *,
    batch: bool = False,
    complete: Completion | None = None,
    outputs: Outputs = CLASSES,
    weights: Tensor | None = None,
) -> SumLoss:
    """One minus the soft Dice of the structures, smooth 1e-5, as in nnU-Net.

    Where labels are not annotated: the mean over samples of the mean over the annotated labels of one minus the Dice.
    With `batch`, the sums of a label run over the samples in which it is annotated, and the mean over the labels that
    are so in any sample of the batch.

    With weights, the terms of labels without an annotation are 0 and are counted in the mean, as those of voxels: it is
    the loss of AnatomyNet (Zhu et al., Med. Phys. 46:576, 2019), which adds up its terms, over the number of classes,
    as in the code of LAMP (Zhu et al., MICCAI 2020).

    Args:
        batch: whether sums run over the whole batch before the ratio is taken.
        complete: with `batch`, where these samples are a part of it: gives the sums (2 or 3, structures) of all parts.
        weights: (classes), factors of the terms of the structures; None: all are 1. Not for regions.
    """
    factors = None if weights is None else weights[outputs.first_class :]

    def value(sums: Tensor, known: Tensor | None, _: Voxels) -> Tensor:
        if batch:
            sums = sums.sum(dim=1)
            sums = sums if complete is None else complete(sums)
        intersection, cardinality, *voxels = sums
        found = (2 * intersection + SMOOTH) / (cardinality + SMOOTH)
        annotated = None if known is None else (voxels[0] > 0 if batch else outputs.known(known))
        if factors is not None:
            terms = factors.to(found.dtype) * (1 - found)
            return (terms if annotated is None else terms.where(annotated, terms.new_zeros(()))).mean()
        if annotated is None:
            return 1 - found.mean()
        return mean_of_known(1 - found[None], annotated[None]) if batch else mean_of_known(1 - found, annotated)

    return SumLoss(sums=partial(soft_dice_sums, outputs=outputs), value=value)
