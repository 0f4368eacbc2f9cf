"""Connected components of a mask and of its reference, such as lesions: which of them are the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONNECTIVITY = 26
"""Voxels that share a face, an edge or a corner belong to one component."""
MATCH_IOU = 0.5
"""Components are the same from this intersection over union on."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Components of two masks; they are counted from 0."""

    predicted: np.ndarray
    """Voxels of each component of the prediction, int."""
    referred: np.ndarray
    """Voxels of each component of the reference, int."""
    same: dict[int, tuple[int, float]]
    """By component of the reference, that of the prediction which is the same, and their intersection over union."""

    @property
    def f1(self) -> float:
        """Components that are the same, twice, over those of both masks; NaN where there are none."""
        count = len(self.predicted) + len(self.referred)
        return 2 * len(self.same) / count if count else float("nan")

    @property
    def panoptic_quality(self) -> float:
        """Intersection over union of the components that are the same, twice, over the number of those of both masks;
        NaN where there are none."""
        count = len(self.predicted) + len(self.referred)
        return 2 * sum(iou for _, iou in self.same.values()) / count if count else float("nan")


def matched_components(prediction: np.ndarray, reference: np.ndarray) -> Matching:
    """The components of two masks of the same shape, which are matched one to one, the most alike first."""
    ours, predicted = _components(prediction)
    theirs, referred = _components(reference)
    both = prediction & reference
    size = len(predicted) + 1
    pairs, shared = np.unique(theirs[both].astype(np.int64) * size + ours[both], return_counts=True)
    places = np.stack(np.divmod(pairs, size)).astype(int) - 1
    ious = shared / (referred[places[0]] + predicted[places[1]] - shared)
    same: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    for place in np.argsort(-ious, kind="stable"):
        other, own = map(int, places[:, place])
        if ious[place] >= MATCH_IOU and other not in same and own not in taken:
            same[other] = own, float(ious[place])
            taken.add(own)
    return Matching(predicted=predicted, referred=referred, same=same)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map of components from 1 on, and the voxels of each."""
    from megavoxel.volumes.masks import labelled_components  # which brings SciPy

    labelled = labelled_components(mask, CONNECTIVITY)
    return labelled, np.bincount(labelled.reshape(-1))[1:]
