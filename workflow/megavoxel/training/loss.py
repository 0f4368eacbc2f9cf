"""Losses on logits, and their sum over the levels of deep supervision.

The soft Dice is our own because its sums are shared between the parts of a batch; it is tested against MONAI's.
Logits are (batch, outputs, z, y, x), targets (batch, z, y, x) of class numbers; `outputs` says what the outputs stand
for (`training/outputs.py`). `known`, bool (batch, classes - 1),
says which labels are annotated in the case of a sample; None: all are. `training/annotation.py` says what that changes,
and how the target of a batch carries it.

Dice, cross-entropy, focal and top k loss are functions of sums over voxels (`SumLoss`), which are worked out slab by
slab (`training/slabs.py`): for all that are added up at once, so that one gradient is made.

Focal, top k and perimeter loss are those that Sato and Kido (Large Batch and Patch Size Training, AMOS 2022, Table 3)
add to Dice. Each is a mean over samples of a value of that sample alone: the loss of a batch is the mean of those of
its equal parts, so it does not depend on how a batch is divided among devices. They take logits of 16 bits as float32
and leave float64 as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megavoxel.config.training import Training
from megavoxel.training.annotation import UNKNOWN, decode_target, mean_of_known, without_unknown
from megavoxel.training.outputs import CLASSES, Outputs
from megavoxel.training.slabs import map_over_slabs, sums_over_slabs

SMOOTH = 1e-5
Loss = Callable[[Tensor, Tensor], Tensor]
Completion = Callable[[Tensor], Tensor]
"""Takes the Dice sums of a part of a batch and gives those of the batch."""
Voxels = int | Tensor
"""A number of voxels; where not all of a sample are annotated, a mean over the samples of the batch."""


@dataclass(frozen=True, kw_only=True)
class TiledPatch:
    """A level of a patch of which logits and target are a tile.

    The loss of a tile is that of the patch. Its gradient is that of its own voxels times the number of tiles, so that
    the mean over the tiles is the gradient of the patch.
    """

    total: Callable[[Tensor], Tensor]
    """Gives the sum of the tensors of all tiles, without a gradient."""
    tiles: int
    voxels: int
    """Voxels of the patch at this level."""
    rank: int = 0
    """Number of this tile."""

    def sums(self, own: Tensor) -> Tensor:
        """Sums over the voxels of the patch, from those of this tile."""
        return sums_of_whole(own, self.total(own.detach()), self.tiles)


@dataclass(frozen=True, kw_only=True)
class SumLoss:
    """A loss that is a function of sums over the voxels of each sample.

    Called as a function of logits, target and known labels, it gives its value.
    """

    sums: Callable[..., Tensor]
    """Gives sums (rows, batch, columns) from logits, target, known labels and, where there is one, the map."""
    value: Callable[[Tensor, Tensor | None, Voxels], Tensor]
    """Gives the loss from these sums, the known labels and the number of voxels of a sample that count."""
    extra: Callable[[Tensor, Tensor, Tensor | None, TiledPatch | None], Tensor] | None = None
    """Gives a map (batch, z, y, x) that depends on more than a slab, from logits, target, known labels and what the
    tile is a part of."""

    def __call__(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """The loss alone, a scalar."""
        return total_loss([self], logits, target, known)


def total_loss(
    parts: Sequence[SumLoss],
    logits: Tensor,
    target: Tensor,
    known: Tensor | None,
    tiled: TiledPatch | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The sum of several losses, a scalar; their sums over voxels are worked out together.

    Args:
        parts: the losses.
        logits: (batch, classes, z, y, x).
        target: (batch, z, y, x).
        known: bool (batch, classes - 1), the annotated labels; None: all are.
        tiled: what logits and target are a tile of; None: they are whole.
        counted: voxels of a sample that count; None: all of them.
    """
    maps = [None if part.extra is None else part.extra(logits, target, known, tiled) for part in parts]
    given = [one for one in maps if one is not None]

    def all_sums(own: Tensor, classes: Tensor, *beside: Tensor) -> Tensor:
        left = iter(beside)
        found = [
            part.sums(own, classes, known, *(() if one is None else (next(left),)))
            for part, one in zip(parts, maps, strict=True)
        ]
        shapes[:] = [sums.shape for sums in found]
        return torch.cat([sums.flatten() for sums in found])

    shapes: list[torch.Size] = []
    sums = sums_over_slabs(all_sums, logits, target, *given)
    if tiled is not None:
        sums = tiled.sums(sums)
    split = sums.split([shape.numel() for shape in shapes])
    voxels: Voxels = target[0].numel() if tiled is None else tiled.voxels
    voxels = voxels if counted is None else counted.to(sums.dtype)
    values = (part.value(own.view(shape), known, voxels) for part, own, shape in zip(parts, split, shapes, strict=True))
    return torch.stack(list(values)).sum()


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


