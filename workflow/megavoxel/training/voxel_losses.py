"""The losses that Sato and Kido (Large Batch and Patch Size Training, AMOS 2022, Table 3) add to Dice.

Each takes logits (batch, classes, z, y, x) and a target (batch, z, y, x) of class numbers and returns a scalar. Where
some labels are not annotated it is given `known` as well, bool (batch, classes - 1); `training/annotation.py` says what
that changes. Each is a mean over samples of a value of that sample alone: the loss of a batch is the mean of the losses
of its equal parts, so it does not depend on how a batch is divided among devices. Logits of 16 bits are taken as
float32, float64 stays. Nothing here is as large as classes × volume in integers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megavoxel.training.annotation import UNKNOWN, mean_of_known, without_unknown


def focal_loss(
    logits: Tensor, target: Tensor, known: Tensor | None = None, *, gamma: float, weights: Tensor | None = None
) -> Tensor:
    """Mean over all voxels of −w (1 − p)^gamma log p, p and w being probability and weight of the voxel's own class.

    The focal loss of Lin et al. (Focal Loss for Dense Object Detection, ICCV 2017, Eq. 4; with weights Eq. 5, whose
    alpha they are) for many classes, background included. MONAI's `FocalLoss(use_softmax=True, to_onehot_y=True)` is
    this divided by the number of classes: it takes the mean over classes too, of which all but the voxel's own add
    zero. It also makes the one-hot target and several more maps of classes × volume, which this does without.

    Args:
        logits: (batch, classes, z, y, x).
        target: (batch, z, y, x).
        known: bool (batch, classes - 1), the annotated labels; None: all are.
        gamma: how much less sure voxels count, at least 0. At 0 this is the cross-entropy.
        weights: (classes), of the type of the logits; None: all are 1.
    """
    entropy = _voxel_cross_entropy(logits, target, known)
    # 1 − p without rounding. Never quite 0: there a gamma below 1 has an infinite slope, and the gradient is no number.
    doubt = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
    focal = doubt.pow(gamma) * entropy
    return focal.mean() if weights is None else (focal * weights[target.long()]).mean()


def topk_loss(logits: Tensor, target: Tensor, known: Tensor | None = None, *, percent: float) -> Tensor:
    """Mean cross-entropy of the worst voxels of each sample, mean over samples.

    Sato and Kido cite Lapin et al. (Loss Functions for Top-k Error, CVPR 2016), whose k counts classes. The loss of
    that name in segmentation counts voxels. nnU-Net's `TopKLoss` takes the worst voxels of the whole batch, so that an
    easy sample may give none, and the loss of a batch depends on which samples a device sees together. Here every
    sample gives its share. For a batch of one the two are equal. Unknown voxels have the cross-entropy 0: they are
    among the worst only where no others are left.

    Args:
        logits: (batch, classes, z, y, x).
        target: (batch, z, y, x).
        known: bool (batch, classes - 1), the annotated labels; None: all are.
        percent: share of a sample's voxels that count, above 0 and at most 100, rounded down to whole voxels, but to
            one at least. At 100 this is the cross-entropy.
    """
    entropy = _voxel_cross_entropy(logits, target, known).flatten(start_dim=1)
    worst = max(1, int(entropy.shape[1] * percent / 100))
    return entropy.topk(worst, dim=1, sorted=False).values.mean()


def perimeter_loss(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Squared difference between the surface of the prediction and of the reference, in units of the patch's surface.

    El Jurdi et al., A Surprisingly Effective Perimeter-based Loss for Medical Image Segmentation (MIDL 2021), for
    volumes. As in the authors' code (`contour_loss` in `losses.py` of the GitHub repository
    rosanajurdi/Prior-based-Losses-for-Medical-Image-Segmentation), the contour of a probability map is its opening
    less its erosion, and its sum is the length of the perimeter: here the surface in voxels, with neighbours in
    3 × 3 × 3 instead of 3 × 3. They divide the squared difference of lengths by the pixels of the image,
    height × width, which leaves a number without unit. A squared surface needs another divisor for that: here the
    squared surface of the patch, 2 (zy + zx + yx) voxels, which follows the shape of anisotropic patches. (In two
    dimensions that would be (2h + 2w)², for a square sixteen times theirs.) The mean runs over samples and foreground
    classes; a class that is absent from the target has the surface 0.

    Voxels outside the patch count as neither inside nor outside of an object, so an object that the patch cuts has no
    surface there. Nor has one thinner than three voxels, as in the source: the erosion leaves nothing of it.

    It says how much surface there must be and not where: a loss beside Dice, not in its place.

    Args:
        logits: (batch, classes, z, y, x).
        target: (batch, z, y, x).
        known: bool (batch, classes - 1), the annotated labels; None: all are.
    """
    probabilities = _at_least_float32(logits).softmax(dim=1)
    # Pooling keeps 18 maps of a class for the backward pass. Computed again there, only one class at a time has them.
    errors = [
        checkpoint(_surface_error, map_of_class, target == number, use_reentrant=False, preserve_rng_state=False)
        for number, map_of_class in enumerate(probabilities.unbind(dim=1))
        if number > 0
    ]
    depth, height, width = target.shape[1:]
    patch_surface = 2 * (depth * height + depth * width + height * width)
    return mean_of_known((torch.stack(errors) / patch_surface).square().T, known)


def soft_surface(volume: Tensor) -> Tensor:
    """Surface of each soft object in voxels: the sum of its opening less its erosion in 3 × 3 × 3 neighbourhoods.

    Args:
        volume: (batch, z, y, x), from 0 to 1.

    Returns:
        (batch,)
    """
    eroded = _pooled(volume, torch.minimum)
    opened = _pooled(eroded, torch.maximum)
    return (opened - eroded).sum(dim=(1, 2, 3))


def _surface_error(probability: Tensor, reference: Tensor) -> Tensor:
    return soft_surface(probability) - soft_surface(reference.to(probability.dtype))


def _pooled(volume: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of each voxel's 3 × 3 × 3 neighbours within the volume, axis by axis.

    PyTorch's `max_pool3d` adds up its gradients in an order of chance on CUDA.
    """
    for axis in (1, 2, 3):
        last = volume.shape[axis] - 1
        pairs = extreme(volume.narrow(axis, 0, last), volume.narrow(axis, 1, last))
        before = torch.cat([volume.narrow(axis, 0, 1), pairs], dim=axis)
        after = torch.cat([pairs, volume.narrow(axis, last, 1)], dim=axis)
        volume = extreme(before, after)
    return volume


def _voxel_cross_entropy(logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """(batch, z, y, x), 0 at unknown voxels."""
    target = without_unknown(target.long(), known)
    return F.cross_entropy(_at_least_float32(logits), target, ignore_index=UNKNOWN, reduction="none")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
