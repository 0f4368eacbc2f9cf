"""Label maps of a cascade's first stage, as the channels behind the image that the second stage is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from torch import Tensor

from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.first_stage import open_first_stage
from megavoxel.preprocessing.store import CaseProperties


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


def with_first_stage(plan: Plan, image: Any, properties: CaseProperties, folders: Sequence[Path]) -> Any:
    """The network's input for a preprocessed case: its image, in a second stage with the first stage's labels.

    Args:
        image: array (channels, network grid), which need not have been read.
        folders: with the first stage's labels, of which the case is in one; for a plan with `stage1`.
    """
    if not plan.stage1:
        return image
    labels = open_first_stage(folders, properties.case, (len(plan.stage1), *properties.shape))
    return ImageWithFirstStage(image=image, first_stage=labels, classes=plan.network.classes)


@dataclass(frozen=True, kw_only=True)
class ImageWithFirstStage:
    """An array (channels, network grid) that is put together as it is read: indexing reads what it touches."""

    image: np.ndarray | blosc2.NDArray
    """float32 (channels, network grid)."""
    first_stage: np.ndarray | blosc2.NDArray
    """uint8 classes (branches, network grid)."""
    classes: int
    """Classes of the first stage, background counted."""

    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels of the image and of the one-hot labels, and the network grid."""
        channels = self.image.shape[0] + self.first_stage.shape[0] * (self.classes - 1)
        return (channels, *self.image.shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        """float32 voxels of a box; `index` is four slices, the first of which takes all channels."""
        labels = np.asarray(self.first_stage[index])
        return np.concatenate([self.image[index], one_hot_branches(labels, self.classes).numpy()])
