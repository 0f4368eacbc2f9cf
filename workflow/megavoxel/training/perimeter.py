"""The perimeter loss, which Sato and Kido (Large Batch and Patch Size Training, AMOS 2022, Table 3) add to Dice.

It is a mean over samples of a value of that sample alone, takes logits of 16 bits as float32, and leaves float64 as it
is. It is no function of sums over voxels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megavoxel.training.annotation import mean_of_known


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
    """
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
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