def perimeter_loss(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Squared difference between the surface of the prediction and of the reference, in units of the patch's surface.

    El Jurdi et al., A Surprisingly Effective Perimeter-based Loss for Medical Image Segmentation (MIDL 2021), for
    volumes. As in the authors' code (`contour_loss` in `losses.py` of the GitHub repository
    rosanajurdi/Prior-based-Losses-for-Medical-Image-Segmentation), the contour of a probability map is its opening
    less its erosion, and its sum is the length of the perimeter: here the surface in voxels, with neighbours in
    3 × 3 × 3 instead of 3 × 3. They divide the squared difference of lengths by the pixels of the image,
    height × width, which leaves a number without unit. A squared surface needs another divisor for that: here the
    squared surface of the patch, 2 (zy + zx + yx) voxels, which follows the shape of anisotropic patches. (In two
    dimensions that would be (2h + 2w)², for a square sixteen times theirs.) The mean runs over samples and foreground
    classes; a class that is absent from the target has the surface 0.

    Voxels outside the patch count as neither inside nor outside of an object, so an object that the patch cuts has no
    surface there. Nor has one thinner than three voxels, as in the source: the erosion leaves nothing of it.

    It says how much surface there must be and not where: a loss beside Dice, not in its place.
    """
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
    # Pooling keeps 18 maps of a class for the backward pass. Computed again there, only one class at a time has them.
    errors = [
        checkpoint(_surface_error, map_of_class, target == number, use_reentrant=False, preserve_rng_state=False)
        for number, map_of_class in enumerate(probabilities.unbind(dim=1))
        if number > 0
    ]
    depth, height, width = target.shape[1:]
    patch_surface = 2 * (depth * height + depth * width + height * width)
    return mean_of_known((torch.stack(errors) / patch_surface).square().T, known)


def soft_surface(volume: Tensor) -> Tensor:
    """Surface of each soft object in voxels: the sum of its opening less its erosion in 3 × 3 × 3 neighbourhoods.

    Args:
        volume: (batch, z, y, x), from 0 to 1.

    Returns:
        (batch,)
    """
    eroded = _pooled(volume, torch.minimum)
    opened = _pooled(eroded, torch.maximum)
    return (opened - eroded).sum(dim=(1, 2, 3))


def _surface_error(probability: Tensor, reference: Tensor) -> Tensor:
    return soft_surface(probability) - soft_surface(reference.to(probability.dtype))


def _pooled(volume: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of each voxel's 3 × 3 × 3 neighbours within the volume, axis by axis.

    PyTorch's `max_pool3d` adds up its gradients in an order of chance on CUDA.
    """
    for axis in (1, 2, 3):
        last = volume.shape[axis] - 1
        pairs = extreme(volume.narrow(axis, 0, last), volume.narrow(axis, 1, last))
        before = torch.cat([volume.narrow(axis, 0, 1), pairs], dim=axis)
        after = torch.cat([pairs, volume.narrow(axis, last, 1)], dim=axis)
        volume = extreme(before, after)
    return volume


