"""Weights of the classes in a loss: as given, or from how many voxels each class has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megavoxel.config.records import from_plain
from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.store import CaseProperties
from megavoxel.training.annotation import unannotated_classes


def softmax_of_inverse(voxels: Sequence[int]) -> Tensor:
    """Weight of each class: the softmax over classes of all voxels / voxels of the class, times the number of classes.

    Equation 1 of Wang et al., "Memory-efficient Segmentation of High-resolution Volumetric MicroCT Images" (MIDL 2022,
    appendix A.4). The paper does not say how the weights are scaled: here their mean is 1, so that equal ones give the
    plain cross-entropy. A class without a voxel has the weight 0 and is none of the classes that are counted.

    The softmax saturates: what it is taken of are ratios and not shares. With 1000, 10 and 1 voxels they are 1.011,
    101.1 and 1011, and all weight lies on the rarest class; the others have 0 in float32. Only where all classes have
    a share of some percent do several of them count.

    Args:
        voxels: of each class, background first; at least one class has some.

    Returns:
        float32 (classes).
    """
    ratios, present = _ratios(voxels)
    return (ratios.where(present, -torch.inf).softmax(dim=0) * present.sum()).float()


def inverse_square_root(voxels: Sequence[int]) -> Tensor:
    """Weight of each class: `softmax_of_inverse` with half the logarithm of the ratio in place of the ratio.

    It does not saturate: the softmax of ½ ln(all voxels / voxels of the class) is 1 / √(voxels of the class), divided
    by the sum of these. The square root is the usual way to weight rare classes less than by their inverse frequency
    (Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, ECCV 2018, section 2.2). The scale is that
    of `softmax_of_inverse`: the mean over classes is 1. A class without a voxel has the weight 0 and is none of the
    classes that are counted.

    Args:
        voxels: of each class, background first; at least one class has some.

    Returns:
        float32 (classes).
    """
    ratios, present = _ratios(voxels)
    return ((ratios.log() / 2).where(present, -torch.inf).softmax(dim=0) * present.sum()).float()


def inverse_frequency(voxels: Sequence[int]) -> Tensor:
    """Weight of each class: all voxels / (voxels of the class × number of classes).

    Weighting classes by the inverse of how often they occur is how AnatomyNet (Zhu et al., Med. Phys. 46:576, 2019)
    balances its terms; there the weights are of classes as wholes, here of voxels. They are scaled as those that
    scikit-learn calls `balanced` (`compute_class_weight`): all classes weigh the same together, and the mean over
    voxels is 1, so that the loss keeps its size. A class without a voxel has the weight 0 and is none of the classes
    that are counted.

    Args:
        voxels: of each class, background first; at least one class has some.

    Returns:
        float32 (classes).
    """
    ratios, present = _ratios(voxels)
    return (ratios / present.sum()).where(present, 0.0).float()


def _ratios(voxels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """All voxels / voxels of the class, float64, and whether a class has any voxel: the others count for nothing."""
    counts = torch.tensor(voxels, dtype=torch.float64)
    return counts.sum() / counts, counts > 0


RULES = {
    "softmax_of_inverse": softmax_of_inverse,
    "inverse_square_root": inverse_square_root,
    "inverse_frequency": inverse_frequency,
}
SILENT = 1e-3
"""Share of the largest weight below which the cross-entropy practically does not see a class."""


def class_weights(plan: Plan, folder: Path, cases: Sequence[str]) -> Tensor | None:
    """Weights of the classes for `training.class_weights`, float32 (classes); None: all are 1.

    Args:
        cases: ids of the fold's training cases, whose voxels count.
    """
    given = plan.training.class_weights
    if given == "none":
        return None
    return RULES[given](class_voxels(plan, folder, cases)) if isinstance(given, str) else torch.tensor(given).float()


def class_names(plan: Plan) -> tuple[str, ...]:
    """Names of the classes that can be weighted, background first."""
    return "background", *plan.preprocessing.labels


def silenced_classes(plan: Plan, weights: Sequence[float]) -> list[str]:
    """Names of the classes that a rule leaves next to no weight, though they have voxels; none for weights by hand.

    Args:
        weights: of all classes, background first, as `class_weights` gives them.
    """
    if plan.training.class_weights != "softmax_of_inverse":
        return []
    return [name for name, weight in zip(class_names(plan), weights, strict=True) if weight < SILENT * max(weights)]


def class_voxels(plan: Plan, folder: Path, cases: Sequence[str]) -> list[int]:
    """Voxels of each class in all of the preprocessed cases together, background first; none of them is read.

    Only those that teach are counted: where a label is not annotated, neither it nor the background is.

    Raises:
        UserError: a case is missing, or was preprocessed before voxels were counted, or under other labels.
    """
    classes = plan.network.classes
    total = [0] * classes
    for case in cases:
        where = Path(folder) / f"{case}.json"
        properties = from_plain(CaseProperties, read_json(where, what="preprocessed case"), where=str(where))
        counts = properties.class_voxels
        if len(counts) != classes:
            raise UserError(
                f"{where}: class_voxels has {len(counts)} numbers, expected one for each of "
                f"{classes} classes, which training.class_weights needs; run 'megavoxel preprocess' again"
            )
        missing = unannotated_classes(plan, case)
        silent = {0, *missing} if missing else set()
        counts = [0 if number in silent else count for number, count in enumerate(counts)]
        total = [sum(pair) for pair in zip(total, counts, strict=True)]
    return total
