"""What the outputs of a network stand for, and which voxels of a target count.

Outputs are classes, background first, whose probabilities add up to one, or regions, which may overlap: each then has
the sigmoid of its logit as probability. Structures are what is segmented: the regions or the classes, of which the
background is one where a study says so (`training.dice_background`). A target holds classes of label maps either way.
Where datasets have an ignore label, voxels that nobody annotated have the class behind all others. They are in no sum,
as in nnU-Net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megavoxel.config.regions import PRESENT
from megavoxel.planning.plan import Plan
from megavoxel.training.annotation import UNKNOWN, without_unknown


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """How logits (batch, outputs, z, y, x) and a target (batch, z, y, x) of classes are held against one another."""

    members: Tensor | None = None
    """bool (regions, classes of label maps): the classes in each region; None: outputs are the classes."""
    ignores: bool = False
    """Whether targets may have voxels that nobody annotated."""
    has_background: bool = False
    """Whether the background is the first of the structures; not of regions."""

    @property
    def first_class(self) -> int:
        """The class of the first structure, where structures are classes."""
        return 0 if self.has_background else 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the structures (batch, structures, z, y, x)."""
        return logits.softmax(dim=1)[:, self.first_class :] if self.members is None else logits.sigmoid()

    def reference(self, target: Tensor, outputs: int) -> Tensor:
        """Whether a voxel is in a structure, bool (batch, structures, z, y, x); those that nobody annotated are not.

        Args:
            outputs: of the network.
        """
        target = target.long()
        if self.members is not None:
            members = self.members.to(target.device)
            members = torch.cat([members, members.new_zeros(len(members), 1)], dim=1)
            return members[:, target].movedim(0, 1)
        # Boolean: an eighth of the memory of PyTorch's `one_hot`, which counts in int64.
        empty = torch.zeros(*target.shape, outputs + self.ignores, dtype=torch.bool, device=target.device)
        return empty.scatter_(-1, target[..., None], True).movedim(-1, 1)[:, self.first_class : outputs]

    def known(self, labels: Tensor | None) -> Tensor | None:
        """Which structures are annotated in each sample; None: all are.

        Args:
            labels: bool (batch, classes - 1), the annotated labels; None: all are.
        """
        if labels is None or not self.has_background:
            return labels
        return torch.cat([labels.all(dim=1, keepdim=True), labels], dim=1)

    def counted(self, target: Tensor, outputs: int) -> Tensor | None:
        """Whether a voxel counts, bool of the target's shape; None: all do."""
        if not self.ignores:
            return None
        return target < (outputs if self.members is None else self.members.shape[1])

    def classes(self, target: Tensor, known: Tensor | None, outputs: int) -> Tensor:
        """The target as PyTorch's cross-entropy takes it, with `UNKNOWN` at voxels that have no term; int64."""
        classes = without_unknown(target.long(), known)
        counted = self.counted(target, outputs)
        return classes if counted is None else classes.masked_fill(~counted, UNKNOWN)

    def overlap(self, logits: Tensor, target: Tensor) -> Tensor:
        """Voxels of each region in both, in the prediction, in the reference: int64 (3, regions)."""
        predicted, reference = logits.sigmoid() > PRESENT, self.reference(target, logits.shape[1])
        counted = self.counted(target, logits.shape[1])
        if counted is not None:
            predicted = predicted & counted[:, None]
        found = (predicted & reference, predicted, reference)
        return torch.stack([mask.sum(dim=(0, 2, 3, 4)) for mask in found])


CLASSES = Outputs()
"""Those of labels that do not overlap and are annotated everywhere."""


def outputs_of(plan: Plan, device: torch.device | None = None) -> Outputs:
    """What the outputs of a plan's network stand for."""
    rules = plan.preprocessing
    members = None
    if rules.regions is not None:
        rows = [[number in own for number in range(rules.label_classes)] for own in rules.members]
        members = torch.tensor(rows, device=device)
    ignores = rules.ignored_class is not None
    return Outputs(members=members, ignores=ignores, has_background=plan.training.dice_background)
