"""The loss that a study names, on the logits of one level."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from megavoxel.config.training import Training
from megavoxel.training.annotation import decode_target
from megavoxel.training.outputs import CLASSES, Outputs
from megavoxel.training.perimeter import perimeter_loss
from megavoxel.training.soft_dice import Completion, dice
from megavoxel.training.sum_loss import SumLoss, TiledPatch, total_loss
from megavoxel.training.supervision import Loss
from megavoxel.training.voxel_losses import binary_cross_entropy, cross_entropy, focal, topk

LOSSES = {
    "dice": ("dice",),
    "cross_entropy": ("cross_entropy",),
    "dice_ce": ("dice", "cross_entropy"),
    "dice_focal": ("dice", "focal"),
    "dice_topk": ("dice", "topk"),
    "dice_perimeter": ("dice", "perimeter"),
}
"""The parts that are added up (`_parts`), by the study's key `training.loss`."""


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


def scaled(loss: SumLoss, *, factor: float) -> SumLoss:
    """A loss times a factor."""
    return replace(loss, value=lambda *given: factor * loss.value(*given)) if factor != 1 else loss


def counted_voxels(target: Tensor, outputs: Outputs, count: int) -> Tensor:
    """How many voxels of a target count, a scalar, for outputs with an ignore label.

    Args:
        count: of the outputs.
    """
    return outputs.counted(target, count).sum()


def mean_count(total: Tensor, samples: int) -> Tensor:
    """Counted voxels of a sample, from those of all samples, in float64; of none, something above 0 to divide by."""
    return total.double().clamp(min=1) / samples
