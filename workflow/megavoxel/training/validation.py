"""Loss and pseudo-Dice on validation patches, counted on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megavoxel.training.annotation import decode_target
from megavoxel.training.outputs import Outputs
from megavoxel.training.pipeline import finest_logits
from megavoxel.training.run import Part, Run
from megavoxel.training.step import loss_of_pass, losses_by_level, parts_of


@torch.no_grad()
def validate(run: Run, batches: Iterable[Part], labels: Sequence[str]) -> dict[str, float]:
    """Mean loss and pseudo-Dice on validation patches, of all processes together.

    The pseudo-Dice of a label is the DSC of all patches laid together, but for those of cases without an annotation of
    it; NaN where none of them has the label. The host waits for the device once, at the end.

    Args:
        run: the network.
        batches: this process's share of each batch, as many for every process.
        labels: names of the structures.
    """
    run.network.eval()
    steps, losses = 0, [torch.zeros((), device=run.device)]
    counts = torch.zeros(3, len(labels), dtype=torch.int64, device=run.device)
    for image, target in batches:
        steps += 1
        for loss, logits, own in _evaluated(run, image, target):
            losses.append(loss)
            counts += _overlap(run.outputs, logits, *decode_target(own, run.annotated))
    total = torch.stack(losses).double().sum()
    loss, *found = torch.cat([total[None], counts.double().flatten()]).tolist()
    both, predicted, reference = run.group.sum(torch.tensor(found, dtype=torch.float64).view_as(counts)).cpu()
    dice = (2 * both / (predicted + reference)).tolist()
    scores = {
        "validation_loss": run.mean_loss(loss / max(1, len(losses) - 1)) if steps else math.nan,
        "pseudo_dice": torch.tensor(dice).nanmean().item(),
    }
    return scores | {f"pseudo_dice_{label}": value for label, value in zip(labels, dice, strict=True)}


def _evaluated(run: Run, image: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Loss, logits and target at full resolution, on the device and part by part; of a pipeline, in the stage that has
    these logits."""
    if run.pipeline is not None:
        yield from finest_logits(run, image, target)
        return
    parts = parts_of(run, image, target)
    by_level = losses_by_level(run, parts)
    for part in parts:
        there = replace(part, target=part.target.to(run.device, non_blocking=True))
        loss, logits = loss_of_pass(run, there, by_level)
        yield loss, logits, there.target


def _overlap(outputs: Outputs, logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """Voxels of each structure in both, in the prediction, in the reference, where it is annotated: int64
    (3, structures).

    Args:
        outputs: what the logits stand for.
        logits: (batch, outputs, z, y, x).
        target: integers of any type (batch, z, y, x).
        known: bool (batch, labels); None: all are annotated.
    """
    if outputs.members is not None:
        return outputs.overlap(logits, target)
    classes = logits.shape[1]
    rows = classes + outputs.ignores  # the last one is of voxels that nobody annotated
    pairs = (target.long() * classes + logits.argmax(dim=1)).flatten(1)
    table = torch.zeros(len(pairs), rows * classes, dtype=torch.int64, device=pairs.device)
    # Unlike `bincount`, this does not let the host wait for the largest pair.
    table.scatter_add_(1, pairs, torch.ones((), dtype=torch.int64, device=pairs.device).expand_as(pairs))
    table = table.view(-1, rows, classes)[:, :classes]
    found = torch.stack([table.diagonal(dim1=1, dim2=2), table.sum(dim=1), table.sum(dim=2)])[..., 1:]
    return (found if known is None else found * known).sum(dim=1)
