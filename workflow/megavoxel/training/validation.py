"""Loss and pseudo-Dice on validation patches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from megavoxel.training.step import Part, Run, loss_of_pass, losses_by_level, parts_of


@torch.no_grad()
def validate(run: Run, batches: Iterable[Part], labels: Sequence[str]) -> dict[str, float]:
    """Mean loss and pseudo-Dice on validation patches, of all processes together.

    The pseudo-Dice of a label is the DSC of all patches laid together; NaN where none of them has the label.

    Args:
        run: the network.
        batches: this process's share of each batch, as many for every process.
        labels: names of the classes 1 and up.
    """
    run.network.eval()
    losses, counts = [], torch.zeros(3, len(labels), dtype=torch.float64)
    for image, target in batches:
        parts = parts_of(run, image, target)
        by_level = losses_by_level(run, parts)
        for part in parts:
            loss, logits = loss_of_pass(run, part, by_level)
            losses.append(loss)
            counts += _overlap(logits.argmax(dim=1).cpu(), part.target, len(labels))
    both, predicted, reference = run.group.sum(counts).cpu()
    dice = (2 * both / (predicted + reference)).tolist()
    scores = {
        "validation_loss": run.group.mean(torch.stack(losses).mean().item()) if losses else float("nan"),
        "pseudo_dice": torch.tensor(dice).nanmean().item(),
    }
    return scores | {f"pseudo_dice_{label}": value for label, value in zip(labels, dice, strict=True)}


def _overlap(predicted: Tensor, target: Tensor, labels: int) -> Tensor:
    """Voxels of each label in both, in the prediction, in the reference: (3, labels)."""
    pairs = torch.bincount((target * (labels + 1) + predicted).flatten(), minlength=(labels + 1) ** 2)
    table = pairs.view(labels + 1, labels + 1).double()
    return torch.stack([table.diagonal(), table.sum(dim=0), table.sum(dim=1)])[:, 1:]
