"""Loss and pseudo-Dice on validation patches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from megavoxel.training.annotation import decode_target
from megavoxel.training.pipeline import finest_logits
from megavoxel.training.run import Part, Run
from megavoxel.training.step import loss_of_pass, losses_by_level, parts_of


@torch.no_grad()
def validate(run: Run, batches: Iterable[Part], labels: Sequence[str]) -> dict[str, float]:
    """Mean loss and pseudo-Dice on validation patches, of all processes together.

    The pseudo-Dice of a label is the DSC of all patches laid together, but for those of cases without an annotation of
    it; NaN where none of them has the label.

    Args:
        run: the network.
        batches: this process's share of each batch, as many for every process.
        labels: names of the classes 1 and up.
    """
    run.network.eval()
    losses, counts, steps = [], torch.zeros(3, len(labels), dtype=torch.float64), 0
    for image, target in batches:
        steps += 1
        for loss, logits, own in _evaluated(run, image, target):
            losses.append(loss)
            predicted = logits.argmax(dim=1).cpu()
            counts += _overlap(predicted, *decode_target(own.cpu(), run.annotated), len(labels))
    both, predicted, reference = run.group.sum(counts).cpu()
    dice = (2 * both / (predicted + reference)).tolist()
    scores = {
        "validation_loss": run.mean_loss(torch.stack(losses).mean().item() if losses else 0.0) if steps else math.nan,
        "pseudo_dice": torch.tensor(dice).nanmean().item(),
    }
    return scores | {f"pseudo_dice_{label}": value for label, value in zip(labels, dice, strict=True)}


def _evaluated(run: Run, image: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Loss, logits and target at full resolution, part by part; of a pipeline, in the stage that has these logits."""
    if run.pipeline is not None:
        yield from finest_logits(run, image, target)
        return
    parts = parts_of(run, image, target)
    by_level = losses_by_level(run, parts)
    for part in parts:
        loss, logits = loss_of_pass(run, part, by_level)
        yield loss, logits, part.target


def _overlap(predicted: Tensor, target: Tensor, known: Tensor | None, labels: int) -> Tensor:
    """Voxels of each label in both, in the prediction, in the reference, where it is annotated: (3, labels)."""
    if known is not None:
        samples = zip(predicted, target, known, strict=True)
        return torch.stack([_overlap(own, classes, None, labels) * there for own, classes, there in samples]).sum(dim=0)
    pairs = torch.bincount((target * (labels + 1) + predicted).flatten(), minlength=(labels + 1) ** 2)
    table = pairs.view(labels + 1, labels + 1).double()
    return torch.stack([table.diagonal(), table.sum(dim=0), table.sum(dim=1)])[:, 1:]
