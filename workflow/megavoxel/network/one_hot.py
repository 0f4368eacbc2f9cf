"""Label maps of a first stage as channels of the second."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def one_hot_branches(labels: Tensor | np.ndarray, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One channel of zeros and ones per branch and label; the background is where all of them are zero.

    As nnU-Net gives the previous stage of its cascade (`MoveSegAsOneHotToDataTransform` of batchgeneratorsv2).

    Args:
        labels: uint8 (…, branches, z, y, x), classes from 0, the background, to `classes` - 1.
        classes: background counted.
        dtype: of the result.

    Returns:
        (…, branches * (classes - 1), z, y, x), branch after branch, on the device of `labels`.
    """
    labels = torch.as_tensor(labels)
    values = torch.arange(1, classes, dtype=labels.dtype, device=labels.device).view(-1, 1, 1, 1)
    return (labels.unsqueeze(-4) == values).flatten(-5, -4).to(dtype)
