"""Which labels the case of a sample has an annotation of, and how its target says so.

In a case without an annotation of some label, voxels that are nobody's may be that label: they are *unknown*. A target
carries this with it. The sets of unannotated labels that occur are numbered, 0 being the empty one, and a voxel of
class c in a case of set s has the value s × classes + c; voxels of unannotated labels, hidden ones among them, are
background before that. So a sample stays an image and a target, parts of a batch are cut from both alike, and where all
labels are annotated everywhere targets are the plain classes. A dataset with an ignore label has no such sets: its
targets are plain classes too, with one more class for voxels that nobody annotated (`training/outputs.py`).

The masked loss of AnatomyNet (Zhu et al., Med. Phys. 46:576, 2019) drops the terms of an unannotated label and those of
the background in such a case. What that is in ours:

- *Terms of a voxel* (cross-entropy, focal, top k): 0 at unknown voxels, and so is their gradient. A voxel of an
  annotated label keeps its term over all classes: it is known to be none of the others, unannotated ones included. Sums
  are divided by all voxels, as if there were no mask, so that a voxel teaches as much in one case as in another.
- *Terms of a label* (Dice, perimeter): those of unannotated labels are dropped, and means run over the others. The term
  of an annotated label looks at unknown voxels as well, which are known not to be this label. It does not tell the
  labels without an annotation from the background: only the sum of their probabilities enters. The term of the
  background, where a study asks for it, is dropped in such a case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megavoxel.planning.plan import Plan

UNKNOWN = -100
"""The class that PyTorch's cross-entropy leaves out."""


def unannotated_classes(plan: Plan, case: str) -> tuple[int, ...]:
    """Classes of the labels that training takes for not annotated in a case, in ascending order."""
    names = plan.unannotated.get(case, ())
    return tuple(number for number, label in enumerate(plan.preprocessing.labels, start=1) if label in names)


def annotation_sets(plan: Plan) -> list[tuple[int, ...]]:
    """The sets of unannotated classes that cases have, the empty one first."""
    return sorted({(), *(unannotated_classes(plan, case) for case in plan.unannotated)})


def annotation_table(plan: Plan, device: torch.device | None = None) -> Tensor | None:
    """bool (sets, classes - 1): whether a label is annotated in the cases of a set; None: all are, everywhere."""
    if not plan.unannotated:
        return None
    labels = range(1, plan.preprocessing.label_classes)
    rows = [[label not in missing for label in labels] for missing in annotation_sets(plan)]
    return torch.tensor(rows, device=device)


def target_dtype(plan: Plan) -> torch.dtype:
    """Type of targets on their way to the device, and on it: the smallest that holds all of their values."""
    rules = plan.preprocessing
    values = len(annotation_sets(plan)) * rules.label_classes + (rules.ignored_class is not None)
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32) if values - 1 <= torch.iinfo(kind).max)


def sent_target_dtype(plan: Plan) -> torch.dtype:
    """Type of targets that one process sends to another: NCCL knows no integers of 16 bits."""
    kind = target_dtype(plan)
    return torch.int32 if kind == torch.int16 else kind


def encode_target(classes: Tensor, unannotated: tuple[int, ...], plan: Plan) -> Tensor:
    """The target of a sample, of the type `target_dtype`.

    Args:
        classes: integers of any type (z, y, x).
        unannotated: classes without an annotation in its case.
    """
    values = target_values(unannotated, plan)
    return classes.to(target_dtype(plan)) if values is None else values[classes.long()]


def target_values(unannotated: tuple[int, ...], plan: Plan) -> Tensor | None:
    """The value in the target of each class of such a case (classes), of the type `target_dtype`; None: the class."""
    if not unannotated:
        return None
    classes = plan.preprocessing.label_classes
    first = annotation_sets(plan).index(unannotated) * classes
    values = [first if number in unannotated else first + number for number in range(classes)]
    return torch.tensor(values, dtype=target_dtype(plan))


def decode_target(target: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Classes of the voxels, and the labels that are annotated in the case of each sample.

    Args:
        target: (batch, z, y, x), as `encode_target` gives it.
        annotated: as `annotation_table` gives it, on any device.

    Returns:
        (batch, z, y, x) and bool (batch, classes - 1); the target as it is and None without a table.
    """
    if annotated is None:
        return target, None
    classes = annotated.shape[1] + 1
    return target % classes, annotated.to(target.device)[(target[:, 0, 0, 0] // classes).long()]


def without_unknown(classes: Tensor, known: Tensor | None) -> Tensor:
    """The classes with `UNKNOWN` at voxels of the background in samples that lack the annotation of a label.

    Args:
        classes: (batch, z, y, x).
        known: bool (batch, classes - 1), the annotated labels; None: all are.
    """
    if known is None:
        return classes
    incomplete = ~known.all(dim=1)[:, None, None, None]
    return classes.masked_fill((classes == 0) & incomplete, UNKNOWN)


def mean_of_known(terms: Tensor, known: Tensor | None) -> Tensor:
    """Mean over samples of the mean over annotated labels; a sample that has none counts as 0.

    Args:
        terms: (batch, classes - 1).
        known: bool of the same shape; None: all are annotated.
    """
    if known is None:
        return terms.mean()
    kept = terms.where(known, terms.new_zeros(()))
    return (kept.sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()
