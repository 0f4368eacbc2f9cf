"""Ensembles of settings: the mean of their probabilities, slab by slab, one case at a time.

Each member's post-processing comes first: where it changed a voxel's label, the member votes for the new label with
probability one. (Sato & Kido 2022, section 2.4: post-processing is applied to each model's output before the ensemble.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megavoxel.config.regions import structures_of
from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import Postprocessing, apply_postprocessing
from megavoxel.inference.decision import Decision
from megavoxel.inference.logits import Logits, LogitsHeader, label_map, open_logits, write_label_map
from megavoxel.inference.sliding_window import Slab, finite
from megavoxel.volumes.open import read_labels


@dataclass(frozen=True, kw_only=True)
class Member:
    """One setting's output for a set of cases."""

    name: str
    logits: Path
    """Folder of its logits."""
    predictions: Path | None
    """Folder of its label maps, before post-processing; None: those of the logits."""
    postprocessing: Postprocessing


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of the members for a case."""

    logits: tuple[Logits, ...]
    """One per member."""
    votes: tuple[np.ndarray | None, ...]
    """As `mean_probabilities` takes them."""

    @property
    def header(self) -> LogitsHeader:
        """What its label map is written by."""
        return self.logits[0].header

    def probabilities(self) -> Iterator[Slab]:
        """Mean probabilities on the image's grid, in slabs along z."""
        return mean_probabilities(self.logits, self.votes)


def open_mean(members: Sequence[Member], case: str) -> Mean:
    """The mean of the members for a case; it is worked out slab by slab.

    Raises:
        UserError: a member has no prediction of the case, or members differ in labels or grid.
    """
    logits = tuple(open_logits(member.logits, case) for member in members)
    check_agreement(members, logits, case)
    return Mean(logits=logits, votes=tuple(map(_changed_voxels, members, logits)))


def write_ensemble(members: Sequence[Member], case: str, output: Path) -> None:
    """Writes `output/CASE.nii.gz`, the label values by the mean probabilities of each voxel.

    Raises:
        UserError: a member has no prediction of the case, or members differ in labels or grid.
    """
    mean = open_mean(members, case)
    write_label_map(output, mean.header, mean.probabilities(), probable=True)


def mean_probabilities(logits: Sequence[Logits], votes: Sequence[np.ndarray | None]) -> Iterator[Slab]:
    """Mean probabilities of the members on the image's grid, in slabs along z: softmax of classes, sigmoid of regions.

    Args:
        logits: one per member.
        votes: per member int16 (z, y, x): the class that it votes for with probability one, or -1; None: no vote.

    Raises:
        UserError: stored logits are not finite; names the case.
    """
    decision = logits[0].header.decision
    for slab in logits[0].slabs():
        first = _probabilities(decision, slab.logits, votes[0], slab)
        others = (
            _probabilities(decision, other.slab(slab.start, slab.stop), vote, slab)
            for other, vote in zip(logits[1:], votes[1:], strict=True)
        )
        total = first
        for probabilities in others:
            total = total + probabilities
        mean = Slab(start=slab.start, stop=slab.stop, logits=total / len(logits))
        yield finite(mean, name=f"case {logits[0].header.properties.case}")


def check_agreement(members: Sequence[Member], logits: Sequence[Logits], case: str) -> None:
    """Raises UserError where members differ in labels or in the image's grid."""
    first = logits[0]
    for member, other in zip(members, logits, strict=True):
        ours, theirs = (structures_of(one.header.labels, one.header.regions) for one in (first, other))
        if other.header.decision != first.header.decision or list(ours) != list(theirs):
            raise UserError(f"ensemble: the settings {members[0].name} and {member.name} have different labels")
        mine, theirs = first.header.properties, other.header.properties
        if mine.file_shape != theirs.file_shape or not np.allclose(mine.affine, theirs.affine):
            raise UserError(f"ensemble: case {case}: {members[0].name} and {member.name} predicted on different grids")


def _changed_voxels(member: Member, logits: Logits) -> np.ndarray | None:
    header = logits.header
    labels = header.labels
    if not member.postprocessing.changes_anything:
        return None
    if member.predictions is None:
        raw = label_map(logits.canonical_shape, header.decision, logits.slabs())
    else:
        raw, _ = read_labels(member.predictions / f"{header.properties.case}.nii.gz")
    processed = apply_postprocessing(raw, member.postprocessing, structures_of(labels, header.regions))
    class_of = np.zeros(max(labels.values()) + 1, dtype=np.int16)
    class_of[list(labels.values())] = np.arange(1, len(labels) + 1)
    return np.where(raw != processed, class_of[processed], -1).astype(np.int16)


def _probabilities(decision: Decision, logits: Tensor, votes: np.ndarray | None, slab: Slab) -> Tensor:
    probabilities = decision.probabilities(logits)
    if votes is None:
        return probabilities
    chosen = torch.from_numpy(votes[slab.start : slab.stop]).long()
    return torch.where(chosen >= 0, decision.certain(chosen.clamp(min=0)), probabilities)
