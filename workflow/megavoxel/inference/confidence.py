"""How far the probabilities of a case can be trusted: sums over its voxels, from which a temperature is chosen.

Temperature scaling divides all logits by one number T, which leaves every label as it is (Guo et al., ICML 2017,
section 4.2). It is chosen by the negative log-likelihood (NLL) of cases that the networks did not see. Reliability is
counted for each label or region by itself, among the voxels to which the network gives it at least `LEAST` at T = 1: a
choice by what the network says, not by the reference, and the same at every T. The expected calibration error (ECE) is
the mean over these voxels, in bins of equal width, of |mean probability - share of the reference| (section 2 there).

All is counted on the network's grid, where both the logits and the preprocessed labels lie, without interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.config.regions import structures_of
from megavoxel.inference.decision import Decision
from megavoxel.inference.logits import Logits
from megavoxel.preprocessing.store import StoredCase

TEMPERATURES = tuple(2 ** (number / 8) for number in range(-8, 25))
"""0.5 to 8, each 9 % above the one before: between two of them NLL hardly changes."""
UNCHANGED = TEMPERATURES.index(1.0)
BINS = 15
"""Bins of probabilities, as many as in Guo et al."""
LEAST = 0.01
"""Probability from which on a voxel counts for the reliability of a label."""
MOST_VOXELS = 2**18
"""Voxels of a case that are counted; of a larger one, about so many at random."""
ROWS = 16
"""Rows along the first axis that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Counts of a label or region by temperature and bin of its probability, each (temperatures, bins)."""

    voxels: tuple[tuple[int, ...], ...]
    probability: tuple[tuple[float, ...], ...]
    """Sum of the probabilities of these voxels."""
    hits: tuple[tuple[int, ...], ...]
    """Those of them that are it in the reference."""

    def error(self, temperature: int) -> float:
        """The expected calibration error at `TEMPERATURES[temperature]`; NaN without voxels."""
        voxels = sum(self.voxels[temperature])
        sums = zip(self.probability[temperature], self.hits[temperature], strict=True)
        return sum(abs(probability - hits) for probability, hits in sums) / voxels if voxels else math.nan


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Sums over voxels of a case, or of several cases."""

    voxels: int
    """Voxels with a reference that are counted."""
    nll: tuple[float, ...]
    """Sum of their negative log-likelihoods by temperature, in nats; of regions, over all regions."""
    structures: dict[str, Reliability]
    """By name of label or region."""
    disagreement: float | None = None
    """Mean over the voxels of a case that are given a label of how far the networks disagree, in nats
    (`inference/disagreement.py`); None: there is one network, or no such voxel."""


def confidence_of(logits: Logits, case: StoredCase) -> Confidence:
    """The sums of a case.

    Args:
        logits: on the network's grid; with `disagreement` where there are several networks.
        case: with labels, and with its `unannotated` and `ignored` classes. Nothing is counted where a label has no
            annotation in it.
    """
    decision = logits.header.decision
    counter = _Counter(decision)
    told: list[np.ndarray] = []
    for values, classes, disagreement in _voxels(logits, case):
        if disagreement is not None:
            told.append(disagreement[decision.values_of_logits(values) > 0])
        if not case.unannotated:
            seen = classes != (-1 if case.ignored is None else case.ignored)
            counter.add(values[:, seen], classes[seen])
    found = np.concatenate(told) if told else np.zeros(0)
    return counter.counted(float(found.mean()) if found.size else None)


def _voxels(logits: Logits, case: StoredCase) -> Iterator[tuple[Tensor, Tensor, np.ndarray | None]]:
    """Logits float32 (outputs, n), classes int64 (n) and disagreement (n) of voxels, slab by slab."""
    shape = case.properties.shape
    share = min(1.0, MOST_VOXELS / math.prod(shape))
    random = np.random.default_rng(0)
    for start in range(0, shape[0], ROWS):
        rows = slice(start, min(shape[0], start + ROWS))
        kept = random.random((rows.stop - start, *shape[1:])) < share
        values = torch.from_numpy(logits.array[:, rows][:, kept].astype(np.float32))
        told = None if logits.disagreement is None else logits.disagreement.array[0, rows][kept].astype(np.float64)
        yield values, torch.from_numpy(case.labels[rows][kept].astype(np.int64)), told


class _Counter:
    """Adds up voxels."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.names = list(structures_of(decision.labels, decision.regions))
        self.first = decision.outputs - len(self.names)
        """Output of the first of them: behind the background, where that has one."""
        self.voxels = 0
        self.nll = np.zeros(len(TEMPERATURES))
        self.sums = np.zeros((3, len(self.names), len(TEMPERATURES), BINS))

    def add(self, values: Tensor, classes: Tensor) -> None:
        """Takes voxels: logits (outputs, n) and classes (n)."""
        truth = self.decision.certain(classes)
        self.voxels += len(classes)
        shown = self.decision.probabilities(values)[self.first :] >= LEAST
        for place, temperature in enumerate(TEMPERATURES):
            probabilities, losses = self._judged(values / temperature, truth)
            self.nll[place] += losses
            for number, own in enumerate(shown):
                output = self.first + number
                self.sums[:, number, place] += _binned(probabilities[output][own], truth[output][own])

    def _judged(self, logits: Tensor, truth: Tensor) -> tuple[Tensor, float]:
        """Probabilities (outputs, n), and the sum of the losses of the voxels."""
        if self.decision.regions is not None:
            losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            return logits.sigmoid(), losses.sum(dtype=torch.float64).item()
        logarithms = logits.log_softmax(dim=0)
        return logarithms.exp(), -(logarithms * truth).sum(dtype=torch.float64).item()

    def counted(self, disagreement: float | None) -> Confidence:
        """What was added up."""
        return Confidence(
            voxels=self.voxels,
            nll=tuple(self.nll.tolist()),
            structures={
                name: _reliability(self.sums[:, number]) for number, name in enumerate(self.names)
            },
            disagreement=disagreement,
        )  # fmt: skip


def _binned(probabilities: Tensor, truth: Tensor) -> np.ndarray:
    """Voxels, sum of probabilities and hits in each bin, float64 (3, bins)."""
    bins = (probabilities * BINS).long().clamp(max=BINS - 1)
    weights = (torch.ones_like(truth), probabilities, truth)
    return torch.stack([torch.bincount(bins, own.double(), minlength=BINS) for own in weights]).numpy()


def _reliability(sums: np.ndarray) -> Reliability:
    """Made of sums (3, temperatures, bins)."""
    voxels, probability, hits = sums
    return Reliability(
        voxels=_rows(voxels.astype(np.int64)), probability=_rows(probability), hits=_rows(hits.astype(np.int64))
    )


def _rows(table: np.ndarray) -> tuple[tuple, ...]:
    return tuple(map(tuple, table.tolist()))


def together(parts: Sequence[Confidence]) -> Confidence:
    """The sums over several cases, at least one."""
    tables = ("voxels", "probability", "hits")
    return Confidence(
        voxels=sum(part.voxels for part in parts),
        nll=tuple(np.sum([part.nll for part in parts], axis=0).tolist()),
        structures={
            name: _reliability(
                np.sum([[getattr(part.structures[name], table) for table in tables] for part in parts], axis=0)
            )
            for name in parts[0].structures
        },
    )


def best_temperature(confidence: Confidence) -> int:
    """Place in `TEMPERATURES` of the one with the smallest NLL; that of 1 where no voxel is counted."""
    return int(np.argmin(confidence.nll)) if confidence.voxels else UNCHANGED