def _voxel_cross_entropy(logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """(batch, z, y, x), 0 at unknown voxels."""
    target = without_unknown(target.long(), known)
    return F.cross_entropy(logits, target, ignore_index=UNKNOWN, reduction="none")


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


def sums_of_whole(part: Tensor, whole: Tensor, parts: int) -> Tensor:
    """The sums of a whole batch, seen from one of its parts.

    Its value is `whole`; its gradient is `parts` times that of `part`, so that the mean over the parts of the gradients
    of a function of it is the gradient of that function of the whole.
    """
    return whole + parts * (part - part.detach())


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


LOSSES = {
    "dice": ("dice",),
    "cross_entropy": ("cross_entropy",),
    "dice_ce": ("dice", "cross_entropy"),
    "dice_focal": ("dice", "focal"),
    "dice_topk": ("dice", "topk"),
    "dice_perimeter": ("dice", "perimeter"),
}
"""The parts that are added up (`_parts`), by the study's key `training.loss`."""


def scaled(loss: SumLoss, *, factor: float) -> SumLoss:
    """A loss times a factor."""
    return replace(loss, value=lambda *given: factor * loss.value(*given)) if factor != 1 else loss


def _parts(
    training: Training, complete: Completion | None, weights: Tensor | None, outputs: Outputs
) -> dict[str, SumLoss]:
    entropy = cross_entropy(weights=weights, outputs=outputs)
    of_labels = weights if training.dice_class_weights else None
    return {
        "dice": dice(batch=training.batch_dice, complete=complete, outputs=outputs, weights=of_labels),
        "cross_entropy": entropy if outputs.members is None else binary_cross_entropy(outputs=outputs),
        "focal": scaled(
            focal(gamma=training.focal_gamma, weights=weights, outputs=outputs), factor=training.focal_weight
        ),
        "topk": topk(percent=training.topk_percent),
    }


def build_loss(
    training: Training,
    complete: Completion | None = None,
    class_weights: Tensor | None = None,
    annotated: Tensor | None = None,
    tiled: TiledPatch | None = None,
    outputs: Outputs = CLASSES,
    counted: Tensor | None = None,
) -> Loss:
    """The loss that `training.loss` names: a function of logits and a target as `encode_target` gives it.

    Args:
        training: the loss, its keys, and `batch_dice`.
        complete: see `dice`.
        class_weights: float32 (classes), for the cross-entropy or focal loss, and for Dice where `training` says so;
            None: all are 1.
        annotated: the table of annotated labels by which targets are encoded; None: they are plain classes.
        tiled: what logits and target are a tile of; None: they are whole. Not for `perimeter`, which is no function of
            sums over voxels.
        outputs: what the outputs of the network stand for.
        counted: where not all voxels are annotated, how many are, as a mean over the samples of the whole batch; None:
            those of the samples at hand.
    """
    names, parts = LOSSES[training.loss], _parts(training, complete, class_weights, outputs)
    of_sums = [parts[name] for name in names if name in parts]

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        classes, known = decode_target(target, annotated)
        own = counted
        if outputs.ignores and own is None:
            own = counted_voxels(classes, outputs, logits.shape[1])
            own = mean_count(own if tiled is None else tiled.total(own), len(logits))
        total = total_loss(of_sums, logits, classes, known, tiled, own)
        return total + perimeter_loss(logits, classes, known) if "perimeter" in names else total

    return loss


def counted_voxels(target: Tensor, outputs: Outputs, count: int) -> Tensor:
    """How many voxels of a target count, a scalar, for outputs with an ignore label.

    Args:
        count: of the outputs.
    """
    return outputs.counted(target, count).sum()


def mean_count(total: Tensor, samples: int) -> Tensor:
    """Counted voxels of a sample, from those of all samples, in float64; of none, something above 0 to divide by."""
    return total.double().clamp(min=1) / samples


def supervision_weights(levels: int) -> list[float]:
    """Weight of each level's loss: halved from level to level, summing to one (nnU-Net)."""
    weights = [0.5**level for level in range(levels)]
    return [weight / sum(weights) for weight in weights]


def downsample_target(target: Tensor, stride: Sequence[int]) -> Tensor:
    """Nearest-neighbour target of a coarser level: of each cell of `stride` voxels the one behind its centre.

    Where the last cell sticks out of the target, its last voxel is taken. Equals PyTorch's `nearest-exact` where the
    size is a multiple of the stride.
    """
    for axis, step in enumerate(stride, start=1):
        if step > 1:
            size = target.shape[axis]
            index = torch.arange(step // 2, size + step // 2, step, device=target.device)[: -(-size // step)]
            target = target.index_select(axis, index.clamp(max=size - 1))
    return target


def levels_with_targets(
    logits: Sequence[Tensor], target: Tensor, strides: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Logits and the target at their resolution, per level.

    Args:
        logits: one tensor per level, full resolution first.
        target: (batch, z, y, x) at full resolution.
        strides: per level and axis, voxels of the image per voxel of the level.
    """
    return [(level, downsample_target(target, stride)) for level, stride in zip(logits, strides, strict=False)]


def supervised_loss(
    loss: Loss | Sequence[Loss],
    logits: Sequence[Tensor],
    target: Tensor,
    strides: Sequence[Sequence[int]],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The weighted sum over the levels of `loss`, one for all levels or one each; see `levels_with_targets`.

    `weights` are for levels that are not all that there are; None: `supervision_weights`.
    """
    losses = loss if isinstance(loss, Sequence) else [loss] * len(logits)
    weights = supervision_weights(len(logits)) if weights is None else weights
    levels = levels_with_targets(logits, target, strides)
    terms = [weight * loss(*level) for weight, loss, level in zip(weights, losses, levels, strict=True)]
    return torch.stack(terms).sum()
